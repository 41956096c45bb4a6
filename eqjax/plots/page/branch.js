// The page of a branch: a position on it, a step ε and a start; all that is drawn follows from these three.

const PARTS = 10; // positions of the slider between two points of the branch
const TICKS = 200; // and of that of ε, up to the step where the page begins

class BranchPage {
  constructor(data) {
    Object.assign(this, { data, grid: data.grid, fixed: data.grid.states !== null, position: 0, step: data.step });
    this.special = data.grid.special || [];
    this.pick = [0, Math.min(1, data.names.length - 1)];
    this.start = data.start || null;
    if (this.special.length > 0) this.position = Math.max(this.special[0].at - 1, 0);
    this.build();
    this.draw();
  }

  get parameter() { return between(this.grid.parameter, this.position); }
  get eigenvalues() { return [between(this.grid.real, this.position), between(this.grid.imag, this.position)]; }

  // The force in the page, with the parameter as it is, or null.
  get force() {
    const field = this.data.field;
    if (!field) return null;
    return FIELDS[field.kind]({ ...field.numbers, [field.varied]: this.parameter });
  }

  build() {
    const { data } = this, last = (this.grid.parameter.length - 1) * PARTS;
    const pages = [];
    this.slider = slider("parameter", data.parameter, last, 0, (at) => this.set({ position: at / PARTS }));
    this.stepper = slider("step", "Euler's step ε", 2 * TICKS - 1, 0, (at) => this.set({ step: (data.step * (at + 1)) / TICKS }));
    pages.push(element("div", { class: "controls" }, this.slider.box, this.stepper.box));
    if (this.special.length > 0) {
      this.buttons = this.special.map((point, i) =>
        element("button", { id: `special-${i}`, "data-parameter": point.parameter, onclick: () => this.set({ position: point.at }) }, this.label(point)));
      const step = data.labelled === null ? "Go to" : `Go to (Euler with ε = ${told(data.labelled)})`;
      pages.push(element("div", { class: "row" }, element("span", { class: "what" }, `${step}:`), ...this.buttons));
    }
    this.verdict = element("p", { class: "verdict", id: "verdict", "aria-live": "polite" });
    const kinds = [["stable", "stable"], ["euler", "Euler's steps leave"], ["unstable", "the flow leaves"]];
    if (data.cycles.length > 0) kinds.push(["cycle", "cycles"]);
    if (this.fixed && !data.grid.real.flat().every(Number.isFinite)) kinds.push(["unknown", "not known"]);
    if (this.fixed) pages.push(this.verdict, key(...kinds));
    const charts = element("div", { class: "charts" });
    if (this.fixed) {
      this.diagram = new Chart("diagram", "The branch");
      this.diagram.moves((x, y) => this.set({ position: this.nearest(x, y) }));
      this.plane = new Plane();
      charts.append(this.diagram.box, ...this.plane.boxes);
    }
    if (data.field || data.sampled) {
      this.portrait = new Chart("portrait", "Trajectories");
      this.portrait.svg.setAttribute("tabindex", 0);
      this.portrait.moves((x, y) => this.take(x, y, true), () => this.set({ dragging: false }));
      this.portrait.svg.addEventListener("keydown", (event) => this.arrow(event));
      this.time = new Chart("time", "In time");
      charts.append(this.portrait.box, this.time.box);
    }
    const names = data.names;
    const lists = [0, 1].slice(0, names.length > 1 ? 2 : 1).map((axis) =>
      choice(`coordinate-${axis}`, `coordinate of axis ${axis + 1}`, names, this.pick[axis], (value) => { this.pick[axis] = value; this.set({}); }));
    if (names.length > 1) pages.push(element("div", { class: "row" }, element("span", { class: "what" }, "Coordinates:"), ...lists));
    pages.push(charts);
    if (this.fixed) {
      this.values = element("table", { id: "eigenvalues" });
      this.state = element("table", { id: "state" });
      const whole = data.all ? "all" : "the rightmost";
      charts.append(element("section", { class: "panel" }, element("h2", {}, `Eigenvalues, ${whole}`), this.values,
        element("h2", {}, "Fixed point"), this.state));
    }
    document.getElementById("page").append(...pages);
  }

  label(point) {
    const kinds = [[point.flow, "flow"], [point.euler, "Euler"]].filter(([kind]) => kind !== "–");
    return `${kinds.map(([kind, whose]) => `${kind} (${whose})`).join(", ")} at ${told(point.parameter)}`;
  }

  set(changes) {
    Object.assign(this, changes);
    this.draw();
  }

  // The point of the branch nearest to a place in the diagram; a special one from some way off.
  nearest(x, y) {
    const [a] = this.pick, chart = this.diagram;
    const far = (i) => Math.hypot(chart.px(this.grid.parameter[i]) - chart.px(x), 0.3 * (chart.py(this.grid.states[i][a]) - chart.py(y)));
    const order = this.grid.parameter.map((_, i) => i).sort((i, j) => far(i) - far(j));
    const special = this.special.map((point) => point.at).sort((i, j) => far(i) - far(j))[0];
    return special !== undefined && far(special) < 12 ? special : order[0];
  }

  // The start with two of its coordinates as they are in the plane.
  take(x, y, dragging) {
    const [a, b] = this.pick.map((index) => this.data.shown[index]), start = [...this.start];
    start[a] = x;
    if (a !== b) start[b] = y;
    this.set({ start, dragging });
  }

  arrow(event) {
    const to = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!to) return;
    event.preventDefault();
    const [a, b] = this.pick.map((index) => this.data.shown[index]), chart = this.portrait;
    this.take(this.start[a] + 0.02 * to[0] * (chart.x1 - chart.x0), this.start[b] + 0.02 * to[1] * (chart.y1 - chart.y0), false);
  }

  // Cycles at the present parameter: closed curves between those of two neighbours on their branch.
  loops() {
    const p = this.parameter, found = [];
    for (const { parameter, loops, unstable, period } of this.data.cycles) {
      for (let i = 0; i + 1 < parameter.length; i++) {
        const part = (p - parameter[i]) / (parameter[i + 1] - parameter[i]);
        if (!(part >= 0 && part < 1)) continue;
        const points = loops[i].map((point, j) => point.map((value, c) => (1 - part) * value + part * loops[i + 1][j][c]));
        found.push({ points, leaves: unstable[i] > 0, period: (1 - part) * period[i] + part * period[i + 1] });
      }
    }
    return found;
  }

  // Trajectories from the start, in the coordinates that are shown: by the flow and in Euler's steps, or the nearest one known.
  paths() {
    const { data, force } = this, shown = (z) => data.shown.map((index) => z[index]);
    if (force) {
      const count = Math.round(data.span / data.pace), euler = Math.min(Math.round(data.span / this.step), 20000);
      return {
        flow: trajectory(flowStep, force, this.start, data.pace, count).map(shown),
        euler: trajectory(eulerStep, force, this.start, this.step, euler).map(shown),
        pace: data.pace,
      };
    }
    const { parameter, starts, paths } = data.sampled, mine = shown(this.start);
    const least = (rows, far) => rows.map((row, i) => [far(row), i]).sort((one, other) => one[0] - other[0])[0][1];
    const at = least(parameter, (value) => Math.abs(value - this.parameter));
    const from = least(starts, (row) => Math.hypot(...this.pick.map((c) => row[c] - mine[c])));
    const path = paths[at][from].filter((row) => row.every(Number.isFinite));
    this.portrait.note.textContent = `Computed beforehand: the one for ${data.parameter} = ${told(parameter[at], 4)} whose start is nearest to the ring.`;
    return { flow: path, euler: [], pace: data.span / (paths[0][0].length - 1) };
  }

  draw() {
    const { data } = this, parameter = this.parameter;
    this.slider.show(Math.round(this.position * PARTS), parameter, told(parameter, 7));
    this.stepper.show(Math.round((this.step / data.step) * TICKS) - 1, this.step, told(this.step, 4));
    this.cyclesHere = this.loops();
    if (this.fixed) {
      const [real, imag] = this.eigenvalues;
      this.plane.show(real, imag, this.step, { real: this.grid.real.flat(), imag: this.grid.imag.flat() });
      this.tell(real, imag);
      this.drawDiagram();
    }
    if (this.portrait) this.drawMotion();
  }

  kind(i) {
    return stability(between(this.grid.real, i), between(this.grid.imag, i), this.step);
  }

  drawDiagram() {
    const [a] = this.pick, chart = this.diagram, { parameter, states } = this.grid;
    const tops = this.data.cycles.flatMap(({ low, high }) => [...low, ...high].map((row) => row[a]));
    const heights = states.map((state) => state[a]);
    chart.begin(roomy(extent(parameter)), roomy(extent([...heights, ...tops])), [this.data.parameter, this.data.names[a]]);
    chart.upright(this.parameter, "cursor");
    let from = 0;
    for (let i = 0; i + 1 < parameter.length; i++) {
      const last = i + 2 === parameter.length;
      if (!last && this.kind(i + 0.5) === this.kind(i + 1.5)) continue;
      chart.line(states.slice(from, i + 2).map((state, j) => [parameter[from + j], state[a]]), this.kind(i + 0.5));
      from = i + 1;
    }
    for (const cycle of this.data.cycles) {
      for (const end of [cycle.low, cycle.high]) {
        for (let i = 0; i + 1 < cycle.parameter.length; i++) {
          const pair = [i, i + 1].map((j) => [cycle.parameter[j], end[j][a]]);
          chart.line(pair, cycle.unstable[i] > 0 ? "cycle leaves" : "cycle");
        }
      }
    }
    for (const point of this.special) chart.dot(point.parameter, states[point.at][a], "special", 4);
    chart.dot(this.parameter, between(states, this.position)[a], "here", 7);
    const point = this.special.find(({ at }) => at === this.position);
    const more = point ? ` ± ${point.error.toExponential(0)}, ${point.status}${point.frequency ? `, ω = ${told(point.frequency)}` : ""}` : "";
    chart.note.textContent = point ? `${this.label(point)}${more}` : "Click, or drag along it. Dots are special points.";
    this.buttons?.forEach((button, i) => button.setAttribute("aria-pressed", this.special[i] === point));
  }

  drawMotion() {
    const [a, b] = this.pick, { data } = this;
    const { flow, euler, pace } = this.paths(), labels = data.names;
    const drawn = (path) => path.map((row) => [row[a], row[b]]);
    const every = Math.max(1, Math.floor(flow.length / 1500));
    const thin = (path, step = 1) => path.filter((_, i) => i % step === 0);
    const first = this.start && [a, b].map((index) => this.start[data.shown[index]]);
    if (!this.dragging || !this.room) {
      const near = [...flow, ...this.cyclesHere.flatMap((cycle) => cycle.points), ...(this.fixed ? [between(this.grid.states, this.position)] : [])];
      // Euler's steps as well, unless they go far.
      this.room = [a, b].map((index, axis) => {
        const calm = extent([first[axis], ...near.map((row) => row[index])]), all = extent([...calm, ...euler.map((row) => row[index])]);
        return roomy(all[1] - all[0] < 4 * (calm[1] - calm[0]) ? all : calm, 0.1);
      });
    }
    const chart = this.portrait;
    chart.begin(...this.room, [labels[a], labels[b]]);
    if (euler.length > 1) chart.line(drawn(euler), "euler thin");
    chart.line(drawn(thin(flow, every)), "flow");
    for (const cycle of this.cyclesHere) chart.line(drawn([...cycle.points, cycle.points[0]]), cycle.leaves ? "cycle leaves" : "cycle");
    if (this.fixed) {
      const rest = between(this.grid.states, this.position);
      chart.dot(rest[a], rest[b], this.kind(this.position), 5);
    }
    chart.dot(...first, "start", 7);
    const toldCycles = this.cyclesHere.map((cycle) => `${cycle.leaves ? "unstable" : "stable"} cycle of period ${told(cycle.period, 5)}`);
    const green = toldCycles.length ? ` Green: ${toldCycles.join("; ")}.` : "";
    if (!data.sampled) chart.note.textContent = `Drag the ring, or use the arrow keys. Blue: the flow; orange: Euler's steps.${green}`;
    const times = this.time, seen = Math.max(1, Math.floor(euler.length / 1500));
    times.begin([0, data.span], this.room[0], ["time", labels[a]]);
    times.line(thin(euler, seen).map((row, i) => [i * seen * this.step, row[a]]), "euler thin");
    times.line(thin(flow, every).map((row, i) => [i * every * pace, row[a]]), "flow");
  }

  tell(real, imag) {
    const multipliers = sizes(real, imag, this.step), growth = largest(real, 0), most = largest(multipliers, 1);
    const says = (number, edge, stays, leaves) =>
      (Number.isNaN(number) ? "may stay or leave" : Math.abs(number - edge) < 1e-8 ? "is at the edge" : number < edge ? stays : leaves);
    const flow = `the flow ${says(growth, 0, "stays", "leaves")} (largest Re μ ${told(growth, 4)})`;
    const euler = `Euler's steps ${says(most, 1, "stay", "leave").replace("is at", "are at")} (largest |1 + εμ| ${told(most, 5)})`;
    this.verdict.textContent = `${flow[0].toUpperCase()}${flow.slice(1)}; ${euler}.`;
    Object.assign(this.verdict.dataset, { growth, largest: most });
    const cell = (value, text = told(value)) => element("td", { "data-value": value }, text);
    this.values.replaceChildren(
      element("tr", {}, ...["μ", "|1 + εμ|"].map((name) => element("th", {}, name))),
      ...real.map((a, j) => element("tr", { "data-re": a, "data-im": imag[j] }, element("td", {}, toldComplex(a, imag[j])), cell(multipliers[j]))));
    this.state.replaceChildren(...between(this.grid.states, this.position).map((value, i) =>
      element("tr", {}, element("th", {}, this.data.names[i]), cell(value))));
  }
}
