// Two ways to read a stream's events. Both start immediately and return an object with close(), after which they make
// no more calls. They call:
//
// on.opened()            the connection is open
// on.record(record, id)  in order. A control event comes with the id of the record before it
// on.lost()              the connection broke, and this reader reconnects
// on.over()              this reader has stopped and will not reconnect

// EventSource: reads as fast as the events come, and reconnects with its last id.
export function readFast(url, on) {
  const source = new EventSource(url);
  source.onopen = () => on.opened();
  source.onmessage = ({ data, lastEventId }) => on.record(JSON.parse(data), lastEventId);
  source.onerror = () => (source.readyState === EventSource.CLOSED ? on.over() : on.lost());
  return source;
}

// fetch: reads the body chunk by chunk, with `pause` milliseconds for each event. Unread events fill the browser's
// buffers first (4 MiB, measured in Chromium on Linux), then the kernel's (7 to 20 MiB). Only then does the model wait.
// A short answer fits into the buffers, so it is only shown slowly.
export function readSlowly(url, on, pause) {
  const abort = new AbortController();
  read(url, on, pause, abort.signal)
    .catch(() => {}) // a body that breaks is treated like one that ends
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
      // One data line, then the id line. A `retry:` line or a comment may come before them.
      const field = (name) => event.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
      on.record(JSON.parse(field("data")), field("id"));
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (signal.aborted) return;
    }
  }
}
