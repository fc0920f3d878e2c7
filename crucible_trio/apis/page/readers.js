// Two ways to read a stream's events. Both start immediately and return an object with close(), after which they make
// no more calls. They call:
//
// on.opened()            the connection is open
// on.record(record, id)  in order. A control event comes with the id of the record before it, or without one
// on.part(record)        a piece of the record that comes next, with a piece of its delta. The record has the rest
// on.lost()              the connection broke, and this reader reconnects
// on.over()              this reader has stopped and will not reconnect

// EventSource: reads as fast as the events come, and reconnects with its last id.
export function readFast(url, id, on) {
  const source = new EventSource(after(url, id));
  source.onopen = () => on.opened();
  source.onmessage = ({ data, lastEventId }) => on.record(JSON.parse(data), lastEventId);
  source.onerror = () => (source.readyState === EventSource.CLOSED ? on.over() : on.lost());
  return source;
}

// Reads word by word, and asks for a record when it has read the one before. A browser takes several MiB from the
// network before a page has read any of it, which is more than a whole answer. So `window=1` keeps the server from
// sending more. The next request says that the page has read the last record.
export function readSlowly(url, id, on, pause) {
  const connections = new Set(); // the newest, and the one before until the newest is open
  let closed = false;
  let rest = null; // the record that is being read, with the part of its delta that has not been

  async function read() {
    for (let isFirst = true; !closed; isFirst = false) {
      const connection = new AbortController();
      connections.add(connection);
      const response = await fetch(after(url, id, { window: 1 }), { signal: connection.signal });
      if (response.status !== 200) return;
      // Not earlier, so that the stream always has a reader.
      for (const other of connections) if (other !== connection) drop(other);
      if (isFirst) on.opened();
      const before = id;
      for await (const event of events(response.body)) {
        if (closed) return;
        if (event.id === undefined) on.record(event.record);
        else {
          await readWords(event);
          break;
        }
      }
      if (id === before) return; // the body ended without a record
    }
  }

  function drop(connection) {
    connections.delete(connection);
    connection.abort();
  }

  // The record's delta word by word.
  async function readWords(event) {
    rest = event;
    const words = event.record.delta?.match(/\s*\S+\s*/g) ?? [];
    for (const word of words.slice(0, -1)) {
      rest = { ...event, record: { ...event.record, delta: rest.record.delta.slice(word.length) } };
      on.part({ ...event.record, delta: word });
      await wait(pause);
      if (closed) return;
    }
    flush();
    if (words.length) await wait(pause);
  }

  function flush() {
    const event = rest;
    rest = null;
    if (!event) return;
    id = event.id;
    on.record(event.record, id);
  }

  read()
    .catch(() => {}) // a body that breaks is treated like one that ends
    .then(() => closed || on.over());
  return {
    close() {
      closed = true;
      connections.forEach(drop);
      flush(); // the record has come as a whole
    },
  };
}

const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// The events of a body. One data line, then the id line. A `retry:` line or a comment may come before them.
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const field = (name) => block.match(new RegExp(`^${name}: (.*)$`, "m"))?.[1];
      yield { record: JSON.parse(field("data")), id: field("id") };
    }
  }
}

function after(url, id, parameters = {}) {
  const address = new URL(url, location.href);
  if (id) address.searchParams.set("last_event_id", id);
  for (const [name, value] of Object.entries(parameters)) address.searchParams.set(name, value);
  return address;
}
