// The view of the explorer: controls, heatmaps, charts, and the samples of a cell. The kernel sends missing matrices,
// spectra, orders and samples; the browser does everything else.

const HALVES = [0.05, 0.1, 0.2, 0.5, 1]; // half the width of the off-diagonal histogram
const ORDER_NAMES = { index: "by index", diagonal: "by diagonal", cluster: "by clustering" };

function control(words, input) {
  return element("label", {}, words, input);
}

class Explorer {
  constructor(model, root) {
    this.model = model;
    this.store = new Store(model, () => this.draw());
    this.heatmaps = [];
    this.build(root);
    const latest = () => {
      const message = model.get("latest");
      if (message.matrix) this.store.take(message, message.matrix);
    };
    const heard = {
      "msg:custom": (message, buffers) => this.store.receive(message, buffers),
      "change:latest": () => { latest(); this.draw(); },
      "change:panels": () => this.draw(),
      "change:step": () => this.draw(),
      "change:orders": () => this.draw(),
      "change:order": () => this.draw(),
      "change:limit": () => this.draw(),
      "change:cell": () => this.heatmaps.forEach((one) => one.mark()),
      "change:behind": () => this.showBehind(),
    };
    for (const [name, act] of Object.entries(heard)) model.on(name, act);
    this.close = () => {
      clearTimeout(this.timer);
      for (const [name, act] of Object.entries(heard)) model.off(name, act);
    };
    latest();
    this.draw();
    this.showBehind();
  }

  build(root) {
    const { model } = this;
    const change = (name, value) => { model.set(name, value); model.save_changes(); };
    this.slider = element("input", { type: "range", min: 0, step: 1, "data-control": "step" });
    this.stepWords = element("output");
    this.slider.addEventListener("input", () => change("step", this.steps()[Number(this.slider.value)]));
    this.select = element("select", { "data-control": "order" });
    for (const [value, words] of Object.entries(ORDER_NAMES)) this.select.append(element("option", { value }, words));
    this.select.addEventListener("change", () => change("order", this.select.value));
    this.limit = element("input", { type: "range", min: 0.02, max: 1, step: 0.01, "data-control": "limit" });
    this.limitWords = element("output");
    this.limit.addEventListener("input", () => change("limit", Number(this.limit.value)));
    const reset = element("button", { type: "button", "data-control": "reset" }, "Reset zoom");
    reset.addEventListener("click", () => this.heatmaps.forEach((one) => one.zoom(0, 0, one.d)));
    const controls = element("div", { class: "controls", role: "group", "aria-label": "Controls of the heatmaps" },
      control("Training step", this.slider), this.stepWords, control("Order of features", this.select),
      control("Color limit", this.limit), this.limitWords, reset);
    this.waiting = element("div", { class: "help" }, "Waiting for the first matrix.");
    this.barCanvas = element("canvas", { "aria-hidden": "true" });
    this.barWords = element("div");
    this.bar = element("div", { class: "bar", "aria-hidden": "true" }, this.barCanvas, this.barWords);
    this.panels = element("div", { class: "panels" });
    this.charts = ["diagonal", "off", "spectrum"].map((name) => shape("svg", { "data-chart": name }));
    const captions = ["Diagonal", "Off-diagonal; gray: expected if independent, dashed: −1/(d−1)", "Singular values of C"];
    this.chartRow = element("div", { class: "charts" }, ...this.charts.map((svg, k) =>
      element("figure", {}, element("figcaption", {}, captions[k]), svg)));
    this.behind = element("div", { class: "behind", "aria-live": "polite" });
    const help = element("div", { class: "help" }, HELP);
    root.classList.add("hsic-explorer");
    root.append(controls, this.waiting, this.panels, this.chartRow, this.behind, help);
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
    this.draw();
  }

  draw() {
    const { model, store } = this;
    const panels = model.get("panels"), step = model.get("step"), limit = model.get("limit"), steps = this.steps();
    while (this.heatmaps.length < panels.length) {
      this.heatmaps.push(new Heatmap(this, this.heatmaps.length, panels[this.heatmaps.length]));
      this.panels.replaceChildren(...this.heatmaps.map((one) => one.node), this.bar);
    }
    this.waiting.hidden = panels.length > 0;
    this.panels.hidden = this.chartRow.hidden = panels.length === 0;
    this.slider.max = Math.max(0, steps.length - 1);
    this.slider.disabled = steps.length < 2;
    this.slider.value = Math.max(0, steps.filter((one) => one <= step).length - 1);
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.stepWords.textContent = step;
    this.select.value = model.get("order");
    this.limit.value = limit;
    this.limitWords.textContent = `±${number(limit)}`;
    drawColorBar(this.barCanvas, bytesOf(model.get("colors")));
    const shown = panels.map((_, index) => [index, this.at(index, step)]);
    const present = shown.map(([index, at]) => store.matrices.get(store.key(index, at)));
    // A sign marks an end of the color scale that entries exceed by more than rounding.
    const above = present.some((matrix) => matrix?.highest > limit + 1e-5) ? "\u2265" : "";
    const below = present.some((matrix) => matrix?.lowest < -limit - 1e-5) ? "\u2264" : "";
    const ends = [above + number(limit), number(0), below + number(-limit)];
    this.barWords.replaceChildren(...ends.map((words) => element("span", {}, words)));
    present.forEach((matrix, index) => matrix && this.heatmaps[index].draw(matrix));
    this.drawCharts(panels, shown, present);
    store.request(shown, [], false);
    clearTimeout(this.timer);
    const others = panels.flatMap((panel, index) => panel.steps.map((one) => [index, one]));
    this.timer = setTimeout(() => store.request(shown, others, true), 150);
  }

  drawCharts(panels, shown, present) {
    const given = present.map((matrix, index) => matrix && { ...matrix, color: panels[index].color }).filter(Boolean);
    if (!given.length) return;
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
    const values = shown.map(([index, step]) => ({
      color: panels[index].color, values: this.store.spectra.get(this.store.key(index, step)),
    })).filter((one) => one.values);
    if (values.length === shown.length) spectrumChart(this.charts[2], values, "Singular values of C over the largest");
  }

  showBehind() {
    const behind = this.model.get("behind");
    if (behind.panel === undefined) return this.behind.replaceChildren();
    if (behind.missing) return this.behind.replaceChildren(behind.missing);
    const svg = shape("svg", { "data-chart": "scatter" });
    scatter(svg, behind, this.model.get("panels")[behind.panel].color);
    const points = behind.x.length < behind.n ? `the first ${behind.x.length} of ${behind.n}` : behind.n;
    const caption = element("figcaption", {},
      `${behind.name}, step ${behind.step}: ${points} pairs, correlation ${signed(behind.correlation, 3)}`);
    const strips = element("div", { class: "images" });
    const words = { images_a: `feature ${behind.i} of view A`, images_b: `feature ${behind.j} of view B` };
    for (const [key, of] of Object.entries(words)) {
      if (!behind[key]) continue;
      const half = behind[key].length / 2;
      const images = behind[key].map((src, k) =>
        element("img", { src, alt: `${k < half ? "low" : "high"} ${of}`, class: k < half ? "lowest" : "highest" }));
      strips.append(`Lowest and highest ${of}`, element("div", { class: "strip" }, ...images));
    }
    this.behind.replaceChildren(element("figure", {}, caption, svg), strips);
  }
}

export default {
  render({ model, el }) {
    const explorer = new Explorer(model, el);
    return () => explorer.close();
  },
};
