// Two ways to read a stream's events. Both begin at once, call `on` as follows, and have close(), after which they call
// nothing any more.
//
// on.opened()            a connection stands
// on.record(record, id)  in order; control events come with the id of the record before them
// on.lost()              the connection broke, and this reader comes back by itself
// on.over()              this reader has given up and will not come back

// EventSource: takes what comes as fast as it comes, and reconnects at its last id.
export function readFast(url, on) {
  const source = new EventSource(url);
  source.onopen = () => on.opened();
  source.onmessage = ({ data, lastEventId }) => on.record(JSON.parse(data), lastEventId);
  source.onerror = () => (source.readyState === EventSource.CLOSED ? on.over() : on.lost());
  return source;
}

// A body, chunk by chunk, `pause` milliseconds for each event. What is not read fills the browser's buffers, then the
// kernel's, and only then does the model wait: after 4 MiB and 7 to 20 MiB, as measured in Chromium on Linux. A short
// answer fits in there whole, and is only shown slowly.
export function readSlowly(url, on, pause) {
  const abort = new AbortController();
  read(url, on, pause, abort.signal)
    .catch(() => {}) // a body that breaks is over, like one that ends
    .then(() => abort.signal.aborted || on.over());
  return { close: () => abort.abort() };
}

async function read(url, on, pause, signal) {
  const response = await fetch(url, { signal });
  if (response.status !== 200) return;
  on.opened();
  const body = response.body.getReader();
  const decoder = new TextDecoder();
  for (let rest = ""; ; ) {
    const { done, value } = await body.read();
    if (done) return;
    const events = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      // One line of data, and an id line last; before them there may be a `retry:` or a comment.
      const field = (name) => event.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
      on.record(JSON.parse(field("data")), field("id"));
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (signal.aborted) return;
    }
  }
}
