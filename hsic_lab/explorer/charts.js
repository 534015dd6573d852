// Small SVG charts in the colors and the font of the page.

const TICKS = { x: 4, y: 3 }; // approximate maxima
const SIZE = { height: 155, right: 16, top: 8, bottom: 41 };

const maker = (namespace) => (name, attributes = {}, ...children) => {
  const node = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const shape = maker("http://www.w3.org/2000/svg"), element = maker("http://www.w3.org/1999/xhtml");

// A color of the palette that can be seen in light and in dark pages.
function ink(color) {
  return `color-mix(in srgb, ${color} 72%, currentColor)`;
}

// A frame with ticks; `draw(x, y)` adds the content, with the scales x and y.
function chart(svg, { x, y, xlabel, ylabel, description, log = false, size = SIZE, most = TICKS }, draw) {
  const { height, right, top, bottom } = size, width = svg.clientWidth || 280; // 0 while it is not in the page
  const words = (log ? decades(y[0], y[1]) : ticks(y[0], y[1], most.y)).map((value) => [value, (log ? power : number)(value)]);
  const left = 26 + 7 * Math.max(...words.map(([, text]) => text.length)); // room for the ticks beside the label
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", description);
  svg.replaceChildren();
  const level = (value) => (log ? Math.log10(Math.max(value, y[0])) : value);
  const [low, high] = [level(y[0]), level(y[1])];
  const toX = (value) => left + ((value - x[0]) / (x[1] - x[0])) * (width - left - right);
  const toY = (value) => height - bottom - ((level(value) - low) / (high - low)) * (height - top - bottom);
  draw(toX, toY);
  svg.append(shape("path", {
    d: `M${left},${top}V${height - bottom}H${width - right}`, class: "axis", fill: "none",
  }));
  for (const value of ticks(x[0], x[1], Math.min(most.x, Math.max(2, (width - left) / 55)))) {
    svg.append(shape("text", { x: toX(value), y: height - bottom + 19, "text-anchor": "middle" }, number(value)));
  }
  for (const [value, text] of words) {
    svg.append(shape("text", { x: left - 5, y: toY(value) + 4, "text-anchor": "end" }, text));
  }
  const middle = (top + height - bottom) / 2;
  svg.append(shape("text", { x: width / 2 + 10, y: height - 5, "text-anchor": "middle" }, xlabel));
  svg.append(shape("text", {
    x: 11, y: middle, transform: `rotate(-90 11 ${middle})`, "text-anchor": "middle",
  }, ylabel));
}

function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * (1 - 1e-9));
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) values.push(k * step);
  return values;
}

// Powers of ten; every second one if there are many.
function decades(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const values = [];
  for (let k = to; k >= from; k -= to - from > 3 ? 2 : 1) values.push(10 ** k);
  return values;
}

function power(value) {
  const digits = String(Math.round(Math.log10(value)));
  return value === 1 ? "1" : `10${[...digits].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("")}`;
}

function number(value) {
  return String(Number(value.toPrecision(3))).replace("-", "\u2212");
}

function signed(value, digits) {
  const words = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(words) > 0 ? "\u2212" : "") + words; // no minus zero
}

// Counts over [-1, 1] as shares in coarser bins over [low, high]; values outside are counted in the outermost bin.
function shares(counts, low, high, bins) {
  const total = counts.reduce((a, b) => a + b, 0), out = new Array(bins).fill(0);
  counts.forEach((count, k) => {
    const value = -1 + (2 * (k + 0.5)) / counts.length;
    out[Math.min(bins - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * bins)))] += count / total;
  });
  return out;
}

// `shown`: [{color, name, counts}]; `band` is shaded around 0, with its ends in front; `lines` are dashed.
function histogram(svg, shown, { low, high, bins, band, lines = [], xlabel, description }) {
  const all = shown.map((one) => shares(one.counts, low, high, bins));
  const most = Math.max(...all.flat(), 1e-9);
  chart(svg, { x: [low, high], y: [0, most * 1.05], xlabel, ylabel: "share", description }, (toX, toY) => {
    const ends = band ? [toX(Math.max(low, -band)), toX(Math.min(high, band))] : [];
    if (band) svg.append(shape("rect", { x: ends[0], width: ends[1] - ends[0], y: 8, height: toY(0) - 8, class: "expected" }));
    all.forEach((values, k) => {
      let path = `M${toX(low)},${toY(0)}`;
      values.forEach((value, b) => {
        path += `V${toY(value)}H${toX(low + ((b + 1) * (high - low)) / bins)}`;
      });
      svg.append(shape("path", {
        d: `${path}V${toY(0)}Z`, style: `fill: ${ink(shown[k].color)}; stroke: ${ink(shown[k].color)}`, "fill-opacity": 0.35,
      }));
    });
    for (const end of ends) svg.append(shape("line", { x1: end, x2: end, y1: 8, y2: toY(0), class: "end" }));
    for (const value of lines) {
      svg.append(shape("line", { x1: toX(value), x2: toX(value), y1: 8, y2: toY(0), class: "reference" }));
    }
  });
}

function spectrumChart(svg, shown, description) {
  const longest = Math.max(...shown.map((one) => one.values.length));
  const lines = shown.map((one) => one.values.map((value) => value / (one.values[0] || 1)));
  const least = Math.min(0.1, Math.max(1e-6, Math.min(...lines.map((values) => values.at(-1)))));
  chart(svg, { x: [1, longest], y: [least, 1], log: true, xlabel: "index", ylabel: "σ / largest", description }, (toX, toY) => {
    lines.forEach((values, k) => {
      const path = values.map((value, index) => `${index ? "L" : "M"}${toX(index + 1)},${toY(value)}`).join("");
      svg.append(shape("path", { d: path, style: `fill: none; stroke: ${ink(shown[k].color)}`, "stroke-width": 1.8 }));
    });
  });
}

function scatter(svg, behind, [x, y], color) {
  const far = Math.max(2, ...x.map(Math.abs), ...y.map(Math.abs)) * 1.05;
  const size = { height: 280, right: 12, top: 10, bottom: 42 };
  const description = `Scatter of ${x.length} samples, correlation ${signed(behind.correlation, 3)}`;
  const labels = { xlabel: behind.words[0], ylabel: behind.words[1] };
  const frame = { x: [-far, far], y: [-far, far], size, description, most: { x: 6, y: 6 }, ...labels };
  chart(svg, frame, (toX, toY) => {
    const cross = `M${toX(-far)},${toY(0)}H${toX(far)}M${toX(0)},${toY(-far)}V${toY(far)}`;
    svg.append(shape("path", { d: cross, class: "reference" }));
    x.forEach((value, k) => {
      svg.append(shape("circle", { cx: toX(value), cy: toY(y[k]), r: 2.2, style: `fill: ${ink(color)}`, "fill-opacity": 0.55 }));
    });
  });
}
