// The demo page. It uses the native API like any client: fetch starts and stops streams, and EventSource reads them.

import { api, get, hasKey, keepKey } from "./api.js";
import { fill, remember } from "./history.js";
import { showIn } from "./program_list.js";
import { clearProof, Proof } from "./proof.js";
import { Reading } from "./reading.js";
import { follow } from "./scroll.js";
import { addMark, newTimeline } from "./timeline.js";
import { Turn } from "./turn.js";
import { ending, refusal, UNREACHABLE } from "./words.js";

const GONE = "The server does not have this stream any more.";

const $ = (id) => document.getElementById(id);

// The conversation: the runs of its streams, which the tab keeps over a reload, and their turns on the page. A run is
// { id, events_url, cancel_url, question, mode, opened, firstTokenAt, thought, isOver, timeline }.
let runs = [];
let turns = [];
let chat = {}; // another object for each conversation, so that an answer that comes too late is noticed
// Of the last run: how it is read, and what is proved about it.
let reading = null;
let proof = null;

let phase = "idle"; // "asking", "running"
let isSlow = false;
let isReplay = false; // the page reads a stream that it, or another page, has read before
let stage = "Ready.";
let unstopped = ""; // why the server did not take the last Stop
let programFacts = ""; // what the programs were shown for

const toEnd = follow($("conversation"), $("newest"));

function show() {
  const words = [reading?.link || stage, unstopped, reading?.notice].filter(Boolean).join(" ");
  if ($("status").textContent !== words) $("status").textContent = words; // it is read aloud on every change
  $("ask").setAttribute("aria-disabled", phase !== "idle");
  $("cut").setAttribute("aria-disabled", phase !== "running");
  $("stop").setAttribute("aria-disabled", phase !== "running");
  $("slow").setAttribute("aria-pressed", isSlow);
  $("welcome").hidden = runs.length > 0;
  proof?.show();
  refreshPrograms();
}

function keep() {
  if (!reading) return; // while the conversation is being restored, the list that the tab has is the whole one
  runs.at(-1).timeline.seq = reading.ledger.seq;
  sessionStorage.setItem("runs", JSON.stringify(runs));
}

// Start and stop

async function ask() {
  if (phase !== "idle") return;
  if (!$("question").value.trim()) {
    $("question").value = "";
    $("question").reportValidity(); // the browser says that a question is required
    return;
  }
  isReplay = false;
  const asked = chat;
  if (!$("key-field").hidden) keepKey($("key").value);
  const question = $("question").value;
  const mode = $("form").elements.mode.value;
  const model = $("model").value;
  [phase, stage] = ["asking", "Asking…"];
  if (reading) reading.notice = "";
  show();
  try {
    const response = await api("POST", "v1/streams", { input: conversation(question), mode, ...(model && { model }) });
    if (response.ok) {
      const run = { ...(await response.json()), question, mode, opened: 0, firstTokenAt: null, thought: null, isOver: false };
      run.timeline = newTimeline();
      remember(run.id);
      if (chat !== asked) return; // the user has begun another chat, and finds the stream in the history
      $("question").value = "";
      if (!$("model").options.length) offerModels();
      return begin(run);
    }
    const words = await refused(response);
    if (chat === asked) [phase, stage] = ["idle", words];
  } catch {
    if (chat === asked) [phase, stage] = ["idle", UNREACHABLE];
  }
  show();
}

// The earlier turns, then the question. A turn without an answer is left out.
function conversation(question) {
  const earlier = runs.flatMap((run, index) =>
    run.question && turns[index].answer
      ? [{ role: "user", content: run.question }, { role: "assistant", content: turns[index].answer }]
      : []);
  return earlier.length ? [...earlier, { role: "user", content: question }] : question;
}

async function refused(response) {
  if (response.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  return refusal(response, hasKey());
}

async function stop() {
  if (phase !== "running" || stage === "Stopping…") return;
  const [run, asked, before] = [runs.at(-1), reading, stage];
  [stage, unstopped] = ["Stopping…", ""];
  mark("stop", reading.ledger.seq);
  show();
  const response = await api("POST", run.cancel_url).catch(() => null);
  if (reading !== asked || phase !== "running") return;
  if (response?.ok) return reading.readSlowly(false, false); // the terminal record comes like every other record
  const words = response ? await refused(response) : "The server cannot be reached, and was not told to stop.";
  if (reading !== asked || phase !== "running") return;
  [stage, unstopped] = [before, words]; // beside the state of the connection, which may be lost too
  show();
}

// The lines of the chart get a corner at each mark.
function mark(kind, seq) {
  proof?.sample();
  addMark(runs.at(-1).timeline, kind, seq);
  proof?.draw();
}

// Read

function begin(run) {
  [phase, stage, unstopped] = ["running", "Waiting for the model…", ""];
  proof?.close();
  proof = null;
  for (const earlier of runs) earlier.timeline.samples = []; // not shown any more, and the tab has little space
  runs.push(run);
  addTurn(run);
  if (isSlow && !run.isOver) addMark(run.timeline, "slow", 0);
  toEnd(true);
  let asked = null;
  const ifCurrent = (call) => (...values) => asked === reading && call(...values);
  reading = asked = new Reading(run, isSlow, {
    record: (record) => take(record),
    part: (record) => addText(record),
    gone: ifCurrent(gone),
    marked: mark,
    changed: show,
  });
  proof = new Proof(run, reading.ledger);
  keep();
  show();
}

function addTurn(run) {
  const turn = new Turn(run.question ?? "This browser keeps the ids of its streams, and not their questions.", run.thought, toEnd);
  turns.push(turn);
  $("turns").append(turn.element);
  return turn;
}

async function gone(response) {
  if (response.status === 401) return finish(await refused(response));
  runs.at(-1).isOver = true;
  finish(GONE);
}

function take(record) {
  const turn = turns.at(-1);
  switch (record.type) {
    case "reasoning.delta":
    case "output.delta":
    case "refusal.delta":
    case "tool_call.delta":
      return addText(record);
    case "reasoning.done":
      turn.traceDone(!isReplay);
      runs.at(-1).thought = turn.thought;
      return;
    case "tool_call.started":
      return turn.beginCall(record.index, record.name);
    case "tool_call.done":
      return turn.endCall(record.index);
    case "stream.completed":
    case "stream.incomplete":
    case "stream.failed":
    case "stream.cancelled":
      return finish(ending(record), record);
  }
}

function addText({ type, delta, segment, index }) {
  const turn = turns.at(-1);
  if (type === "reasoning.delta") turn.addToTrace(delta, segment);
  else if (type === "tool_call.delta") turn.addToCall(index, delta);
  else turn.addToAnswer(delta);
  if (stage !== "Stopping…") {
    stage = { "reasoning.delta": "Reasoning…", "tool_call.delta": "Calling a tool…" }[type] ?? "Answering…";
  }
  toEnd();
  const run = runs.at(-1);
  if (run.firstTokenAt === null) run.firstTokenAt = Date.now();
}

function finish(words, terminal = null) {
  const run = runs.at(-1);
  reading.close();
  reading.link = "";
  [phase, stage, unstopped] = ["idle", words, ""];
  turns.at(-1).end(words);
  if (terminal) {
    if (!run.isOver) mark("end", terminal.seq);
    run.isOver = true;
    proof.finish(terminal, turns.at(-1)).then(keep);
  } else {
    proof.close();
  }
  keep();
  toEnd();
  show();
}

// Other conversations

function newChat() {
  reading?.close();
  proof?.close();
  [runs, turns, chat, reading, proof, phase, stage, isReplay] = [[], [], {}, null, null, "idle", "Ready.", false];
  unstopped = "";
  $("turns").replaceChildren();
  clearProof();
  sessionStorage.removeItem("runs");
  show();
}

// The stream's snapshot, or null and why there is none.
async function lookUp(id) {
  const response = await api("GET", `v1/streams/${id}`).catch(() => null);
  if (!response) return [null, UNREACHABLE];
  if (response.ok) return [await response.json(), ""];
  return [null, response.status === 404 ? GONE : await refused(response)];
}

// A stream of this browser's history. The text and the offset are gone, so it is read from record 1. The records that
// exist already arrive together.
async function open(id) {
  const [stream, why] = await lookUp(id);
  newChat();
  $("history").open = false;
  if (!stream) stage = why;
  else {
    isReplay = true;
    const { events_url: eventsUrl, cancel_url: cancelUrl, mode } = stream;
    const run = { id, events_url: eventsUrl, cancel_url: cancelUrl, question: null, mode, opened: 0, firstTokenAt: null };
    begin({ ...run, thought: null, isOver: stream.status !== "running", timeline: newTimeline() });
  }
  show();
}

// After a reload: the earlier turns as the server has them, and the last one is read again from record 1.
async function restore(kept) {
  const last = kept.pop();
  const restored = chat;
  isReplay = true;
  phase = "asking"; // until the earlier turns are there
  for (const run of kept) {
    const turn = addTurn(run);
    runs.push(run);
    const [snapshot, why] = await lookUp(run.id);
    if (chat !== restored) return;
    if (snapshot) turn.fill(snapshot, ending({ ...snapshot, type: `stream.${snapshot.status}` }));
    else turn.end(why);
  }
  $("form").elements.mode.value = last.mode;
  $("question").value = "";
  if (!last.isOver) addMark(last.timeline, "reload", last.timeline.seq);
  begin(last);
}

async function offerModels() {
  const models = ((await get("v1/models"))?.data ?? []).map(({ id }) => id);
  $("model").replaceChildren(...models.map((id) => Object.assign(document.createElement("option"), { textContent: id })));
  $("model").hidden = models.length === 0;
}

// The programs use the address, the question and the stream of the page.
function showPrograms() {
  showIn($("program-list"), {
    server: new URL(".", location.href).href.replace(/\/$/, ""),
    input: runs.at(-1)?.question || $("question").value || $("question").defaultValue,
    mode: $("form").elements.mode.value,
    model: $("model").value,
    lastId: reading?.lastId,
    hasKey: hasKey(),
  });
}

// Shows the programs again for another stream, its first record and its end. Not for each record: the user may be
// selecting their text.
function refreshPrograms() {
  const facts = [phase, runs.at(-1)?.id, Boolean(reading?.lastId)].join(" ");
  if (facts === programFacts) return;
  programFacts = facts;
  if ($("programs").open) showPrograms();
}

// The controls

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
  if (phase === "running") reading.cut();
});
$("slow").addEventListener("click", () => {
  isSlow = !isSlow;
  if (phase === "running") reading.readSlowly(isSlow);
  show();
});
$("new").addEventListener("click", () => {
  newChat();
  $("question").focus();
});
$("history").addEventListener("toggle", () => $("history").open && fill($("streams"), open));
addEventListener("keydown", ({ key }) => {
  if (key !== "Escape" || !$("history").open) return;
  if ($("history").contains(document.activeElement)) $("history").querySelector("summary").focus();
  $("history").open = false;
});
for (const kind of ["pointerdown", "focusin"]) {
  addEventListener(kind, ({ target }) => {
    if (!$("history").contains(target)) $("history").open = false;
  });
}
$("programs").addEventListener("toggle", () => $("programs").open && showPrograms());
addEventListener("pagehide", keep);

clearProof();
offerModels();
if (matchMedia("(min-width: 60rem)").matches) $("log").open = true;
const kept = JSON.parse(sessionStorage.getItem("runs") ?? "[]");
if (kept.length) restore(kept);
else show();
