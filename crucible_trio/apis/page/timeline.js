// What happened to one stream on this page: marks, and samples of how far the model and the page have come. Plain data,
// so that the tab can keep it over a reload.

const MAX_SAMPLES = 400; // a long stream gets fewer per second

export function newTimeline() {
  return { began: Date.now(), seq: 0, marks: [], samples: [] };
}

// `kind` is one of the words in MARKS, and `seq` the last record that the page had then.
export function addMark(timeline, kind, seq) {
  timeline.marks.push({ kind, seq, at: Date.now() - timeline.began });
}

export function addSample(timeline, made, read, activity) {
  timeline.samples.push({ at: Date.now() - timeline.began, made, read, activity });
  if (timeline.samples.length > MAX_SAMPLES) timeline.samples = timeline.samples.filter((_, index) => index % 2 === 0); // the last stays
}

// For each kind the word in the chart, and the sentence in the list.
export const MARKS = {
  cut: ["cut", (seq) => `You cut the connection after record ${seq}`],
  lost: ["lost", (seq) => `The connection was lost after record ${seq}`],
  resumed: ["resume", (seq) => `Resumed after record ${seq}`],
  reload: ["reload", (seq) => `The page was reloaded at record ${seq}, and reads again from record 1`],
  slow: ["slow", (seq) => `Reading slowly after record ${seq}`],
  fast: ["fast", (seq) => `Reading at full speed after record ${seq}`],
  waits: ["waits", (seq) => `The model waits for this reader, which has record ${seq}`],
  stop: ["stop", (seq) => `You asked to stop the model, with record ${seq} read`],
  end: ["end", (seq) => `The stream ended with record ${seq}`],
};
