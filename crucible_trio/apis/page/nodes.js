// From the blocks of markdown.js to elements. Every text becomes a text node.

import { copyButton } from "./copy.js";
import { GrowingText } from "./markdown.js";

const INLINE = { strong: "strong", emphasis: "em", code: "code" };
const LEAST_PAUSE_MS = 30;

// Shows a text that grows in `parent`. Many small pieces are rendered together, and the longer that takes, the more.
export class GrowingMarkdown {
  #growing = new GrowingText();
  #waiting = "";
  #timer = 0;
  #pause = LEAST_PAUSE_MS;
  #parent;
  #changed;

  constructor(parent, changed) {
    this.#parent = parent;
    this.#changed = changed;
  }

  append(text) {
    this.#waiting += text;
    this.#timer ||= setTimeout(() => this.#render(), this.#pause);
  }

  // Shows all of it now.
  flush() {
    clearTimeout(this.#timer);
    if (this.#waiting) this.#render();
  }

  #render() {
    const began = performance.now();
    const [kept, blocks] = this.#growing.append(this.#waiting);
    [this.#waiting, this.#timer] = ["", 0];
    while (this.#parent.childNodes.length > kept) this.#parent.lastChild.remove();
    this.#parent.append(...blocks.map(block));
    this.#changed();
    this.#pause = Math.max(LEAST_PAUSE_MS, 4 * (performance.now() - began));
  }
}

function element(tag, ...children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

function block({ kind, ...rest }) {
  switch (kind) {
    case "heading": return element(`h${Math.min(rest.level + 2, 6)}`, ...inline(rest.inline)); // below the page's own
    case "paragraph": return element("p", ...inline(rest.inline));
    case "code": return codeBlock(rest.language, "Copy code", rest.text);
    case "list": return list(rest);
    case "quote": return element("blockquote", ...rest.blocks.map(block));
    case "rule": return element("hr");
  }
}

// A text to copy, below a bar with its name and the button for that.
export function codeBlock(name, copyWords, text) {
  const label = Object.assign(element("span", name), { className: "language" });
  const bar = Object.assign(element("div", label, copyButton(copyWords, () => text)), { className: "bar" });
  return Object.assign(element("div", bar, element("pre", element("code", text))), { className: "code" });
}

function list({ items }) {
  const isNumbered = items[0].number !== null;
  const entries = items.map(({ number, blocks }) => {
    const entry = element("li", ...blocks.map(block));
    if (isNumbered) entry.value = number; // as the model counts
    return entry;
  });
  return element(isNumbered ? "ol" : "ul", ...entries);
}

function inline(parts) {
  return parts.map((part) => {
    if (typeof part === "string") return part; // `append` makes it a text node
    if (part.kind === "link") {
      const target = Object.assign(element("span", ` (${part.target})`), { className: "target" });
      return element("span", ...inline(part.inline), target);
    }
    return part.kind === "code" ? element("code", part.text) : element(INLINE[part.kind], ...inline(part.inline));
  });
}
