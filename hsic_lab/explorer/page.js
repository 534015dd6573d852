// The explorer of a saved page: a model with the interface of a notebook's, which answers from the data in the page.

function decoded(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = letters.charCodeAt(k);
  return bytes;
}

async function inflated(text) {
  const stream = new Blob([decoded(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// The correlation of samples, which are no longer standardized once they are rounded; 0 if one of them is constant.
function pearson(x, y) {
  const centered = [x, y].map((values) => {
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    return Array.from(values, (value) => value - mean);
  });
  const product = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
  const [a, b] = centered, squares = product(a, a) * product(b, b);
  return squares ? product(a, b) / Math.sqrt(squares) : 0;
}

class PageModel {
  constructor(data) {
    this.data = data;
    this.state = { ...data.state, colors: decoded(data.colors) };
    this.heard = new Map();
    this.changes = [];
    this.kept = {}; // inflated samples, sprites
  }

  get(name) {
    return this.state[name];
  }

  set(name, value) {
    this.state[name] = value;
    this.changes.push(name);
  }

  save_changes() {
    const { order } = this.state;
    if (this.changes.includes("order")) this.set("orders", { by: order, positions: this.data.orders[order] });
    for (const name of this.changes.splice(0)) this.heard.get(`change:${name}`)?.();
  }

  on(name, act) {
    this.heard.set(name, act);
  }

  off(name) {
    this.heard.delete(name);
  }

  async send(request) {
    const { kind, panel, step } = request, found = this.data.answers[`${kind}/${panel}/${step}`];
    const [message, buffers] = kind === "cell"
      ? await this.cell(request)
      : [{ ...found, kind }, kind === "matrix" ? [await this.matrix(panel, step)] : []];
    this.heard.get("msg:custom")?.(message, buffers);
  }

  async matrix(panel, step) {
    const integers = await this.integers(panel, step), values = new Float32Array(integers.length);
    for (let k = 0; k < values.length; k++) values[k] = integers[k] / this.data.level;
    return values.buffer;
  }

  // C in units of 1 / level, some of them stored as the difference to a later step.
  async integers(panel, step) {
    const key = `C/${panel}/${step}`;
    if (this.kept[key]) return this.kept[key];
    const [text, later] = this.data.matrices[panel][step];
    const bytes = new Uint8Array(await inflated(text)), values = new Int16Array(bytes.length / 2);
    const from = later === null ? null : await this.integers(panel, later);
    for (let k = 0; k < values.length; k++) {
      const z = bytes[k] | (bytes[k + values.length] << 8);
      values[k] = ((z >> 1) ^ -(z & 1)) + (from ? from[k] : 0);
    }
    return (this.kept[key] = values);
  }

  async cell({ kind, panel, step, i, j }) {
    const samples = this.data.samples[panel], steps = Object.keys(samples).map(Number);
    const reply = { kind, panel, step, i, j, note: this.data.notes[panel] };
    if (!steps.length) return [reply, []];
    const at = steps.includes(step) ? step : Math.max(...steps), key = `${panel}/${at}`;
    const bytes = (this.kept[key] ??= await inflated(samples[at]));
    const { d } = this.state.panels[panel], n = (bytes.byteLength - 8 * d) / (2 * d);
    const scales = new Float32Array(bytes, 0, 2 * d), all = new Int8Array(bytes, 8 * d);
    const [x, y] = [i, d + j].map((row) => Float32Array.from(all.subarray(row * n, (row + 1) * n), (v) => v * scales[row]));
    return [{ ...reply, at, n, correlation: pearson(x, y), ...(await this.images(panel, n, x, y)) }, [x.buffer, y.buffer]];
  }

  // The images with the lowest and the highest values of x in view A and of y in view B.
  async images(panel, n, x, y) {
    const number = this.data.sprite[panel], url = this.data.sprites[number];
    if (!url) return {};
    const sprite = (this.kept[number] ??= Object.assign(new Image(), { src: url }));
    await sprite.decode();
    const { columns } = this.data, count = Math.min(4, Math.floor(n / 2));
    const width = sprite.naturalWidth / columns, height = sprite.naturalHeight / Math.ceil((2 * n) / columns);
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const cut = (row) => {
      const from = [(row % columns) * width, Math.floor(row / columns) * height];
      canvas.getContext("2d").drawImage(sprite, ...from, width, height, 0, 0, width, height);
      return canvas.toDataURL();
    };
    const ends = (values, first) => {
      const order = [...values.keys()].sort((a, b) => values[a] - values[b]);
      return [...order.slice(0, count), ...order.slice(n - count)].map((row) => cut(first + row));
    };
    return { images_a: ends(x, 0), images_b: ends(y, n) };
  }
}

// What the page holds, in words.
function held({ level, state, trained, samples, pairs }) {
  const steps = Math.max(...state.panels.map((panel) => panel.steps.length));
  const words = [`This page holds C rounded to multiples of 1/${level}; sums, histograms and spectra are of the exact C.`];
  if (steps < trained) words.push(`It holds ${steps} of ${trained} steps.`);
  const most = Math.max(...samples.map((one) => Object.keys(one).length));
  if (most) {
    words.push(`Samples and images are those of at most ${pairs} pairs${most === 1 && steps > 1 ? " at the newest step" : ""}.`);
    words.push("A sample is rounded to 1/127 of the largest value of its feature.");
  }
  return words.join(" ");
}

for (const script of document.querySelectorAll(".hsic-explorer > script[type='application/json']")) {
  const root = script.parentElement, model = new PageModel(JSON.parse(script.textContent));
  root.replaceChildren();
  new Explorer(model, root);
  root.append(element("div", { class: "help" }, held(model.data)));
}
