import assert from "node:assert/strict";
import test from "node:test";

import { load } from "./modules.mjs";

const { parse, GrowingText } = await load("markdown.js");

// Blocks without their lines, inline content as compact lists: ["strong", ...].
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  const { line, ...rest } = value;
  return Object.fromEntries(Object.entries(rest).map(([name, inner]) => [name, plain(inner)]));
}

const paragraph = (...inline) => ({ kind: "paragraph", inline });
const item = (number, ...blocks) => ({ number, blocks });
const list = (...items) => ({ kind: "list", items });

const CASES = {
  "# One": [{ kind: "heading", level: 1, inline: ["One"] }],
  "###### Six ##": [{ kind: "heading", level: 6, inline: ["Six"] }],
  "#no heading": [paragraph("#no heading")],
  "a\nb\n\nc": [paragraph("a\nb"), paragraph("c")],
  "**b** and *i* and `c`": [
    paragraph({ kind: "strong", inline: ["b"] }, " and ", { kind: "emphasis", inline: ["i"] }, " and ", { kind: "code", text: "c" }),
  ],
  "***both***": [paragraph({ kind: "emphasis", inline: [{ kind: "strong", inline: ["both"] }] })],
  "**a *b* c**": [paragraph({ kind: "strong", inline: ["a ", { kind: "emphasis", inline: ["b"] }, " c"] })],
  "2 * 3 * 4": [paragraph("2 * 3 * 4")],
  "snake_case_name and __init__.py": [paragraph("snake_case_name and ", { kind: "strong", inline: ["init"] }, ".py")],
  "**never closed": [paragraph("**never closed")],
  "`` a ` b ``": [paragraph({ kind: "code", text: " a ` b " })],
  "[words](https://x.example/a_(b))": [
    paragraph({ kind: "link", inline: ["words"], target: "https://x.example/a_(b)" }),
  ],
  "![alt](https://x.example/i.png)": [paragraph("![alt](https://x.example/i.png)")],
  "[x](javascript:alert(1))": [paragraph({ kind: "link", inline: ["x"], target: "javascript:alert(1)" })],
  "<b>&amp;</b>": [paragraph("<b>&amp;</b>")],
  "```js\nlet a;\n\nb\n```\nafter": [{ kind: "code", language: "js", text: "let a;\n\nb" }, paragraph("after")],
  "```\nnever closed": [{ kind: "code", language: "", text: "never closed" }],
  "~~~\n```\n~~~": [{ kind: "code", language: "", text: "```" }],
  "- a\n- b": [list(item(null, paragraph("a")), item(null, paragraph("b")))],
  "- a\n  - b\n\n  more\n- c": [
    list(item(null, paragraph("a"), list(item(null, paragraph("b"))), paragraph("more")), item(null, paragraph("c"))),
  ],
  "1. a\n1. b\n7) c": [list(item(1, paragraph("a")), item(1, paragraph("b")), item(7, paragraph("c")))],
  "- a\n1. b": [list(item(null, paragraph("a"))), list(item(1, paragraph("b")))],
  "In\n1980. It was": [paragraph("In\n1980. It was")],
  "Steps:\n- a": [paragraph("Steps:"), list(item(null, paragraph("a")))],
  "> q\n> - x": [{ kind: "quote", blocks: [paragraph("q"), list(item(null, paragraph("x")))] }],
  "a\n\n---\n\nb": [paragraph("a"), { kind: "rule" }, paragraph("b")],
  "- a\n\nb": [list(item(null, paragraph("a"))), paragraph("b")],
  "Before. ": [paragraph("Before. ")],
};

for (const [text, blocks] of Object.entries(CASES)) {
  test(`parses ${JSON.stringify(text)}`, () => assert.deepEqual(plain(parse(text)), blocks));
}

// Reproducible random numbers.
function numbers(seed) {
  let state = seed;
  return (below) => {
    state = (state * 1103515245 + 12345) % 2 ** 31;
    return Math.floor((state / 2 ** 31) * below);
  };
}

const PIECES = [
  "word", " ", " ", "\n", "\n", "\n\n", "*", "**", "_", "`", "```", "~~~", "# ", "- ", "1. ", "12) ", "> ", "  ", "    ", "[", "](", ")",
  "![", "<b>", "&lt;", "http://x.y", "é", "🍁", "\u2028", "\t", "---", "|", "\\", "2", "\r\n", "x_y_z",
];

const randomText = (random) => Array.from({ length: 1 + random(40) }, () => PIECES[random(PIECES.length)]).join("");

const letters = (text) => text.replace(/[^\p{L}\p{Emoji_Presentation}]/gu, "");

function textOf(value) {
  if (Array.isArray(value)) return value.map(textOf).join("");
  if (typeof value === "string") return value;
  const { inline = "", target = "", language = "", text = "", items = "", blocks = "" } = value;
  return [inline, target, language, text, items, blocks].map(textOf).join("");
}

test("no letter is lost, moved or added", () => {
  const random = numbers(1);
  for (let round = 0; round < 20_000; round += 1) {
    const text = randomText(random);
    assert.equal(letters(textOf(parse(text))), letters(text), JSON.stringify(text));
  }
});

test("a text in pieces gives the blocks of the whole text", () => {
  const random = numbers(2);
  for (let round = 0; round < 5000; round += 1) {
    const text = randomText(random);
    const growing = new GrowingText();
    const shown = [];
    for (let at = 0; at < text.length; ) {
      const end = at + 1 + random(6);
      const [kept, blocks] = growing.append(text.slice(at, end));
      shown.splice(kept, shown.length, ...blocks);
      at = end;
      assert.deepEqual(plain(shown), plain(parse(text.slice(0, end))), JSON.stringify(text.slice(0, end)));
    }
  }
});

test("final blocks are not parsed again", () => {
  const growing = new GrowingText();
  growing.append("one\n\ntwo\n\nthree\n");
  assert.deepEqual(growing.append("more")[0], 2);
});

// Each would take minutes if a mark were searched to the end of the text every time.
const HOSTILE = ["*a ", "_a ", "`", "` ``", "[", "[a](", "**", "***a", "> ", "- ", "  - ", "#", "1. ", "![", "*_", "(", "\n"];

for (const piece of HOSTILE) {
  test(`100,000 characters of ${JSON.stringify(piece)} are parsed in time and deep nesting does not overflow`, () => {
    const text = piece.repeat(100_000 / piece.length);
    const began = process.cpuUsage().user;
    const blocks = parse(text);
    assert.ok(process.cpuUsage().user - began < 10e6); // seconds of CPU, and it takes less than a second
    assert.ok(Array.isArray(blocks));
  });
}
