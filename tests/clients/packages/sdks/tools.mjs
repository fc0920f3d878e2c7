// The AI SDK and the openai package with a tool: the model calls it, the result goes back, the model answers.
// Arguments: the names of the AI SDK's two packages, because there are two major versions, and the base URL. Prints JSON.
import OpenAI from "openai";
import { z } from "zod";

const [ai, compatible, baseURL] = process.argv.slice(2);
const { generateText, stepCountIs, streamText, tool } = await import(ai);
const { createOpenAICompatible } = await import(compatible);

const provider = createOpenAICompatible({ name: "crucible", baseURL });
const asked = [];
const options = {
  model: provider("small:deep"),
  prompt: "Hot?",
  maxRetries: 0,
  stopWhen: stepCountIs(3),
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
const whole = await generateText(options);

// The helper of the openai package runs the tools, too.
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const runner = client.chat.completions.runTools({
  model: "small",
  messages: [{ role: "user", content: "Hot?" }],
  stream: true,
  tools: [
    {
      type: "function",
      function: {
        name: "weather",
        parameters: { type: "object", properties: { city: { type: "string" } } },
        parse: JSON.parse,
        function: async (input) => {
          asked.push(input);
          return `31 in ${input.city}`;
        },
      },
    },
  ],
});

console.log(
  JSON.stringify({
    kinds,
    streamed: await stream.text,
    whole: whole.text,
    runner: await runner.finalContent(),
    asked,
  }),
);
