// A matrix on a canvas: block means of a window, with colors from a table.

const MAX_BLOCKS = 512; // on a side; in larger windows a pixel is the mean of a square block

// Block means of the window {row, column, size} of a d x d matrix whose features have this `order` (null: by index).
// A block on the diagonal shows the mean of its diagonal entries, because a plain mean would hide the diagonal.
function blockMeans(matrix, d, order, view) {
  const { row, column, size } = view;
  const width = Math.ceil(size / MAX_BLOCKS), side = Math.ceil(size / width);
  const length = (block) => Math.min(width, size - block * width);
  const columns = order ? order.subarray(column, column + size) : null;
  const values = new Float64Array(side * side);
  for (let r = 0; r < size; r++) {
    const line = (order ? order[row + r] : row + r) * d;
    const out = Math.floor(r / width) * side;
    for (let b = 0, c = 0; b < side; b++) {
      const end = Math.min(c + width, size);
      let sum = 0;
      if (columns) for (; c < end; c++) sum += matrix[line + columns[c]];
      else for (; c < end; c++) sum += matrix[line + column + c];
      values[out + b] += sum;
    }
  }
  for (let k = 0; k < values.length; k++) values[k] /= length(Math.floor(k / side)) * length(k % side);
  const sums = new Map();
  for (let p = Math.max(row, column); p < Math.min(row, column) + size; p++) {
    const block = Math.floor((p - row) / width) * side + Math.floor((p - column) / width);
    const feature = order ? order[p] : p;
    const [sum, count] = sums.get(block) ?? [0, 0];
    sums.set(block, [sum + matrix[feature * d + feature], count + 1]);
  }
  for (const [block, [sum, count]] of sums) values[block] = sum / count;
  return { values, side, width };
}

function drawMatrix(canvas, blocks, colors, limit) {
  canvas.width = canvas.height = blocks.side;
  const context = canvas.getContext("2d");
  const image = context.createImageData(blocks.side, blocks.side);
  for (let k = 0; k < blocks.values.length; k++) {
    const at = 3 * colorIndex(blocks.values[k], limit);
    image.data[4 * k] = colors[at];
    image.data[4 * k + 1] = colors[at + 1];
    image.data[4 * k + 2] = colors[at + 2];
    image.data[4 * k + 3] = 255;
  }
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
  const least = Math.min(4, d);
  const s = Math.round(Math.min(d, Math.max(least, size)));
  const inside = (start) => Math.round(Math.min(d - s, Math.max(0, start)));
  return { row: inside(row), column: inside(column), size: s };
}
