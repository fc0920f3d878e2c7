// Anthropic's package and the AI SDK's model for its API: texts, traces, a tool, errors. Argument: the server's URL.
// Prints JSON.
import { createAnthropic } from "@ai-sdk/anthropic";
import Anthropic from "@anthropic-ai/sdk";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url] = process.argv.slice(2);
const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hot?" }];
const thinking = { type: "enabled", budget_tokens: 1024 };
const schema = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ name: "weather", input_schema: schema }];
const ask = { model: "small", max_tokens: 4096, messages, thinking, tools };

// Raw.
const types = [];
for await (const event of await client.messages.create({ ...ask, stream: true })) types.push(event.type);

// With the helper: the model calls the tool, the result goes back, the model answers.
const first = await client.messages.stream(ask).finalMessage();
const results = first.content
  .filter((block) => block.type === "tool_use")
  .map((block) => ({ type: "tool_result", tool_use_id: block.id, content: `31 in ${block.input.city}` }));
const turns = [...messages, { role: "assistant", content: first.content }, { role: "user", content: results }];
const helped = await client.messages.stream({ ...ask, messages: turns }).finalMessage();
const whole = await client.messages.create({ ...ask, messages: turns });

// A failure in the stream.
const failure = async (use) => {
  try {
    await use();
  } catch (error) {
    return [error.constructor.name, error.error?.error?.type ?? error.type ?? null];
  }
};
const broken = { ...ask, messages: [{ role: "user", content: "Fail" }] };
const raised = [
  await failure(async () => {
    for await (const _ of await client.messages.create({ ...broken, stream: true }));
  }),
  await failure(() => client.messages.stream(broken).finalMessage()),
  await failure(() => client.messages.create(broken)),
];

// The AI SDK.
const provider = createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" });
const asked = [];
const options = {
  model: provider("small"),
  prompt: "Hot?",
  maxRetries: 0,
  stopWhen: stepCountIs(3),
  providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 1024 } } },
  tools: {
    weather: tool({
      inputSchema: z.object({ city: z.string() }),
      execute: async (input) => {
        asked.push(input);
        return `31 in ${input.city}`;
      },
    }),
  },
};
const stream = streamText(options);
const kinds = [];
for await (const part of stream.fullStream) {
  if (kinds.at(-1) !== part.type) kinds.push(part.type);
}
const generated = await generateText(options);

console.log(
  JSON.stringify({
    types,
    first: first.content.map((block) => block.type),
    helped: helped.content.at(-1).text,
    whole: whole.content.at(-1).text,
    raised,
    models: (await client.models.list()).data.map((model) => model.id),
    kinds,
    streamed: await stream.text,
    generated: generated.text,
    asked,
  }),
);
