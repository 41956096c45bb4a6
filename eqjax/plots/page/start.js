// Reads the data and makes the page; what went wrong in it is kept, for tests to see.

const errors = [];
window.addEventListener("error", (event) => errors.push(String(event.message)));
const data = JSON.parse(document.getElementById("data").textContent);
document.getElementById("note").textContent = data.note || "";
window.explorer = { page: data.kind === "tokens" ? new TokensPage(data) : new BranchPage(data), errors };
