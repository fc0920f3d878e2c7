import assert from "node:assert/strict";
import test from "node:test";

import { load } from "./modules.mjs";

const { addMark, addSample, MARKS, newTimeline } = await load("timeline.js");

test("a long timeline keeps its first and its newest sample, and 200 to 400 in all", () => {
  const timeline = newTimeline();
  for (let made = 0; made <= 5000; made += 1) {
    addSample(timeline, made, made, "generating");
    assert.equal(timeline.samples.at(-1).made, made);
    assert.ok(timeline.samples.length <= 400);
    assert.ok(timeline.samples.length >= Math.min(made, 200));
  }
  assert.equal(timeline.samples[0].made, 0);
});

test("each mark has a word and a sentence with its record", () => {
  const timeline = newTimeline();
  for (const [kind, [word, sentence]] of Object.entries(MARKS)) {
    addMark(timeline, kind, 7);
    assert.ok(word.length <= 6);
    assert.match(sentence(7), /record 7/);
  }
  assert.deepEqual(timeline.marks.map(({ kind }) => kind), Object.keys(MARKS));
});
