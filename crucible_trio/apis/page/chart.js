// Draws a timeline: tokens made by the model and read by the page over time, with a line for each mark.

import { MARKS } from "./timeline.js";

const [WIDTH, HEIGHT, TOP, BOTTOM] = [340, 138, 42, 122]; // as the viewBox
const END = 24; // to the right of the lines, for their numbers
const LEAST_MS = 8000;
const LEAST_TOKENS = 20;
const ROWS = 3; // of words above the chart, so that close marks do not cover each other

export function draw(svg, { samples, marks }) {
  const make = (tag, attributes, text = "") => {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };
  const last = samples.at(-1) ?? { at: 0, made: 0 };
  const span = Math.max(LEAST_MS, last.at, marks.at(-1)?.at ?? 0);
  const most = Math.max(LEAST_TOKENS, ...samples.map(({ made }) => made));
  const x = (at) => ((at / span) * (WIDTH - END)).toFixed(1);
  const y = (tokens) => (BOTTOM - (tokens / most) * (BOTTOM - TOP)).toFixed(1);
  const line = (field) => samples.map((sample) => `${x(sample.at)},${y(sample[field])}`).join(" ");
  const parts = waits(samples).map(([from, to]) =>
    make("rect", { class: "waits", x: x(from), y: TOP, width: Math.max(1, x(to) - x(from)), height: BOTTOM - TOP }));
  parts.push(make("line", { class: "axis", x1: 0, x2: WIDTH, y1: BOTTOM, y2: BOTTOM }));
  parts.push(make("text", { x: 0, y: HEIGHT - 4 }, "0 s"));
  parts.push(make("text", { x: WIDTH, y: HEIGHT - 4, "text-anchor": "end" }, `${Math.round(span / 1000)} s`));
  if (samples.length) {
    parts.push(make("polygon", { class: "made", points: `0,${BOTTOM} ${line("made")} ${x(last.at)},${BOTTOM}` }));
    parts.push(make("polyline", { class: "made", points: line("made") }));
    parts.push(make("polyline", { class: "read", points: line("read") }));
    // The numbers at the ends of the lines, if they do not cover each other.
    const beside = (field) => make("text", { class: field, x: Number(x(last.at)) + 3, y: Number(y(last[field])) + 3 }, last[field]);
    parts.push(beside("made"));
    if (y(last.read) - y(last.made) > 9) parts.push(beside("read"));
  }
  marks.forEach(({ kind, at }, index) => {
    const height = 10 + 10 * (index % ROWS);
    parts.push(make("line", { class: `mark ${kind}`, x1: x(at), x2: x(at), y1: height + 1, y2: BOTTOM }));
    const place = x(at) > WIDTH - 40 ? { x: WIDTH, "text-anchor": "end" } : { x: Number(x(at)) + 2 };
    parts.push(make("text", { class: `mark ${kind}`, y: height, ...place }, MARKS[kind][0]));
  });
  svg.replaceChildren(...parts);
}

// From and to when the model waited for a reader.
function waits(samples) {
  const spans = [];
  samples.slice(1).forEach(({ at, activity }, index) => {
    if (!["waiting", "paused"].includes(activity)) return;
    const from = samples[index].at;
    if (spans.at(-1)?.[1] === from) spans.at(-1)[1] = at;
    else spans.push([from, at]);
  });
  return spans;
}
