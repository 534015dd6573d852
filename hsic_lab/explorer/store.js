// The answers of the kernel, or of the page, that the browser keeps, and the requests for them.

const MAX_BYTES = 2 ** 28; // answers kept in the browser: 16 matrices of 2048 x 2048

function bytesOf(buffer) {
  return new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
}

// Answers by request {kind, panel, step} or {kind, panel, step, i, j}. One request at a time, and one for a spectrum, which
// takes a second if there are many features.
class Store {
  constructor(model, changed) {
    this.model = model;
    this.changed = changed;
    this.answers = new Map();
    this.pending = {}; // by whether it is a spectrum
    this.asked = null; // when the kernel was asked first of what it has not answered; 0 if it cannot be asked
  }

  key({ kind, panel, step, i, j }) {
    return [kind, panel, step, i, j].join("/");
  }

  get(request) {
    return this.answers.get(this.key(request));
  }

  get bytes() {
    let sum = 0;
    for (const { arrays } of this.answers.values()) for (const array of arrays) sum += array.byteLength;
    return sum;
  }

  take(message, buffers) {
    const key = this.key(message);
    // The bytes are copied because an array of floats needs an aligned start.
    this.answers.set(key, { ...message, arrays: buffers.map((one) => new Float32Array(bytesOf(one).slice().buffer)) });
    for (const old of this.answers.keys()) {
      if (this.bytes <= MAX_BYTES) break;
      if (old !== key) this.answers.delete(old);
    }
  }

  receive(message, buffers) {
    this.take(message, buffers);
    const slow = message.kind === "spectrum";
    if (this.pending[slow] === this.key(message)) this.pending[slow] = null;
    this.asked = null;
    this.changed();
  }

  // Do what needs the kernel. It fails if the kernel was restarted, and does not know this widget.
  reach(act) {
    try {
      act();
    } catch (error) {
      console.error(error);
      this.pending = {};
      this.asked = 0;
    }
  }

  request(wanted) {
    for (const slow of [false, true]) {
      const next = wanted.find((one) => (one.kind === "spectrum") === slow && !this.get(one));
      if (!next || this.pending[slow]) continue;
      this.pending[slow] = this.key(next);
      this.asked ??= Date.now();
      this.reach(() => this.model.send(next));
    }
  }
}
