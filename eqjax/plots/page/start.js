// Reads the data and makes the page; what went wrong in it is kept, for tests to see.

const errors = [];
window.addEventListener("error", (event) => errors.push(String(event.message)));
// JSON has no NaN: an entry of an array that is null was one, and must not count as 0.
const data = JSON.parse(document.getElementById("data").textContent, function (_, value) {
  return value === null && Array.isArray(this) ? NaN : value;
});
document.getElementById("note").textContent = data.note || "";
window.explorer = { page: data.kind === "tokens" ? new TokensPage(data) : new BranchPage(data), errors };
