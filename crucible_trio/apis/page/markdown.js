// From Markdown to blocks: plain objects without any DOM. A model's text often is not the Markdown that a parser sees in
// it, so no rule here hides text: only the marks themselves go, and HTML, images and entities stay as they are written.
//
// A block is { kind, ... }: heading (level, inline), paragraph (inline), code (language, text), list (items),
// quote (blocks), rule. An item is { number, blocks }, and its number is null in a list without numbers.
// Inline is a list of texts and of { kind, inline } or { kind, text }: strong, emphasis, code, and link (inline, target).

const MAX_DEPTH = 8; // lists and quotes inside each other, and marks inside each other. Deeper marks stay as text
const MAX_SPAN = 2000; // characters between two marks. It bounds the time that a hostile text can take

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)(.*)$/;

export function parse(text, depth = 0) {
  const lines = text.split("\n");
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const [block, next] = (depth < MAX_DEPTH && blockAt(lines, at, depth)) || paragraphAt(lines, at);
    // The line at which a block begins. What comes before the last block cannot change any more.
    blocks.push({ ...block, line: at });
    at = next;
  }
  return blocks;
}

// A text that grows. The blocks before the last one are final, so only the last one is parsed again.
export class GrowingText {
  #final = 0; // number of final blocks
  #tail = "";

  // Returns the number of blocks that stay as they are, and the blocks after them.
  append(text) {
    this.#tail += text;
    const kept = this.#final;
    const blocks = parse(this.#tail);
    // The last line may not be complete, and the block before it may still take it in. A block is final when the
    // next one has begun with a complete line.
    const last = blocks.at(-1);
    const lines = this.#tail.split("\n");
    if (blocks.length > 1 && last.line < lines.length - 1) {
      this.#final += blocks.length - 1;
      this.#tail = lines.slice(last.line).join("\n");
    }
    return [kept, blocks];
  }
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  return (
    codeAt(lines, at) ??
    headingAt(line, at) ??
    (RULE.test(line) ? [{ kind: "rule" }, at + 1] : null) ??
    quoteAt(lines, at, depth) ??
    listAt(lines, at, depth)
  );
}

function codeAt(lines, at) {
  const [, fence, language] = lines[at].match(FENCE) ?? [];
  if (!fence) return null;
  let end = at + 1;
  const isEnd = (line) => /^ {0,3}[`~]+[ \t]*$/.test(line) && line.trim().startsWith(fence) && line.trim()[0] === fence[0];
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  return [{ kind: "code", language: language.trim(), text }, end + 1];
}

function headingAt(line, at) {
  const [, marks, text] = line.match(HEADING) ?? [];
  return marks ? [{ kind: "heading", level: marks.length, inline: inline(text.replace(/[ \t]+#+[ \t]*$/, "")) }, at + 1] : null;
}

function quoteAt(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  if (end === at) return null;
  const text = lines.slice(at, end).map((line) => line.match(QUOTE)[1]).join("\n");
  return [{ kind: "quote", blocks: parse(text, depth + 1) }, end];
}

// Items of one kind, bullets or numbers. A line that is indented, or that follows without a blank line and begins no
// other block, belongs to the item before it.
function listAt(lines, at, depth) {
  const first = lines[at].match(ITEM);
  if (!first) return null;
  const numberOf = (item) => (/\d/.test(item[2]) ? Number.parseInt(item[2], 10) : null);
  const items = [];
  let indent = 0;
  let end = at;
  for (let hasBlank = false; end < lines.length; end += 1) {
    const line = lines[end];
    const item = RULE.test(line) ? null : line.match(ITEM);
    if (!line.trim()) {
      hasBlank = true;
      items.at(-1)?.lines.push("");
    } else if (items.length && line.search(/\S/) >= indent) {
      items.at(-1).lines.push(line.slice(indent));
    } else if (item && (numberOf(item) === null) === (numberOf(first) === null)) {
      indent = item[1].length + item[2].length + Math.min(item[3].length || 1, 4);
      items.push({ number: numberOf(item), lines: [item[4]] });
    } else if (items.length && !hasBlank && !beginsBlock(line)) {
      items.at(-1).lines.push(line.trimStart());
    } else {
      break;
    }
    if (line.trim()) hasBlank = false;
  }
  const parsed = items.map(({ number, lines }) => ({ number, blocks: parse(lines.join("\n"), depth + 1) }));
  return [{ kind: "list", items: parsed }, end];
}

const beginsBlock = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));

// A number in the middle of a paragraph is often a number, and only a 1 begins a list there.
const interrupts = (line) => beginsBlock(line) && !/^ {0,3}(?!1[.)])\d+[.)]/.test(line) && !/^ {0,3}([-*+]|1[.)])$/.test(line);

function paragraphAt(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines[end])) end += 1;
  return [{ kind: "paragraph", inline: inline(lines.slice(at, end).join("\n").trimStart()) }, end];
}

// Inline

const MARKS = /[`*_[]/g;

function inline(text, depth = 0) {
  const found = [];
  let done = 0; // everything before it is in `found`
  let at = 0;
  for (;;) {
    MARKS.lastIndex = at;
    const mark = depth < MAX_DEPTH ? MARKS.exec(text) : null;
    if (!mark) break;
    const [node, end] = spanAt(text, mark.index, depth) ?? [];
    if (node) {
      if (mark.index > done) found.push(text.slice(done, mark.index));
      found.push(node);
      done = end;
    }
    at = end ?? skipRun(text, mark.index);
  }
  if (done < text.length) found.push(text.slice(done));
  return found;
}

// The end of a run of one character: marks that open nothing are text, all of them.
function skipRun(text, at) {
  let end = at + 1;
  while (text[end] === text[at] && text[at] !== "[") end += 1;
  return end;
}

function spanAt(text, at, depth) {
  if (text[at] === "`") return codeSpanAt(text, at);
  if (text[at] === "[") return linkAt(text, at, depth);
  return emphasisAt(text, at, depth);
}

function codeSpanAt(text, at) {
  const begin = skipRun(text, at);
  const mark = text.slice(at, begin);
  for (let end = text.indexOf(mark, begin); end !== -1 && end - begin < MAX_SPAN; end = text.indexOf(mark, skipRun(text, end))) {
    if (skipRun(text, end) - end === mark.length) return [{ kind: "code", text: text.slice(begin, end) }, end + mark.length];
  }
  return null;
}

// A link is text with its target behind it, because a model may write any address under any words.
function linkAt(text, at, depth) {
  if (text[at - 1] === "!") return null; // an image
  const window = text.slice(at, at + MAX_SPAN);
  const [whole, words, target] = window.match(/^\[([^[\]\n]+)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)/) ?? [];
  return whole ? [{ kind: "link", inline: inline(words, depth + 1), target }, at + whole.length] : null;
}

const isSpace = (character) => character === undefined || /\s/.test(character);
const isWord = (character) => character !== undefined && /[\p{L}\p{N}]/u.test(character);

function emphasisAt(text, at, depth) {
  const mark = text[at];
  const run = skipRun(text, at) - at;
  const begin = at + run;
  if (run > 3 || isSpace(text[begin]) || (mark === "_" && isWord(text[at - 1]))) return null;
  for (let end = text.indexOf(mark, begin); end !== -1 && end - begin < MAX_SPAN; end = text.indexOf(mark, skipRun(text, end))) {
    const after = skipRun(text, end);
    const closes = !isSpace(text[end - 1]) && !(mark === "_" && isWord(text[after]));
    if (after - end === run && closes) {
      const content = inline(text.slice(begin, end), depth + 1);
      const node = { kind: run === 1 ? "emphasis" : "strong", inline: content };
      return [run === 3 ? { kind: "emphasis", inline: [node] } : node, after];
    }
  }
  return null;
}
