// One heatmap: drawing, zoom, the entry under the pointer, keys.

const HELP =
  "Hover for one entry, click for its samples. Drag a box to zoom; the wheel zooms once a heatmap has the focus. " +
  "Keys on a heatmap: arrows move, Enter shows the samples, + and − zoom, 0 resets. On a touch screen tap an entry, " +
  "or spread two fingers to zoom.";

class Heatmap {
  constructor(view, index, panel) {
    this.view = view;
    this.index = index;
    this.d = panel.d;
    this.panel = panel;
    this.window = { row: 0, column: 0, size: panel.d };
    this.indices = Int32Array.from({ length: panel.d }, (_, k) => k);
    this.cursor = [0, 0];
    this.canvas = element("canvas", { tabindex: 0, role: "img" });
    this.overlay = shape("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
    this.rows = element("div", { class: "rows" });
    this.columns = element("div", { class: "columns" });
    this.sums = element("div", { class: "sums" });
    this.readout = element("div", { class: "readout", "aria-live": "polite" });
    const swatch = element("span", { class: "swatch", style: `background:${panel.color}` });
    const map = element("div", { class: "map" }, this.canvas, this.overlay, this.rows);
    const title = element("div", { class: "title" }, swatch, panel.name);
    this.node = element("div", { class: "panel" }, title, this.sums, map, this.columns, this.readout);
    this.listen();
  }

  // The order of the features, null by index. Until a new one arrives, the old one stays.
  get order() {
    const { by, positions } = this.view.model.get("orders"), wanted = this.view.model.get("order");
    if (wanted === "index") return null;
    const given = by === wanted && positions[this.index];
    if (!given) return this.drawn?.order ?? null;
    if (given !== this.given) [this.given, this.positions] = [given, Int32Array.from(given)];
    return this.positions;
  }

  position(feature) {
    return this.order ? this.order.indexOf(feature) : feature;
  }

  feature(position) {
    return this.order ? this.order[position] : position;
  }

  // Compute, color and describe only what has changed.
  draw(matrix) {
    const { order, window } = this, limit = this.view.model.get("limit"), before = this.drawn ?? {};
    this.drawn = { matrix, order, window, limit };
    const same = (...names) => names.every((name) => this.drawn[name] === before[name]);
    if (!same("matrix")) this.describe(matrix);
    if (!same("order", "window")) this.label();
    if (!same("matrix", "order", "window")) this.blocks = blockMeans(matrix.arrays[0], this.d, order ?? this.indices, window);
    if (!same("matrix", "order", "window", "limit")) drawMatrix(this.canvas, this.blocks, this.view.colors, limit);
    this.mark();
  }

  label() {
    const { row, column, size } = this.window, first = this.order ? "position " : "";
    const words = (view) => (this.panel.one ? ["feature"] : [element("span", { class: "long" }, "feature of "), `view ${view}`]);
    const ends = (at, view) => [[first + at], words(view), [at + size - 1]].map((parts) => element("span", {}, ...parts));
    this.columns.replaceChildren(...ends(column, "B"));
    this.rows.replaceChildren(...ends(row, "A"));
  }

  describe(matrix) {
    this.matrix = matrix;
    const { one } = this.panel;
    const s = matrix.summary;
    const norm = s.off_diagonal_squared_norm + (this.d - s.n_constant) * s.rms_diagonal ** 2;
    const among = one ? "among the features" : "between the two views";
    const lines = [
      `${this.panel.trained ? `step ${matrix.step}: ` : ""}\u2016C\u2016²_F = HSIC = ${signed(norm, 1)}, all linear dependence ${among}`,
      ...(one ? [] : [`diagonal: mean ${signed(s.mean_diagonal, 3)} (1 if the views agree)`]),
      `off-diagonal: mean ${signed(s.mean_off_diagonal, 4)}, rms ${signed(s.rms_off_diagonal, 3)} ` +
        `(expected if independent: ${signed(s.expected_rms, 3)})`,
      `Σ off-diagonal² = ${signed(s.off_diagonal_squared_norm, 1)} ` +
        `(expected if independent: ${signed(s.expected_squared_norm, 1)}); 1ᵀC1\u00a0=\u00a0${signed(s.total, 1)}`,
    ];
    matrix.constant.forEach((count, k) => {
      if (count && !(one && k)) lines.push(`constant features${one ? "" : ` of view ${"AB"[k]}`}: ${count}, left out of these numbers`);
    });
    this.sums.replaceChildren(...lines.map((words) => element("div", {}, words)));
    this.canvas.setAttribute("aria-label", `${one ? "Correlation" : "Cross-correlation"} matrix. ${lines.join(". ")}. ${HELP}`);
    this.canvas.dataset.step = matrix.step;
  }

  // Mark the cell whose samples are shown, and the box that is dragged.
  mark(box) {
    const { row, column, size } = this.window;
    this.overlay.setAttribute("viewBox", `0 0 ${size} ${size}`);
    const boxes = [];
    const [panel, i, j] = this.view.model.get("cell");
    if (panel === this.index) {
      const least = Math.max(1, size / 60); // keeps a small cell visible
      boxes.push([this.position(j) - column + 0.5 - least / 2, this.position(i) - row + 0.5 - least / 2, least, least]);
    }
    if (box) boxes.push(box);
    this.overlay.replaceChildren(...boxes.flatMap(([x, y, width, height]) =>
      ["halo", "line"].map((name) => shape("rect", { x, y, width, height, class: name }))));
  }

  // The [row, column] of an event, as positions in the whole matrix.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const part = (value, from, length) => Math.min(0.999999, Math.max(0, (value - from) / length));
    const { row, column, size } = this.window;
    return [
      row + Math.floor(part(event.clientY, box.top, box.height) * size),
      column + Math.floor(part(event.clientX, box.left, box.width) * size),
    ];
  }

  read([p, q]) {
    this.cursor = [p, q];
    if (!this.matrix) return;
    const [i, j] = [this.feature(p), this.feature(q)];
    const name = (k) => this.panel.names?.[k] ?? k;
    const cell = this.panel.one ? `${name(i)} and ${name(j)}` : `A ${name(i)}, B ${name(j)}`;
    const words = `${cell}: C = ${signed(this.matrix.arrays[0][i * this.d + j], 4)}`;
    const width = Math.ceil(this.window.size / MAX_BLOCKS);
    this.readout.textContent = width > 1 ? `${words} (a pixel is the mean of ${width} × ${width})` : words;
  }

  pick([p, q]) {
    this.view.change("cell", [this.index, this.feature(p), this.feature(q)]);
  }

  zoom(row, column, size) {
    this.view.zoom(this.d, fitted(row, column, size, this.d));
  }

  // The position around which the buttons zoom: the chosen cell if it is in the window, else the center.
  get center() {
    const { row, column, size } = this.window, [panel, i, j] = this.view.model.get("cell");
    const at = panel === this.index ? [this.position(i), this.position(j)] : [-1, -1];
    const inside = at[0] >= row && at[0] < row + size && at[1] >= column && at[1] < column + size;
    return inside ? at : [row + size / 2, column + size / 2];
  }

  zoomAround([p, q], factor) {
    const { row, column, size } = this.window;
    this.zoom(p - (p - row) * factor, q - (q - column) * factor, size * factor);
  }

  listen() {
    let start = null;
    const canvas = this.canvas, touches = new Map(); // of two fingers
    const spread = () => {
      const [a, b] = [...touches.values()];
      return Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY));
    };
    const dragged = (event) => {
      const [from, to] = [start.cell, this.at(event)];
      const row = Math.min(from[0], to[0]), column = Math.min(from[1], to[1]);
      return { row, column, height: Math.abs(to[0] - from[0]) + 1, width: Math.abs(to[1] - from[1]) + 1 };
    };
    const moved = (event) => Math.hypot(event.clientX - start.x, event.clientY - start.y) > 5;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      touches.set(event.pointerId, event);
      if (touches.size === 2) {
        const [a, b] = [...touches.values()].map((one) => this.at(one));
        start = { pinch: spread(), window: this.window, center: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2] };
      }
      if (touches.size > 1) return;
      start = { x: event.clientX, y: event.clientY, cell: this.at(event) };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (touches.has(event.pointerId)) touches.set(event.pointerId, event);
      if (start?.pinch) {
        if (touches.size < 2) return;
        this.window = start.window;
        return this.zoomAround(start.center, start.pinch / spread());
      }
      this.read(this.at(event));
      if (!start || !moved(event)) return;
      const { row, column, width, height } = dragged(event);
      this.mark([column - this.window.column, row - this.window.row, width, height]);
    });
    canvas.addEventListener("pointerup", (event) => {
      touches.delete(event.pointerId);
      if (start?.pinch && !touches.size) start = null;
      if (!start || start.pinch) return;
      const { row, column, width, height } = dragged(event);
      if (moved(event)) this.zoom(row, column, Math.max(width, height));
      else this.pick(this.at(event));
      start = null;
    });
    canvas.addEventListener("pointercancel", () => {
      touches.clear();
      start = null;
      this.mark();
    });
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && canvas.getRootNode().activeElement !== canvas) return;
      event.preventDefault(); // without the focus the wheel scrolls the page
      this.zoomAround(this.at(event), event.deltaY < 0 ? 0.8 : 1.25);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const { row, column, size } = this.window;
    if (steps[event.key]) {
      const inside = (value) => Math.min(this.d - 1, Math.max(0, value));
      const [p, q] = this.cursor.map((value, axis) => inside(value + steps[event.key][axis]));
      const follow = (at, from) => Math.min(at, Math.max(from, at - size + 1));
      this.read([p, q]);
      if (follow(p, row) !== row || follow(q, column) !== column) this.zoom(follow(p, row), follow(q, column), size);
      else this.mark([q - column, p - row, 1, 1]);
    } else if (event.key === "Enter") this.pick(this.cursor);
    else if (event.key === "+" || event.key === "=") this.zoomAround(this.cursor, 0.5);
    else if (event.key === "-") this.zoomAround(this.cursor, 2);
    else if (event.key === "0" || event.key === "Escape") this.zoom(0, 0, this.d);
    else return;
    event.preventDefault();
  }
}
