// Responses with the openai package: some on a good network, and one in the background on a network that cuts.
// Arguments: the base URL of the server, and that of a proxy in front of it. Prints JSON.
import OpenAI, { APIConnectionError } from "openai";

const [plainUrl, cutUrl] = process.argv.slice(2);
const options = { apiKey: "none", maxRetries: 0 };
const plain = new OpenAI({ baseURL: plainUrl, ...options });
const cut = new OpenAI({ baseURL: cutUrl, ...options });
const ask = { model: "small:deep", input: "Why?" };
const ends = new Set(["response.completed", "response.incomplete", "response.failed"]);

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

// The text, the sequence numbers and the last event of a list of events.
function summary(events) {
  const deltas = (type) => events.filter((event) => event.type === type).map((event) => event.delta);
  return {
    numbers: events.map((event) => event.sequence_number),
    text: deltas("response.output_text.delta").join(""),
    trace: deltas("response.reasoning_summary_text.delta").join(""),
    last: events.at(-1).type,
    response: events.at(-1).response,
  };
}

// Read a background response to its end, and resume it after every cut.
async function follow(client) {
  const seen = [];
  let cuts = 0;
  while (!ends.has(seen.at(-1)?.type)) {
    try {
      const stream = seen.length
        ? await client.responses.retrieve(seen[0].response.id, {
            stream: true,
            starting_after: seen.at(-1).sequence_number,
          })
        : await client.responses.create(
            { ...ask, background: true, stream: true },
            { headers: { "Idempotency-Key": "key" } },
          );
      for await (const event of stream) seen.push(event);
      if (!ends.has(seen.at(-1)?.type)) throw new Error("the body ended normally before the response did");
    } catch (error) {
      // A cut in the middle of a body raises an error of fetch ("terminated", or a reset), not of the SDK.
      if (!(error instanceof APIConnectionError) && !(error instanceof TypeError)) throw error;
      cuts += 1;
    }
  }
  return { cuts, ...summary(seen) };
}

const whole = await plain.responses.create({ ...ask, reasoning: { effort: "high", summary: "auto" } });
const streamed = summary(await all(await plain.responses.create({ ...ask, stream: true })));
const helper = plain.responses.stream(ask);
const accumulated = await helper.finalResponse();
const followed = await follow(cut);
const deleted = await plain.responses.delete(whole.id);
const lost = await plain.responses.retrieve(whole.id).catch((error) => error.status);

console.log(JSON.stringify({ whole, streamed, accumulated, followed, deleted, lost }));
