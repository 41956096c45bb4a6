// The page of a causal field: a token, a step of its settling and a head; all that is drawn follows from these and from ε.

class TokensPage {
  constructor(data) {
    Object.assign(this, { data, token: data.names.length - 1, time: data.residuals.length - 1, head: 0, step: data.step });
    this.build();
    this.draw();
  }

  // The last frame of attention that is not later than the present step.
  get frame() {
    return this.data.frames.findLastIndex((at) => at <= this.time);
  }

  build() {
    const { data } = this, count = data.names.length, heads = data.attention[0]?.length ?? 0;
    const named = (text) => (text.trim() === "" ? { " ": "␣", "\n": "⏎", "\t": "⇥" }[text] || "␣" : text.replaceAll("\n", "⏎"));
    this.words = data.names.map(named);
    // Under the axes there is room for short ones.
    this.marks = count <= 32 && this.words.every((word) => word.length < 2) ? this.words : null;
    this.sliders = {
      token: slider("token", "token", count - 1, 0, (token) => this.set({ token })),
      time: slider("time-step", "Euler steps made", data.residuals.length - 1, 0, (time) => this.set({ time })),
    };
    if (heads > 1) this.sliders.head = slider("head", "head", heads - 1, 0, (head) => this.set({ head }));
    this.sliders.step = slider("step", "Euler's step ε, in the planes", 2 * TICKS - 1, 0, (at) => this.set({ step: (data.step * (at + 1)) / TICKS }));
    this.buttons = this.words.map((word, token) => element("button", { title: `token ${token}`, onclick: () => this.set({ token }) }, word));
    this.settling = new Chart("settling", "Residual of every token while it settles");
    this.settling.label = (value) => `1e${told(value, 3)}`;
    this.settling.moves((x) => this.set({ time: Math.min(Math.max(Math.round(x), 0), data.residuals.length - 1) }));
    this.residuals = new Chart("residuals", "Residuals at this step");
    this.residuals.label = this.settling.label;
    this.residuals.moves((x) => this.choose(x));
    this.plane = new Plane();
    const charts = [this.settling.box, this.residuals.box];
    if (heads > 0) {
      this.attention = new Chart("attention", "Whom the token attends to");
      this.attention.moves((x) => this.choose(x));
      charts.push(this.attention.box);
    }
    this.verdict = element("p", { class: "verdict", id: "verdict", "aria-live": "polite" });
    const controls = Object.values(this.sliders).map(({ box }) => box);
    document.getElementById("page").append(element("div", { class: "controls" }, ...controls),
      element("div", { class: "row tokens" }, ...this.buttons), this.verdict, element("div", { class: "charts" }, ...charts, ...this.plane.boxes));
  }

  choose(x) {
    this.set({ token: Math.min(Math.max(Math.round(x), 0), this.words.length - 1) });
  }

  set(changes) {
    Object.assign(this, changes);
    this.draw();
  }

  draw() {
    const { data, token, time, head, words } = this, left = data.residuals[time][token];
    this.sliders.token.show(token, token, `${token}: ${words[token]}`);
    this.sliders.time.show(time, time, `${time}`);
    this.sliders.head?.show(head, head, `${head + 1} of ${data.attention[0].length}`);
    this.sliders.step.show(Math.round((this.step / data.step) * TICKS) - 1, this.step, told(this.step, 4));
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === token));
    const [real, imag] = [data.real[token], data.imag[token]];
    const growth = largest(real, 0), most = largest(sizes(real, imag, this.step), 1);
    const which = data.all ? "" : " of its rightmost modes";
    this.verdict.textContent = `Token ${token}, “${words[token]}”: residual ${told(left, 4)} after ${time} steps of ε = ${told(data.step, 4)}; largest Re μ ${told(growth, 4)}, largest |1 + εμ| ${told(most, 5)}${which}.`;
    Object.assign(this.verdict.dataset, { residual: left, growth, largest: most });
    this.drawSettling();
    if (this.attention) this.drawAttention();
    this.plane.show(real, imag, this.step, { real, imag });
  }

  drawSettling() {
    const { data, token, time, words } = this;
    const log = (value) => Math.log10(Math.max(value, 1e-17));
    const sizes = roomy(extent(data.residuals.flat().filter((value) => value > 0).map(log)));
    this.settling.begin([0, data.residuals.length - 1], sizes, ["Euler steps", "residual"]);
    const line = (t, kind) => this.settling.line(data.residuals.map((row, i) => [i, log(row[t])]), kind);
    words.forEach((_, t) => { if (t !== token) line(t, "other"); });
    line(token, "chosen");
    this.settling.upright(time, "cursor");
    this.residuals.begin([-0.5, words.length - 0.5], sizes, ["token", "residual"], { words: this.marks });
    const lost = data.residuals[time].filter((value) => !Number.isFinite(value)).length;
    this.residuals.note.textContent = lost > 0 ? `No finite residual: ${lost} of ${words.length} tokens. Euler's steps have left.` : "";
    data.residuals[time].forEach((value, t) => this.residuals.bar(t, 0.8, log(value), t === token ? "chosen" : ""));
  }

  drawAttention() {
    const { data, token, head, words, frame } = this, row = data.attention[frame][head][token], chart = this.attention;
    chart.begin([-0.5, words.length - 0.5], [0, 1], ["token", "weight"], { words: this.marks });
    row.forEach((value, t) => chart.bar(t, 0.8, value, t === token ? "" : "chosen"));
    chart.svg.dataset.row = JSON.stringify(row);
    const first = row.indexOf(Math.max(...row));
    const most = first < 0 ? "no finite weights" : `most to token ${first}, “${words[first]}”, ${told(row[first], 4)}`;
    chart.note.textContent = `Head ${head + 1}, after ${data.frames[frame]} steps: ${most}. Pale: to itself.`;
  }
}
