// Elements of the page, and a chart in SVG, whose colours are those of the style sheet, in dark and in light.

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "polyline", "circle", "ellipse", "rect", "text"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// A slider of whole numbers from 0 to `last`, with its name and a value beside it.
function slider(id, name, last, value, moved) {
  const output = element("output", { id: `${id}-value`, for: id });
  const input = element("input", { type: "range", id, min: 0, max: last, step: 1, value, oninput: () => moved(Number(input.value)) });
  const box = element("div", { class: "control" }, element("label", { for: id }, name, output), input);
  const show = (at, number, text) => {
    input.value = at;
    input.setAttribute("aria-valuetext", text);
    output.textContent = text;
    output.dataset.value = number;
  };
  return { box, show };
}

function choice(id, name, options, chosen, moved) {
  const list = element("select", { id, "aria-label": name, onchange: () => moved(Number(list.value)) });
  options.forEach((option, i) => list.append(element("option", { value: i }, option)));
  list.value = chosen;
  return list;
}

const WIDTH = 380, HEIGHT = 280, LEFT = 52, RIGHT = 10, TOP = 10, BOTTOM = 38;

class Chart {
  constructor(id, title) {
    this.svg = element("svg", { id, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
    this.note = element("p");
    this.box = element("section", { class: "panel" }, element("h2", {}, title), this.svg, this.note);
  }

  // Empty axes; `equal`: with the same unit on both; `words`: in place of the numbers 0, 1, ….
  begin(x, y, names, { equal = false, words = null } = {}) {
    const [w, h] = [WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM];
    let [[x0, x1], [y0, y1]] = [x, y];
    if (equal) {
      const unit = Math.max((x1 - x0) / w, (y1 - y0) / h), [cx, cy] = [(x0 + x1) / 2, (y0 + y1) / 2];
      [x0, x1, y0, y1] = [cx - (unit * w) / 2, cx + (unit * w) / 2, cy - (unit * h) / 2, cy + (unit * h) / 2];
    }
    Object.assign(this, { x0, x1, y0, y1 });
    const parts = [];
    for (const value of words ? words.keys() : ticks(x0, x1)) {
      const at = this.px(value);
      parts.push(element("line", { class: "gridline", x1: at, x2: at, y1: TOP, y2: TOP + h }));
      parts.push(element("text", { x: at, y: TOP + h + 14, "text-anchor": "middle" }, words ? words[value] : told(value, 4)));
    }
    for (const value of ticks(y0, y1)) {
      const at = this.py(value);
      parts.push(element("line", { class: "gridline", x1: LEFT, x2: LEFT + w, y1: at, y2: at }));
      parts.push(element("text", { x: LEFT - 5, y: at + 4, "text-anchor": "end" }, this.label ? this.label(value) : told(value, 4)));
    }
    parts.push(element("text", { class: "name", x: LEFT + w / 2, y: HEIGHT - 6, "text-anchor": "middle" }, names[0]));
    const middle = TOP + h / 2;
    parts.push(element("text", { class: "name", x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, names[1]));
    parts.push(element("rect", { class: "frame", x: LEFT, y: TOP, width: w, height: h }));
    // What is drawn outside of the axes is cut off by an inner svg.
    this.inner = element("svg", { x: LEFT, y: TOP, width: w, height: h, viewBox: `${LEFT} ${TOP} ${w} ${h}` });
    this.svg.replaceChildren(...parts, this.inner);
  }

  px(x) { return LEFT + ((x - this.x0) / (this.x1 - this.x0)) * (WIDTH - LEFT - RIGHT); }
  py(y) { return TOP + ((this.y1 - y) / (this.y1 - this.y0)) * (HEIGHT - TOP - BOTTOM); }
  draw(name, attributes) { this.inner.append(element(name, attributes)); }

  line(points, kind) {
    const drawn = (run) => this.draw("polyline", { class: kind, points: run.join(" ") });
    let run = [];
    for (const [x, y] of points) {
      if (Number.isFinite(x + y)) { run.push(`${this.px(x).toFixed(1)},${this.py(y).toFixed(1)}`); continue; }
      if (run.length > 0) drawn(run);
      run = [];
    }
    if (run.length > 0) drawn(run);
  }

  // What is not finite has no place: lines end there, and dots and bars are left out.
  dot(x, y, kind, r = 4) { if (Number.isFinite(x + y)) this.draw("circle", { class: `dot ${kind}`, cx: this.px(x), cy: this.py(y), r }); }
  across(y, kind = "axis") { this.draw("line", { class: kind, x1: LEFT, x2: WIDTH, y1: this.py(y), y2: this.py(y) }); }
  upright(x, kind = "axis") { this.draw("line", { class: kind, x1: this.px(x), x2: this.px(x), y1: 0, y2: HEIGHT }); }

  circle(x, y, r) {
    const [rx, ry] = [this.px(x + r) - this.px(x), this.py(y) - this.py(y + r)];
    this.draw("ellipse", { class: "disc", cx: this.px(x), cy: this.py(y), rx, ry });
  }

  bar(x, width, y, kind) {
    if (!Number.isFinite(y)) return;
    const [left, right, top] = [this.px(x - width / 2), this.px(x + width / 2), this.py(y)];
    this.draw("rect", { class: `bar ${kind}`, x: left, width: right - left, y: top, height: Math.max(this.py(this.y0) - top, 0) });
  }

  // Called with where in the axes a pointer goes while it is down, and when it is lifted.
  moves(moved, lifted = () => {}) {
    const svg = this.svg;
    let down = false;
    svg.classList.add("moves");
    const at = (event) => {
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const x = this.x0 + ((point.x - LEFT) / (WIDTH - LEFT - RIGHT)) * (this.x1 - this.x0);
      const y = this.y1 - ((point.y - TOP) / (HEIGHT - TOP - BOTTOM)) * (this.y1 - this.y0);
      moved(x, y);
    };
    svg.addEventListener("pointerdown", (event) => { down = true; svg.setPointerCapture(event.pointerId); at(event); });
    svg.addEventListener("pointermove", (event) => { if (down) at(event); });
    const end = () => { if (down) { down = false; lifted(); } };
    svg.addEventListener("pointerup", end);
    svg.addEventListener("pointercancel", end);
  }
}

// Two charts of the same eigenvalues: μ, with the imaginary axis, and 1 + εμ, with the unit circle.
class Plane {
  constructor() {
    this.flow = new Chart("flow-plane", "Eigenvalues μ");
    this.map = new Chart("euler-plane", "Multipliers 1 + εμ");
    this.flow.note.textContent = "The flow decays left of the axis.";
    this.map.note.textContent = "Euler's steps decay inside the circle.";
    this.boxes = [this.flow.box, this.map.box];
  }

  // `room`: eigenvalues that are to be in view, too.
  show(real, imag, step, room) {
    const kind = (a, b) => stability([a], [b], step);
    this.flow.begin(roomy(extent([0, ...room.real]), 0.12), roomy(extent([0, ...room.imag, ...room.imag.map((b) => -b)]), 0.12), ["Re μ", "Im μ"]);
    this.flow.upright(0);
    this.flow.across(0, "gridline");
    this.map.begin(roomy(extent([-1, 1, ...real.map((a) => 1 + step * a)])), roomy(extent([-1, 1, ...imag.map((b) => step * b)])), ["Re (1 + εμ)", "Im (1 + εμ)"], { equal: true });
    this.map.circle(0, 0, 1);
    this.map.across(0, "gridline");
    real.forEach((a, j) => {
      this.flow.dot(a, imag[j], kind(a, imag[j]), 5);
      this.map.dot(1 + step * a, step * imag[j], kind(a, imag[j]), 5);
    });
  }
}

const key = (...kinds) =>
  element("div", { class: "key" }, ...kinds.map(([kind, name]) => element("span", {}, element("i", { class: kind }), name)));
