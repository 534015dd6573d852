// A matrix on a canvas: block means of a window, with colors from a table.

const MAX_BLOCKS = 512; // on a side; in larger windows a pixel is the mean of a square block

// Block means of the window {row, column, size} of a d x d matrix whose features have this `order`.
// A block on the diagonal shows the mean of its diagonal entries, because a plain mean would hide the diagonal.
function blockMeans(matrix, d, order, view) {
  const { row, column, size } = view;
  const width = Math.ceil(size / MAX_BLOCKS), side = Math.ceil(size / width);
  const length = (block) => Math.min(width, size - block * width);
  const columns = order.subarray(column, column + size), lengths = Float64Array.from({ length: side }, (_, b) => length(b));
  const values = new Float64Array(side * side), sums = new Float64Array(d);
  for (let a = 0; a < side; a++) {
    // The rows of a block are added in the order of the memory. So only their sum is read in the order of the features.
    const first = row + a * width, out = a * side;
    sums.set(matrix.subarray(order[first] * d, (order[first] + 1) * d));
    for (let r = first + 1; r < first + lengths[a]; r++) {
      const line = order[r] * d;
      for (let c = 0; c < d; c++) sums[c] += matrix[line + c];
    }
    for (let b = 0, c = 0; b < side; b++) {
      const end = c + lengths[b];
      let sum = 0;
      for (; c < end; c++) sum += sums[columns[c]];
      values[out + b] = sum / (lengths[a] * lengths[b]);
    }
  }
  const own = new Map();
  for (let p = Math.max(row, column); p < Math.min(row, column) + size; p++) {
    const block = Math.floor((p - row) / width) * side + Math.floor((p - column) / width);
    const [sum, count] = own.get(block) ?? [0, 0];
    own.set(block, [sum + matrix[order[p] * d + order[p]], count + 1]);
  }
  for (const [block, [sum, count]] of own) values[block] = sum / count;
  return { values, side };
}

function drawMatrix(canvas, { values, side }, colors, limit) {
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), image = context.createImageData(side, side);
  const pixels = new Uint32Array(image.data.buffer), table = new Uint8Array(4 * 256);
  for (let k = 0; k < 256; k++) table.set([...colors.subarray(3 * k, 3 * k + 3), 255], 4 * k);
  const packed = new Uint32Array(table.buffer);
  for (let k = 0; k < values.length; k++) pixels[k] = packed[colorIndex(values[k], limit)];
  context.putImageData(image, 0, 0);
}

// The same rule as a matplotlib color map of 256 colors with Normalize(-limit, limit).
function colorIndex(value, limit) {
  return Math.min(255, Math.max(0, Math.floor(((value / limit + 1) / 2) * 256)));
}

function drawColorBar(canvas, colors) {
  canvas.width = 1;
  canvas.height = 256;
  const context = canvas.getContext("2d");
  for (let k = 0; k < 256; k++) {
    context.fillStyle = `rgb(${colors.slice(3 * k, 3 * k + 3).join(",")})`;
    context.fillRect(0, 255 - k, 1, 1);
  }
}

// The square window of at least 4 features at this row and column, moved inside a matrix of size d.
function fitted(row, column, size, d) {
  const s = Math.round(Math.min(d, Math.max(4, size)));
  const inside = (start) => Math.round(Math.min(d - s, Math.max(0, start)));
  return { row: inside(row), column: inside(column), size: s };
}
