import assert from "node:assert/strict";
import test from "node:test";

import { load } from "./modules.mjs";

const { Ledger } = await load("ledger.js");
const { verdict } = await load("words.js");

const records = (...seqs) => seqs.map((seq) => ({ seq, type: seq === 1 ? "stream.created" : "output.delta" }));

function read(...seqs) {
  const ledger = new Ledger();
  const isNew = records(...seqs).map((record) => ledger.take(record));
  return [ledger, isNew];
}

test("records that come once and in order are exact", () => {
  const [ledger, isNew] = read(1, 2, 3);
  assert.deepEqual([ledger.seq, ledger.exact, isNew], [3, true, [true, true, true]]);
  assert.equal(verdict(ledger, false, null), "Records 1 to 3 so far, each exactly once.");
  assert.equal(verdict(ledger, true, true), "Records 1 to 3, each exactly once. The text equals the server's log.");
  assert.equal(verdict(ledger, true, false), "Records 1 to 3 came once each, but the text differs from the server's log.");
});

test("a record that is missing is named", () => {
  const [ledger] = read(1, 2, 5);
  assert.deepEqual([ledger.holes, ledger.exact], [[3, 4], false]);
  assert.equal(verdict(ledger, true, true), "Record 3 is missing.");
});

test("the first record may be missing too", () => assert.deepEqual(read(2)[0].holes, [1]));

test("a record that comes twice is named and is not new", () => {
  const [ledger, isNew] = read(1, 2, 2, 3);
  assert.deepEqual([ledger.repeats, isNew], [[2], [true, true, false, true]]);
  assert.equal(verdict(ledger, true, null), "Record 2 came twice.");
});

test("records of one piece count one each, and the first record has none", () => assert.equal(read(1, 2, 3)[0].pieces, 2));

test("the server says how many pieces merged records hold", () => {
  const [ledger] = read(1, 2, 3);
  ledger.learn(3, 40);
  assert.equal(ledger.pieces, 40);
  ledger.take({ seq: 4, type: "output.delta" });
  assert.equal(ledger.pieces, 41);
  ledger.learn(9, 90); // not read yet
  assert.equal(ledger.pieces, 41);
  ledger.learn(4, 100);
  assert.equal(ledger.pieces, 100);
});

test("the words of a record count as pieces until the server says how many there are", () => {
  const [ledger] = read(1, 2);
  ledger.takePart();
  ledger.takePart();
  assert.deepEqual([ledger.pieces, ledger.seq], [3, 2]);
  ledger.take({ seq: 3, type: "output.delta" });
  assert.equal(ledger.pieces, 4);
  ledger.learn(3, 9);
  assert.equal(ledger.pieces, 9);
});
