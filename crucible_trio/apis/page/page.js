// The demo page. It uses the native API like any client: fetch starts and stops streams, and EventSource reads them.

import { readFast, readSlowly } from "./readers.js";
import * as view from "./view.js";
import { ending, refusal } from "./words.js";

const COME_BACK_MS = 1000; // the server gives EventSource the same time in its `retry:` line
const SLOW_MS = 150; // the pause after each event when the user reads slowly
const BUSY = "The stream has as many readers as it may have; trying again…";

const $ = (id) => document.getElementById(id);

// Kept over a reload: { id, events_url, cancel_url, question, mode, opened, firstTokenAt }.
let run = JSON.parse(sessionStorage.getItem("run"));

let phase = "idle"; // "asking", "running"
let slow = false;
let reader = null;
let comingBack = 0; // a timer
// The last record that was read, its event id, the number of deltas so far, and the terminal record.
let seq, lastId, tokens, end;

// The status line shows `link` (the state of the connection) if it is set, otherwise `stage` (the state of the
// stream). `notice` follows either.
let stage = "Ready.";
let link = "";
let notice = "";

function show() {
  const words = [link || stage, notice].filter(Boolean).join(" ");
  if ($("status").textContent !== words) $("status").textContent = words; // it is read aloud on every change
  $("numbers").textContent = run && phase !== "asking" ? numbers() : "";
  $("ask").setAttribute("aria-disabled", phase !== "idle");
  $("cut").setAttribute("aria-disabled", phase !== "running");
  $("stop").setAttribute("aria-disabled", phase !== "running");
  $("slow").setAttribute("aria-pressed", slow);
}

function numbers() {
  const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const parts = [count(seq, "event"), count(Math.max(0, run.opened - 1), "reconnect")];
  // A delta is about one token while the page keeps up. When it lags, deltas are merged. The terminal record may have
  // the model's own count.
  const known = end?.usage.output_tokens ?? null;
  const ms = end ? end.timings.total_ms - end.timings.first_token_ms : Date.now() - run.firstTokenAt;
  const rate = (((known ?? tokens) - 1) * 1000) / ms;
  const digits = rate < 10 ? 1 : 0;
  if (tokens > 1 && ms > 500) parts.push(`${known === null ? "about " : ""}${rate.toFixed(digits)}\u00a0tokens/s`);
  return parts.join(" · ");
}

function keep() {
  sessionStorage.setItem("run", JSON.stringify(run));
}

// Start and stop

function api(method, url, body) {
  const headers = { Accept: "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  return fetch(url, { method, headers, body: body && JSON.stringify(body) });
}

async function ask() {
  if (phase !== "idle") return;
  if (!$("key-field").hidden) sessionStorage.setItem("key", $("key").value);
  const question = $("question").value;
  const mode = $("form").elements.mode.value;
  [phase, stage, link, notice] = ["asking", "Asking…", "", ""];
  show();
  try {
    const response = await api("POST", "v1/streams", { input: question, mode });
    if (response.ok) return begin({ ...(await response.json()), question, mode, opened: 0, firstTokenAt: null });
    stage = await refused(response);
  } catch {
    stage = "The server cannot be reached.";
  }
  phase = "idle";
  show();
}

async function refused(response) {
  if (response.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  return refusal(response, Boolean(sessionStorage.getItem("key")));
}

async function stop() {
  if (phase !== "running") return;
  stage = "Stopping…";
  show();
  const response = await api("POST", run.cancel_url).catch(() => null);
  if (response?.ok || phase !== "running") return; // the terminal record comes over the stream, like every other record
  stage = response ? await refused(response) : "The server cannot be reached, and was not told to stop.";
  show();
}

// Read

function begin(next) {
  run = next;
  [phase, stage] = ["running", "Waiting for the model…"];
  [seq, lastId, tokens, end] = [0, "", 0, null];
  keep();
  view.clear();
  connect();
}

function connect() {
  disconnect();
  const url = new URL(run.events_url, location.href);
  if (lastId) url.searchParams.set("last_event_id", lastId);
  reader = slow ? readSlowly(url, on, SLOW_MS) : readFast(url, on);
  show();
}

function disconnect() {
  clearTimeout(comingBack);
  reader?.close();
  reader = null;
}

function comeBack(why) {
  disconnect();
  link ||= why;
  comingBack = setTimeout(connect, COME_BACK_MS);
  show();
}

const on = {
  opened() {
    run.opened += 1;
    link = "";
    keep();
    show();
  },

  lost() {
    link ||= "Connection lost; the browser reconnects by itself…";
    show();
  },

  // Neither reader reports the status that ended it, so get the stream's snapshot.
  async over() {
    const asked = run;
    const response = await api("GET", `v1/streams/${run.id}`).catch(() => null);
    if (run !== asked || phase !== "running") return;
    if (!response || response.ok || response.status >= 500) return comeBack("Connection lost; coming back…");
    if (response.status === 401) return finish(await refused(response));
    sessionStorage.removeItem("run"); // so that a reload does not try again
    finish("The server does not have this stream any more.");
  },

  record(record, id) {
    if (record.type === "server.draining") notice = "The server is shutting down.";
    if (record.type === "server.busy") link = BUSY;
    if (record.seq > seq) { // control events have no `seq`
      [seq, lastId, link] = [record.seq, id, ""];
      take(record);
    }
    show();
  },
};

function take(record) {
  switch (record.type) {
    case "reasoning.delta":
      view.addToTrace(record.delta, record.segment);
      return countToken("Reasoning…");
    case "reasoning.done":
      return view.foldTrace();
    case "output.delta":
    case "refusal.delta":
      view.addToAnswer(record.delta);
      return countToken("Answering…");
    case "tool_call.started":
      return view.beginCall(record.index, record.name);
    case "tool_call.delta":
      view.addToCall(record.index, record.delta);
      return countToken("Calling a tool…");
    case "tool_call.done":
      return view.endCall(record.index);
    case "stream.completed":
    case "stream.incomplete":
    case "stream.failed":
    case "stream.cancelled":
      return finish(ending(record), record);
  }
}

function countToken(words) {
  tokens += 1;
  if (stage !== "Stopping…") stage = words;
  if (run.firstTokenAt !== null) return;
  run.firstTokenAt = Date.now();
  keep();
}

function finish(words, terminal = null) {
  disconnect();
  [phase, stage, link, end] = ["idle", words, "", terminal];
  show();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("form").requestSubmit();
});
$("stop").addEventListener("click", stop);
$("cut").addEventListener("click", () => {
  if (phase === "running") comeBack("You cut the connection; back in a second…");
});
$("slow").addEventListener("click", () => {
  slow = !slow;
  if (phase === "running") connect();
  else show();
});

if (run) {
  $("question").value = run.question;
  $("form").elements.mode.value = run.mode;
  // After a reload the text and the offset are gone, so the stream is read again from record 1. The records that exist
  // already arrive together.
  begin(run);
} else {
  show();
}
