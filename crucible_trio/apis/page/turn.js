// One turn of the conversation on the page: the question, the trace, the answer and the tool calls. Texts of the model
// and of the user are only inserted as text nodes, never as markup.

import { copyButton } from "./copy.js";
import { GrowingMarkdown } from "./nodes.js";

export class Turn {
  answer = "";
  trace = []; // texts by segment
  #element;
  #markdown;
  #segments = []; // text nodes
  #calls = [];
  #began = null; // when the trace began
  #isTouched = false; // the user has opened or closed the trace, so the page leaves it alone

  // `thought`: how many milliseconds the trace took, where an earlier page has measured it.
  constructor(question, thought, changed) {
    const copy = document.getElementById("turn").content.cloneNode(true);
    this.#element = copy.firstElementChild;
    this.thought = thought;
    this.#find(".question").textContent = question;
    this.#markdown = new GrowingMarkdown(this.#find(".answer .text"), changed);
    this.#find(".reasoning summary").addEventListener("click", () => (this.#isTouched = true));
  }

  get element() {
    return this.#element;
  }

  #find(selector) {
    return this.#element.querySelector(selector);
  }

  addToTrace(text, segment) {
    this.#began ??= Date.now();
    this.#find(".reasoning").hidden = false;
    while (this.#segments.length <= segment) {
      const node = document.createTextNode("");
      const item = document.createElement("li");
      item.append(node);
      this.#find(".segments").append(item);
      this.#segments.push(node);
      this.trace.push("");
    }
    this.#segments[segment].appendData(text);
    this.trace[segment] += text;
    this.#find(".reasoning summary").textContent = "Thinking…";
  }

  // The trace has ended, or pauses. `isLive`: the page saw it come, and did not read it again from the log.
  traceDone(isLive) {
    if (isLive) this.thought ??= Date.now() - this.#began;
    const steps = this.trace.length === 1 ? "1 step" : `${this.trace.length} steps`;
    const seconds = Math.max(1, Math.round(this.thought / 1000));
    this.#find(".reasoning summary").textContent = this.thought === null ? `Thought in ${steps}` : `Thought for ${seconds} s`;
  }

  addToAnswer(text) {
    this.#foldTrace();
    this.#find(".answer").hidden = false;
    this.answer += text;
    this.#markdown.append(text);
  }

  beginCall(index, name) {
    this.#foldTrace();
    this.#find(".calls").hidden = false;
    const item = document.getElementById("call").content.cloneNode(true).firstElementChild;
    item.querySelector(".name").textContent = name;
    item.querySelector(".state").textContent = "is being written…";
    this.#find(".calls ol").append(item);
    this.#calls[index] = item;
  }

  addToCall(index, text) {
    this.#calls[index].querySelector(".arguments").append(text);
  }

  endCall(index) {
    this.#calls[index].classList.add("whole");
    this.#calls[index].querySelector(".state").textContent = "complete";
  }

  // All of a turn that has ended, from its stream's snapshot.
  fill({ trace, output, refusal, tool_calls: calls }, words) {
    trace.forEach((text, segment) => this.addToTrace(text, segment));
    if (trace.length) this.traceDone(false);
    if (output || refusal) this.addToAnswer(output + (refusal ?? ""));
    for (const { index, name, arguments: text, complete } of calls) {
      this.beginCall(index, name);
      this.addToCall(index, text);
      if (complete) this.endCall(index);
    }
    this.end(words);
  }

  // The stream has ended. If it ended in the trace, the trace stays open: the user may be reading it.
  end(words) {
    this.#markdown.flush();
    for (const call of this.#calls) {
      if (!call.classList.contains("whole")) call.querySelector(".state").textContent = "not whole: do not run it";
    }
    this.#find(".end").append(words, " ");
    if (this.answer) this.#find(".end").append(copyButton("Copy answer", () => this.answer));
  }

  #foldTrace() {
    if (!this.#isTouched) this.#find(".reasoning details").open = false;
  }
}
