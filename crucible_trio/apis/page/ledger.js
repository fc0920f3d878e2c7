// Checks the numbers of the records: each must come exactly once, in order. And counts the tokens that were read.

// Records that are no piece of the model's output.
const NO_PIECE = /^(stream\.(created|completed|incomplete|failed|cancelled)|reasoning\.done)$/;

export class Ledger {
  seq = 0; // the last record
  holes = []; // numbers that were left out
  repeats = []; // numbers that came again
  #pieces = [0]; // by record: how many pieces the records up to it hold, as far as the page can see
  #unseen = 0; // pieces beyond that
  #parts = 0; // words of the next record that have been read

  // Whether the record is new.
  take({ seq, type }) {
    if (seq <= this.seq) {
      this.repeats.push(seq);
      return false;
    }
    const before = this.#pieces.at(-1);
    while (this.seq + 1 < seq) {
      this.seq += 1;
      this.holes.push(this.seq);
      this.#pieces.push(before);
    }
    this.seq = seq;
    this.#pieces.push(before + (NO_PIECE.test(type) ? 0 : 1 + this.#parts));
    this.#parts = 0;
    return true;
  }

  // A word of the next record has been read. It counts as one piece until the server says how many there are.
  takePart() {
    this.#parts += 1;
  }

  // The server says that the records up to `seq` hold this many pieces. Records of a slow reader hold several.
  learn(seq, pieces) {
    if (seq <= this.seq) this.#unseen = pieces - this.#pieces[seq];
  }

  get pieces() {
    return this.#pieces.at(-1) + this.#unseen + this.#parts;
  }

  get exact() {
    return this.holes.length + this.repeats.length === 0;
  }
}
