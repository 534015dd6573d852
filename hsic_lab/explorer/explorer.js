// The view of the explorer: controls, heatmaps, charts, and the samples of a cell. The model, which is a kernel or a page,
// answers requests for matrices, spectra and samples, and knows the orders; the view does everything else.

const HALVES = [0.05, 0.1, 0.2, 0.5, 1]; // half the width of the off-diagonal histogram
const ORDER_NAMES = { index: "by index", diagonal: "by diagonal", cluster: "by clustering" };
const PLAY_MS = 700; // a step
const PATIENCE_MS = 5000; // without an answer, after which this is said

function control(words, input) {
  return element("label", {}, words, input);
}

class Explorer {
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.store = new Store(model, () => this.update());
    this.colors = bytesOf(model.get("colors"));
    this.heatmaps = [];
    this.build(root);
    const latest = () => {
      const message = model.get("latest");
      if (message.matrix) this.store.take({ ...message, kind: "matrix", matrix: null }, [message.matrix]);
    };
    const heard = {
      "msg:custom": (message, buffers) => this.store.receive(message, buffers),
      "change:latest": () => { latest(); this.update(); },
    };
    for (const name of ["panels", "step", "orders", "order", "limit", "cell"]) heard[`change:${name}`] = () => this.update();
    for (const [name, act] of Object.entries(heard)) model.on(name, act);
    // The width is 0 until the notebook attaches the element, and changes when it attaches it again.
    this.sizes = new ResizeObserver(() => root.clientWidth !== this.width && this.update());
    this.sizes.observe(root);
    this.close = () => {
      this.sizes.disconnect();
      this.pause();
      clearTimeout(this.timer);
      clearTimeout(this.patience);
      cancelAnimationFrame(this.frame);
      for (const [name, act] of Object.entries(heard)) model.off(name, act);
    };
    latest();
    this.draw();
  }

  change(name, value) {
    this.model.set(name, value);
    this.store.reach(() => this.model.save_changes());
  }

  build(root) {
    const button = (name, words, act) => {
      const node = element("button", { type: "button", "data-control": name }, words);
      node.addEventListener("click", act);
      return node;
    };
    this.slider = element("input", { type: "range", min: 0, step: 1, "data-control": "step" });
    this.stepWords = element("output");
    this.slider.addEventListener("input", () => {
      this.pause();
      this.change("step", this.steps()[Number(this.slider.value)]);
    });
    this.play = button("play", "Play", () => (this.playing ? this.pause() : this.start()));
    this.time = element("div", { class: "controls" }, control("Training step", this.slider), this.stepWords, this.play);
    this.select = element("select", { "data-control": "order" });
    for (const [value, words] of Object.entries(ORDER_NAMES)) this.select.append(element("option", { value }, words));
    this.select.addEventListener("change", () => this.change("order", this.select.value));
    this.limit = element("input", { type: "range", min: 0.02, max: 1, step: 0.01, "data-control": "limit" });
    this.limitWords = element("output");
    this.limit.addEventListener("input", () => this.change("limit", Number(this.limit.value)));
    const zooms = (act) => () => new Map(this.heatmaps.map((one) => [one.d, one])).forEach(act); // panels of one d zoom together
    const controls = element("div", { class: "controls", role: "group", "aria-label": "Controls of the heatmaps" },
      this.time, control("Order of features", this.select), control("Color limit", this.limit), this.limitWords,
      button("in", "Zoom in", zooms((one) => one.zoomAround(one.center, 0.5))),
      button("out", "Zoom out", zooms((one) => one.zoomAround(one.center, 2))),
      button("reset", "Reset zoom", zooms((one) => one.zoom(0, 0, one.d))));
    this.waiting = element("div", { class: "help" }, "Waiting for the first matrix.");
    this.silent = element("div", { class: "silent", role: "status" },
      "The kernel does not answer: it is busy, or it was restarted. If it was restarted, run the cell again.");
    this.barCanvas = element("canvas", { "aria-hidden": "true" });
    drawColorBar(this.barCanvas, this.colors);
    this.barWords = element("div");
    this.bar = element("div", { class: "bar", "aria-hidden": "true" }, this.barCanvas, this.barWords);
    this.panels = element("div", { class: "panels" });
    this.charts = ["diagonal", "off", "spectrum"].map((name) => shape("svg", { "data-chart": name }));
    const captions = ["Diagonal", "Off-diagonal; gray: ±2 rms if independent, dashed: −1/(d−1)", "Singular values of C"];
    this.chartRow = element("div", { class: "charts" }, ...this.charts.map((svg, k) =>
      element("figure", {}, element("figcaption", {}, captions[k]), svg)));
    this.behind = element("div", { class: "behind", "aria-live": "polite" });
    this.layout = element("div", { class: "layout" }, this.panels, this.behind, this.chartRow);
    root.classList.add("hsic-explorer");
    root.dataset.lmSuppressShortcuts = "true"; // the notebook uses some of these keys too
    root.addEventListener("keydown", (event) => event.stopPropagation());
    root.append(controls, this.waiting, this.silent, this.layout, element("div", { class: "help" }, HELP));
  }

  start() {
    if (this.model.get("step") >= this.steps().at(-1)) this.change("step", this.steps()[0]);
    this.playing = setInterval(() => {
      const next = this.steps().find((step) => step > this.model.get("step"));
      if (next === undefined) this.pause();
      else if (this.complete) this.change("step", next);
    }, PLAY_MS);
    this.play.textContent = "Pause";
  }

  pause() {
    clearInterval(this.playing);
    this.playing = null;
    this.play.textContent = "Play";
  }

  // The steps of all panels together, in order.
  steps() {
    return [...new Set(this.model.get("panels").flatMap((panel) => panel.steps))].sort((a, b) => a - b);
  }

  // The step that panel `index` shows: its newest one that is not later.
  at(index, step) {
    const { steps } = this.model.get("panels")[index];
    return steps.filter((one) => one <= step).pop() ?? steps[0];
  }

  zoom(d, view) {
    for (const one of this.heatmaps) if (one.d === d) one.window = view;
    this.update();
  }

  // Draw in the next frame, once for all that happens until then; a hidden tab has no frames.
  update() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const { model, store } = this;
    const panels = model.get("panels"), step = model.get("step"), limit = model.get("limit"), steps = this.steps();
    this.width = this.root.clientWidth;
    while (this.heatmaps.length < panels.length) {
      this.heatmaps.push(new Heatmap(this, this.heatmaps.length, panels[this.heatmaps.length]));
      this.panels.replaceChildren(...this.heatmaps.map((one) => one.node), this.bar);
    }
    this.waiting.hidden = panels.length > 0;
    this.layout.hidden = panels.length === 0;
    this.layout.classList.toggle("lone", panels.length === 1);
    this.time.hidden = steps.length < 2;
    this.slider.max = Math.max(0, steps.length - 1);
    this.slider.value = Math.max(0, steps.filter((one) => one <= step).length - 1);
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.stepWords.textContent = step;
    this.select.value = model.get("order");
    this.limit.value = limit;
    this.limitWords.textContent = `±${number(limit)}`;
    const shown = panels.map((_, panel) => ({ kind: "matrix", panel, step: this.at(panel, step) }));
    const present = shown.map((one) => store.get(one));
    this.complete = present.every(Boolean);
    // A sign marks an end of the color scale that entries exceed by more than rounding.
    const above = present.some((matrix) => matrix?.highest > limit + 1e-5) ? "\u2265" : "";
    const below = present.some((matrix) => matrix?.lowest < -limit - 1e-5) ? "\u2264" : "";
    const ends = [above + number(limit), number(0), below + number(-limit)];
    this.barWords.replaceChildren(...ends.map((words) => element("span", {}, words)));
    present.forEach((matrix, index) => matrix && this.heatmaps[index].draw(matrix));
    const spectra = shown.map((one) => ({ ...one, kind: "spectrum" }));
    this.drawCharts(panels, present, spectra.map((one) => store.get(one)?.values));
    const [panel, i, j] = model.get("cell");
    const cells = panel === undefined ? [] : [{ kind: "cell", panel, step: this.at(panel, step), i, j }];
    this.showBehind(cells[0]);
    store.request([...shown, ...cells]);
    this.watch();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { // while nothing moves
      const others = panels.flatMap((one, index) => one.steps.map((at) => ({ kind: "matrix", panel: index, step: at })));
      const ahead = others.filter((one) => store.bytes + 4 * panels[one.panel].d ** 2 < MAX_BYTES);
      store.request([...shown, ...cells, ...spectra, ...ahead]);
      this.watch();
    }, 150);
  }

  // Say that the kernel does not answer once it has been silent for long. A page has no kernel.
  watch() {
    const { asked } = this.store, waited = asked === null || this.model.data ? 0 : Date.now() - asked;
    this.silent.hidden = waited < PATIENCE_MS;
    clearTimeout(this.patience);
    if (asked !== null && this.silent.hidden) this.patience = setTimeout(() => this.watch(), PATIENCE_MS);
  }

  drawCharts(panels, present, spectra) {
    const given = present.map((matrix, index) => matrix && { ...matrix, color: panels[index].color }).filter(Boolean);
    const drawn = [this.width, ...present, ...spectra];
    if (!given.length || drawn.every((one, k) => one === this.charted?.[k])) return;
    this.charted = drawn;
    const counts = (key) => given.map((one) => ({ color: one.color, counts: one[key] }));
    const negative = given.some((one) => one.diagonal_counts.slice(0, one.diagonal_counts.length / 2).some(Boolean));
    histogram(this.charts[0], counts("diagonal_counts"), {
      low: negative ? -1 : 0, high: 1, bins: 40, xlabel: "C of a feature with itself",
      description: "Histogram of the diagonal",
    });
    const band = 2 * Math.max(...given.map((one) => one.summary.expected_rms));
    const within = (one, half) => {
      const total = one.off_counts.reduce((a, b) => a + b, 0), n = one.off_counts.length;
      const inside = one.off_counts.filter((_, k) => Math.abs(-1 + (2 * (k + 0.5)) / n) <= half);
      return inside.reduce((a, b) => a + b, 0) / total;
    };
    const half = HALVES.find((h) => h >= 1.2 * band && given.every((one) => within(one, h) >= 0.999)) ?? 1;
    histogram(this.charts[1], counts("off_counts"), {
      low: -half, high: half, bins: 40, band, lines: given.map((one) => one.summary.lower_bound),
      xlabel: "C of two features", description: "Histogram of the off-diagonal entries",
    });
    const there = spectra.every(Boolean), lines = spectra.map((values, k) => ({ color: panels[k].color, values }));
    if (there) spectrumChart(this.charts[2], lines, "Singular values of C over the largest");
    this.charts[2].style.opacity = there ? 1 : 0.3; // of another step until the values are there
  }

  // The samples of `cell` if they are there; until then the old ones stay, pale.
  showBehind(cell) {
    const help = (words) => this.behind.replaceChildren(element("div", { class: "help" }, words));
    const answer = cell && this.store.get(cell), shown = answer && `${this.store.key(cell)} ${this.width}`;
    this.behind.style.opacity = answer || !cell ? 1 : 0.3;
    if (!cell) this.shown = null;
    if (!cell) return help("The samples of an entry of C: click it.");
    if (!answer && !this.shown) help("Loading the samples of this entry.");
    if (!answer || shown === this.shown) return;
    this.shown = shown;
    const { name, color, n, one, names, trained } = this.model.get("panels")[cell.panel];
    const of = (k, view) => `feature ${names?.[k] ?? k}${one ? "" : ` of view ${view}`}`;
    const axes = [of(cell.i, "A"), of(cell.j, "B")];
    const parts = [];
    const svg = shape("svg", { "data-chart": "scatter" });
    if (answer.arrays.length) {
      const drawn = answer.arrays[0].length;
      const points = drawn < answer.n ? `the first ${drawn} of ${answer.n}` : answer.n;
      const old = answer.at === cell.step ? "" : ` (those of step ${cell.step} were not kept)`;
      const words = `${name}, samples${trained ? ` of step ${answer.at}${old}` : ""}: ${points} ${one ? "rows" : "pairs"}, correlation ${signed(answer.correlation, 3)}`;
      const rest = n > answer.n ? `; C is of ${n} ${one ? "rows" : "pairs"}` : "";
      parts.push(element("figure", {}, element("figcaption", {}, words + rest), svg));
    }
    const words = { images_a: axes[0], images_b: axes[1] };
    for (const [key, of] of Object.entries(words)) {
      if (!answer[key]) continue;
      const half = answer[key].length / 2;
      const images = answer[key].map((src, k) =>
        element("img", { src, alt: `${k < half ? "low" : "high"} ${of}`, class: k < half ? "lowest" : "highest" }));
      parts.push(element("div", {}, `Lowest and highest ${of}`), element("div", { class: "strip" }, ...images));
    }
    if (answer.note) parts.push(element("div", { class: "help" }, answer.note));
    const first = this.behind.dataset.cell !== `${cell.panel}/${cell.i}/${cell.j}`;
    this.behind.dataset.cell = `${cell.panel}/${cell.i}/${cell.j}`;
    this.behind.replaceChildren(...parts);
    if (answer.arrays.length) scatter(svg, { ...answer, words: axes }, answer.arrays, color); // in the page, because it reads its width
    if (first && this.width && this.width < 900) this.behind.scrollIntoView({ block: "nearest" }); // below the heatmaps
  }
}

export default {
  render({ model, el }) {
    const explorer = new Explorer(model, el);
    return () => explorer.close();
  },
};
