// Numbers: between grid points, in words, and along a trajectory.

// The row at a position between two rows, by a straight line; at a whole number the row itself.
function between(rows, position) {
  const i = Math.min(Math.floor(position), rows.length - 1), part = position - i;
  if (part === 0) return rows[i];
  const after = rows[i + 1];
  if (typeof rows[i] === "number") return (1 - part) * rows[i] + part * after;
  return rows[i].map((value, j) => (1 - part) * value + part * after[j]);
}

// A number for people to read; what is computed with is in `data-value` beside it.
function told(value, digits = 6) {
  if (value === null || !Number.isFinite(value)) return "–";
  const text = value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6) ? value.toExponential(3) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

function toldComplex(re, im) {
  return `${told(re, 5)} ${im < 0 ? "−" : "+"} ${told(Math.abs(im), 5)}i`;
}

// Round numbers between two, some five of them.
function ticks(low, high) {
  const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

// The largest, where it is known on which side of `edge` it lies; NaN where values that are not finite leave that open.
function largest(values, edge) {
  const most = Math.max(...values.filter(Number.isFinite));
  return most > edge || values.every(Number.isFinite) ? most : NaN;
}

const sizes = (real, imag, step) => real.map((a, j) => Math.hypot(1 + step * a, step * imag[j]));

// Whether the flow leaves, Euler's steps leave, or both stay; unknown where eigenvalues are.
function stability(real, imag, step) {
  const growth = largest(real, 1e-9), most = largest(sizes(real, imag, step), 1 + 1e-9);
  if (growth > 1e-9) return "unstable";
  return Number.isNaN(growth + most) ? "unknown" : most > 1 + 1e-9 ? "euler" : "stable";
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  }
  return [low, high];
}

// An interval with room around it, and of some width.
function roomy([low, high], share = 0.08) {
  if (!(low <= high)) return [-1, 1];
  const room = Math.max(share * (high - low), 1e-3 * (1 + Math.abs(low) + Math.abs(high)));
  return [low - room, high + room];
}

const along = (z, h, dz) => z.map((value, i) => value + h * dz[i]);

function eulerStep(force, z, h) {
  return along(z, h, force(z));
}

// The classical Runge–Kutta method.
function flowStep(force, z, h) {
  const a = force(z), b = force(along(z, h / 2, a)), c = force(along(z, h / 2, b)), d = force(along(z, h, c));
  return z.map((value, i) => value + (h / 6) * (a[i] + 2 * b[i] + 2 * c[i] + d[i]));
}

// States at equal times; it ends early where they are no longer finite.
function trajectory(step, force, start, h, count) {
  const path = [start];
  for (let i = 0; i < count; i++) {
    const next = step(force, path[i], h);
    if (!next.every((value) => Math.abs(value) < 1e9)) break;
    path.push(next);
  }
  return path;
}
