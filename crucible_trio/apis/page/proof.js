// The panel beside the conversation: what the page has checked itself, and what the server says about the model.

import { get } from "./api.js";
import { draw } from "./chart.js";
import { addMark, addSample, MARKS } from "./timeline.js";
import { activityWords, verdict } from "./words.js";

const POLL_MS = 400;

const $ = (id) => document.getElementById(id);

export class Proof {
  #run;
  #ledger;
  #progress = { activity: "", pieces: 0, buffered: 0 };
  #timer = 0;
  #isWhole = false;
  #wasOver; // before this page read it, so that its timeline is complete
  #status = "";
  #isSame = null;
  #end = null;

  constructor(run, ledger) {
    this.#run = run;
    this.#wasOver = run.isOver;
    this.#ledger = ledger;
    this.#poll();
  }

  // The stream has ended with this record. `text`: what the page has read, as { answer, trace }.
  async finish(record, text) {
    clearTimeout(this.#timer);
    this.#isWhole = true;
    this.#end = record;
    this.#status = record.type.replace("stream.", "");
    await this.#ask((snapshot) => {
      if (snapshot.refusal !== null) return; // the page shows it between the parts of the answer
      this.#isSame = snapshot.output === text.answer && JSON.stringify(snapshot.trace) === JSON.stringify(text.trace);
    });
  }

  close() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  sample() {
    if (this.#wasOver) return;
    const { pieces, activity } = this.#progress;
    addSample(this.#run.timeline, Math.max(pieces, this.#ledger.pieces), this.#ledger.pieces, activity);
  }

  // Asks again after a pause that is long beside the time that the answer took.
  async #poll() {
    const began = performance.now();
    await this.#ask();
    if (this.#timer === null || this.#isWhole) return;
    this.#timer = setTimeout(() => this.#poll(), Math.max(POLL_MS, 10 * (performance.now() - began)));
  }

  async #ask(then) {
    const snapshot = await get(`v1/streams/${this.#run.id}`);
    if (!snapshot || this.#timer === null || (this.#isWhole && !then)) return;
    this.#status = snapshot.status;
    if (snapshot.progress) {
      const { activity, pieces, buffered } = (this.#progress = snapshot.progress);
      this.#ledger.learn(snapshot.last_seq, pieces - buffered);
      if (activity === "waiting" && !this.#hasWaited()) addMark(this.#run.timeline, "waits", this.#ledger.seq);
    }
    then?.(snapshot);
    this.sample();
    this.draw();
  }

  // Since the user last began to read slowly. Later waits show in the chart alone.
  #hasWaited() {
    const kinds = this.#run.timeline.marks.map(({ kind }) => kind);
    // Not since "fast": a snapshot from before that switch may come after it.
    return kinds.lastIndexOf("waits") > kinds.lastIndexOf("slow");
  }

  draw() {
    const { timeline } = this.#run;
    draw($("chart"), timeline);
    const items = timeline.marks.map(({ kind, seq, at }) => {
      const item = document.createElement("li");
      item.className = kind;
      item.textContent = `${(at / 1000).toFixed(1)} s: ${MARKS[kind][1](seq)}`;
      return item;
    });
    $("marks").replaceChildren(...items);
    this.show();
  }

  show() {
    const ledger = this.#ledger;
    const { pieces, buffered, activity } = this.#progress;
    $("verdict").textContent = verdict(ledger, this.#isWhole, this.#isSame);
    $("verdict").className = ledger.exact && this.#isSame !== false ? "good" : "bad";
    $("activity").textContent = activityWords(this.#isWhole ? "ended" : activity, this.#status);
    $("activity").className = this.#isWhole ? "ended" : activity;
    const [made, waiting] = [Math.max(pieces, ledger.pieces), this.#isWhole ? 0 : buffered];
    $("made").textContent = made;
    $("read").textContent = ledger.pieces;
    $("sent").textContent = Math.max(0, made - waiting - ledger.pieces); // in the log, and perhaps sent
    $("buffered").textContent = waiting;
    $("reconnects").textContent = Math.max(0, this.#run.opened - 1);
    $("rate").textContent = this.#rate();
  }

  // The terminal record may have the model's own count. Without it a piece counts as a token.
  #rate() {
    const { timings, usage } = this.#end ?? {};
    const known = usage?.output_tokens ?? null;
    const ms = timings ? timings.total_ms - timings.first_token_ms : Date.now() - this.#run.firstTokenAt;
    const count = known ?? this.#ledger.pieces;
    if (count < 2 || !(ms > 500) || this.#run.firstTokenAt === null) return "–";
    const rate = ((count - 1) * 1000) / ms;
    return `${known === null ? "about " : ""}${rate.toFixed(rate < 10 ? 1 : 0)}`;
  }
}

export function clearProof() {
  for (const id of ["verdict", "activity"]) $(id).textContent = "";
  for (const id of ["made", "read", "sent", "buffered", "reconnects"]) $(id).textContent = "0";
  $("rate").textContent = "–";
  $("marks").replaceChildren();
  draw($("chart"), { samples: [], marks: [] });
}
