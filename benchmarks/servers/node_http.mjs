// Node's http module: the response buffers 16 KiB, then waits for `drain`. An array as log.
import { once } from "node:events";
import { createServer } from "node:http";
import { randomBytes } from "node:crypto";
import { setImmediate as immediate, setTimeout as sleep } from "node:timers/promises";

const streams = new Map();

// The stand-in model, as in asyncio_model.py.
const model = {
  made: 0,
  stopped: {},
  batch: new Set(),
  ticking: false,
};
model.gone = new Promise((resolve) => (model.go = resolve));

const now = () => process.hrtime.bigint();
const stamp = () => now().toString().padStart(16, "0");
const token = (stamped, number) => stamped + number.toString().padStart(7, "0") + " ";

async function generate(spec, put, signal) {
  signal.addEventListener("abort", () => (model.stopped[spec.name] = Number(now())));
  const aborted = once(signal, "abort");
  const end = spec.fill + spec.tokens;
  for (let number = 0; number < spec.fill; number++) {
    model.made++;
    await put(token(stamp(), number));
    if (number % 64 === 0) await immediate();
  }
  if (spec.kind === "flood") {
    const until = now() + BigInt(Math.round(spec.seconds * 1e9));
    for (let number = spec.fill; number < end && now() < until && !signal.aborted; number++) {
      model.made++;
      await put(token(stamp(), number));
      if (number % 64 === 0) await immediate(); // promises alone starve the event loop, and no connection is accepted
    }
    return;
  }
  await Promise.race([model.gone, aborted]);
  if (spec.kind === "batch") {
    const member = { put, number: spec.fill, end };
    const done = new Promise((resolve) => (member.done = resolve));
    model.batch.add(member);
    if (!model.ticking) tick(1000 / spec.rate);
    await Promise.race([done, aborted]);
    model.batch.delete(member);
  } else if (spec.kind === "timer") {
    const period = 1000 / spec.rate;
    let due = performance.now() + spec.offset * period;
    for (let number = spec.fill; number < end && !signal.aborted; number++) {
      await sleep(Math.max(0, due - performance.now()));
      model.made++;
      await put(token(stamp(), number));
      due = Math.max(due + period, performance.now());
    }
  } else {
    await aborted;
  }
}

async function tick(period) {
  model.ticking = true;
  let due = performance.now();
  for (;;) {
    due = Math.max(due + period, performance.now());
    await sleep(Math.max(0, due - performance.now()));
    const stamped = stamp();
    for (const member of [...model.batch]) {
      if (!model.batch.has(member)) continue;
      model.made++;
      await member.put(token(stamped, member.number++));
      if (member.number === member.end) {
        model.batch.delete(member);
        member.done();
      }
    }
  }
}

class NodeStream {
  constructor(onDisconnect) {
    this.id = "str_" + randomBytes(16).toString("hex");
    this.onDisconnect = onDisconnect;
    this.log = [];
    this.finished = false;
    this.readers = new Set();
    this.stop = new AbortController();
    streams.set(this.id, this);
  }

  async run(spec) {
    await generate(spec, (text) => this.put(text), this.stop.signal);
    await this.publish({ type: "stream.completed", finish_reason: "stop" });
    this.finished = true;
    for (const reader of this.readers) reader.end();
  }

  async put(text) {
    while (this.readers.size === 0 && this.onDisconnect === "pause") {
      await new Promise((resolve) => (this.readerCame = resolve));
    }
    await this.publish({ type: "output.delta", delta: text });
  }

  async publish(record) {
    const seq = this.log.length + 1;
    const data = JSON.stringify({ type: record.type, seq, ...record });
    const event = `id: ${this.id}.${seq}\ndata: ${data}\n\n`;
    this.log.push(event);
    for (const reader of [...this.readers]) await write(reader, event);
  }

  async follow(response, after) {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
    const ping = setInterval(() => response.write(":\n\n"), 10000);
    response.on("close", () => {
      clearInterval(ping);
      this.readers.delete(response);
      if (this.readers.size === 0 && this.onDisconnect === "cancel" && !this.finished) this.stop.abort();
    });
    while (after < this.log.length && !response.destroyed) await write(response, this.log[after++]);
    if (this.finished) response.end();
    else if (!response.destroyed) {
      this.readers.add(response);
      this.readerCame?.();
    }
  }
}

async function write(response, event) {
  if (response.write(event) || response.destroyed) return;
  await new Promise((resolve) => {
    const done = () => {
      response.off("drain", done);
      response.off("close", done);
      resolve();
    };
    response.on("drain", done);
    response.on("close", done);
  });
}

const server = createServer(async (request, response) => {
  const json = (value) => response.setHeader("Content-Type", "application/json").end(JSON.stringify(value));
  const follow = request.url.match(/^\/v1\/streams\/(\w+)\/events$/);
  if (request.method === "POST" && request.url === "/v1/streams") {
    let body = "";
    for await (const piece of request) body += piece;
    const ask = JSON.parse(body);
    const stream = new NodeStream(ask.on_disconnect ?? "pause");
    await stream.publish({ type: "stream.created", stream: stream.id });
    await stream.follow(response, 0);
    stream.run(JSON.parse(ask.input));
  } else if (follow && streams.has(follow[1])) {
    const after = Number((request.headers["last-event-id"] ?? ".0").split(".").at(-1));
    await streams.get(follow[1]).follow(response, after);
  } else if (request.url === "/bench/go") {
    model.go();
    json({});
  } else if (request.url === "/bench") {
    json({ made: model.made, stopped: model.stopped });
  } else {
    response.writeHead(404).end();
  }
});
server.requestTimeout = 0;
server.listen({ host: "127.0.0.1", port: 0, backlog: 2048 }, () => console.log(server.address().port));
