// The trace, the answer and the tool calls on the page. The model's text is only inserted as text nodes, never as markup.

const $ = (id) => document.getElementById(id);

let answer; // a text node
let segments; // text nodes by number
let current; // the segment that is being written, as its details element
let calls; // by index: the call's element, and the text node of its arguments

export function clear() {
  answer = document.createTextNode("");
  segments = new Map();
  current = null;
  calls = new Map();
  $("calls").replaceChildren();
  $("calls-section").hidden = true;
  $("answer").replaceChildren(answer);
  $("segments").replaceChildren();
  $("trace").open = true;
  delete $("trace").dataset.touched;
  $("reasoning").hidden = $("answer-section").hidden = true;
}

export function addToAnswer(text) {
  $("answer-section").hidden = false;
  answer.appendData(text);
}

export function beginCall(index, name) {
  $("calls-section").hidden = false;
  const [item, code, text] = [document.createElement("li"), document.createElement("code"), document.createTextNode("")];
  code.append(`${name} `, text);
  item.append(code);
  item.className = "open"; // until the model has ended it
  $("calls").append(item);
  calls.set(index, { item, text });
}

export function addToCall(index, text) {
  calls.get(index).text.appendData(text);
}

export function endCall(index) {
  calls.get(index).item.className = "";
}

export function addToTrace(text, segment) {
  if (!segments.has(segment)) segments.set(segment, addSegment(segment));
  segments.get(segment).appendData(text);
}

// The trace has ended, or pauses for a piece of the answer.
export function foldTrace() {
  foldCurrent();
  fold($("trace"));
}

function addSegment(number) {
  foldCurrent();
  if (untouched($("trace"))) $("trace").open = true;
  $("reasoning").hidden = false;
  const make = (tag, className = "") => Object.assign(document.createElement(tag), { className });
  const [item, details, summary, preview, text] = [
    make("li"), make("details"), make("summary"), make("span", "preview"), make("p", "text"),
  ];
  const node = document.createTextNode("");
  text.append(node);
  summary.append(`Step ${number + 1} `, preview);
  details.append(summary, text);
  details.open = true;
  current = details;
  item.append(details);
  $("segments").append(item);
  $("steps").textContent = segments.size ? `${segments.size + 1} steps` : "1 step";
  return node;
}

function foldCurrent() {
  if (current === null) return;
  const text = current.querySelector(".text").textContent;
  current.querySelector(".preview").textContent = text.replace(/^\s*\d{1,2}[.)]\s/, "").trim().slice(0, 120);
  fold(current);
}

function fold(details) {
  if (untouched(details)) details.open = false;
}

// The user has not opened or closed it. Once they have, the page leaves it alone.
const untouched = (details) => !("touched" in details.dataset);

$("reasoning").addEventListener("click", ({ target }) => {
  const summary = target.closest("summary");
  if (summary) summary.parentElement.dataset.touched = "";
});
