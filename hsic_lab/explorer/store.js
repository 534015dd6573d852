// The matrices that the browser keeps, and its requests to the kernel.

const MAX_BYTES = 2 ** 28; // matrices kept in the browser: 16 of 2048 x 2048

function bytesOf(buffer) {
  return new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
}

// Answers of the kernel by panel and step, and requests: one at a time, those for shown panels first.
class Store {
  constructor(model, changed) {
    this.model = model;
    this.changed = changed;
    this.matrices = new Map();
    this.spectra = new Map();
    this.pending = null;
  }

  key(panel, step) {
    return `${panel}/${step}`;
  }

  take(message, buffer) {
    const key = this.key(message.panel, message.step);
    const bytes = bytesOf(buffer);
    // The bytes are copied because an array of floats needs an aligned start.
    this.matrices.set(key, { ...message, values: new Float32Array(bytes.slice().buffer) });
    let kept = 0;
    for (const [old, one] of [...this.matrices].reverse()) {
      kept += one.values.byteLength;
      if (kept > MAX_BYTES && old !== key) this.matrices.delete(old);
    }
  }

  receive(message, buffers) {
    if (message.kind === "matrix") this.take(message, buffers[0]);
    else this.spectra.set(this.key(message.panel, message.step), message.values);
    if (this.pending === `${message.kind} ${this.key(message.panel, message.step)}`) this.pending = null;
    this.changed();
  }

  // `shown` and `others` are [panel, step]. Spectra are requested only while the slider is still.
  request(shown, others, still) {
    if (this.pending) return;
    const lacks = (map) => ([panel, step]) => !map.has(this.key(panel, step));
    let next = shown.find(lacks(this.matrices)), kind = "matrix";
    if (!next && still) {
      next = shown.find(lacks(this.spectra));
      kind = "spectrum";
    }
    if (!next && still) {
      let bytes = 0;
      for (const one of this.matrices.values()) bytes += one.values.byteLength;
      next = others.find(([panel, step]) => {
        const d = this.model.get("panels")[panel].d;
        return !this.matrices.has(this.key(panel, step)) && bytes + 4 * d * d < MAX_BYTES;
      });
      kind = "matrix";
    }
    if (!next) return;
    const [panel, step] = next;
    this.pending = `${kind} ${this.key(panel, step)}`;
    this.model.send({ kind, panel, step });
  }
}
