// Follows one stream over any number of connections, from its first record to its last.

import { api } from "./api.js";
import { Ledger } from "./ledger.js";
import { readFast, readSlowly } from "./readers.js";

const COME_BACK_MS = 2000; // long enough to see that the model goes on
const WORD_MS = 350; // for each word when the user reads slowly: slower than a small model on a busy machine
const BUSY = "The stream has as many readers as it may have; trying again…";

export class Reading {
  ledger = new Ledger();
  lastId = "";
  link = ""; // the state of the connection, unless it is open
  notice = "";
  #run;
  #on;
  #isSlow;
  #isSwitching = false; // between reading slowly and fast, which is no reconnect
  #reader = null;
  #comingBack = 0; // a timer

  // Calls on.record(record) for each new record, on.part(record) for a part of one, on.gone(response) if the server does
  // not have the stream or refuses it, on.marked(kind, seq) for the timeline, and on.changed() after any change.
  constructor(run, isSlow, on) {
    this.#run = run;
    this.#isSlow = isSlow;
    this.#on = on;
    this.#connect();
  }

  cut() {
    this.#comeBack("You cut the connection; back in two seconds…", "cut");
  }

  readSlowly(isSlow, isMarked = true) {
    if (isSlow === this.#isSlow) return;
    this.#isSlow = isSlow;
    if (isMarked) this.#mark(isSlow ? "slow" : "fast");
    this.#isSwitching = this.#reader !== null && !this.link;
    this.#connect();
  }

  close() {
    clearTimeout(this.#comingBack);
    this.#comingBack = 0;
    this.#reader?.close();
    this.#reader = null;
  }

  #connect() {
    this.close();
    const { events_url: url } = this.#run;
    this.#reader = this.#isSlow ? readSlowly(url, this.lastId, this, WORD_MS) : readFast(url, this.lastId, this);
    this.#on.changed();
  }

  #comeBack(why, kind) {
    this.close();
    if (!this.link) this.#mark(kind);
    this.link ||= why;
    this.#comingBack = setTimeout(() => this.#connect(), COME_BACK_MS);
    this.#on.changed();
  }

  #mark(kind) {
    this.#on.marked(kind, this.ledger.seq);
  }

  // Called by the readers

  opened() {
    if (!this.#isSwitching) {
      this.#run.opened += 1;
      if (this.#run.opened > 1 && this.ledger.seq) this.#mark("resumed");
    }
    this.#isSwitching = false;
    this.link = "";
    this.#on.changed();
  }

  lost() {
    if (!this.link) this.#mark("lost");
    this.link ||= "Connection lost; the browser reconnects by itself…";
    this.#on.changed();
  }

  // Neither reader reports the status that ended it, so ask for the stream.
  async over() {
    const reader = this.#reader;
    const response = await api("GET", `v1/streams/${this.#run.id}`).catch(() => null);
    if (this.#reader !== reader) return;
    const isThere = !response || response.ok || response.status >= 500;
    if (isThere) this.#comeBack("Connection lost; coming back…", "lost");
    else this.#on.gone(response);
  }

  part(record) {
    this.link = "";
    this.ledger.takePart();
    this.#on.part(record);
    this.#on.changed();
  }

  record(record, id) {
    if (record.type === "server.draining") this.notice = "The server is shutting down.";
    else if (record.type === "server.busy") this.link = BUSY;
    else if (this.ledger.take(record)) {
      [this.lastId, this.link] = [id, ""];
      this.#on.record(record);
    }
    this.#on.changed();
  }
}
