// What the drivers for npm's clients share. The table in tests/clients/capabilities.py says what each call does.
import { readFileSync } from "node:fs";
import { z } from "zod";

// A client asks as always, and the upstream's answer differs.
const FAILING = ["refused request", "rate limit"];

console.log = console.info = console.error; // some clients print advice

export const City = z.object({ city: z.string() });
export const Weather = z.object({ city: z.string(), degrees: z.int() });

// A client. It has a method for each capability, which returns a text, or an object: `toolsStreamed` for
// "tools, streamed".
export class Driver {
  constructor(call) {
    this.call = call;
  }

  // Say that a piece of the text is here, if it is one. A second time is harmless.
  async saw(text) {
    if (text) await (await fetch(this.call.seen)).arrayBuffer();
  }

  // Read pieces of a text to their end.
  async read(pieces) {
    let text = "";
    for await (const piece of pieces) {
      await this.saw(piece);
      text += piece;
    }
    return text;
  }

  async report() {
    const { capability } = this.call;
    const method = FAILING.includes(capability) ? "whole" : capability.replace(/\W+(\w)/g, (_, c) => c.toUpperCase());
    if (!this[method]) return { missing: true };
    try {
      const made = await this[method]();
      return typeof made === "string" ? { text: made } : { value: made };
    } catch (error) {
      console.error(this.call.id, error);
      const last = error.lastError ?? error; // the AI SDK wraps the last of several errors
      const name = last.name && last.name !== "Error" ? last.name : last.constructor.name;
      return { error: name, status: last.status ?? last.statusCode ?? null, message: String(last.message) };
    }
  }
}

// Make the calls of the standard input, all at the same time, and print their reports.
export async function main(drivers) {
  const calls = JSON.parse(readFileSync(0, "utf-8"));
  const report = async (call) => [call.id, await new drivers[call.client](call).report()];
  const reports = Object.fromEntries(await Promise.all(calls.map(report)));
  process.stdout.write(JSON.stringify(reports), () => process.exit(0)); // some clients leave connections open
}
