// The AI SDK with its provider for OpenAI-compatible servers. Arguments: the names of the two packages, because there
// are two major versions, and the base URL. Prints JSON.
const [ai, compatible, baseURL] = process.argv.slice(2);
const { generateText, streamText } = await import(ai);
const { createOpenAICompatible } = await import(compatible);

const provider = createOpenAICompatible({ name: "crucible", baseURL, includeUsage: true });
const model = provider("small:deep");

const stream = streamText({ model, prompt: "Why?", maxRetries: 0 });
const parts = { text: "", reasoning: "", kinds: [] };
for await (const part of stream.fullStream) {
  if (part.type === "text-delta") parts.text += part.text;
  if (part.type === "reasoning-delta") parts.reasoning += part.text;
  if (parts.kinds.at(-1) !== part.type) parts.kinds.push(part.type);
}

const whole = await generateText({ model, prompt: "Why?", maxRetries: 0 });

const failed = [];
const failing = streamText({
  model: provider("small"),
  prompt: "Fail!",
  maxRetries: 0,
  onError: ({ error }) => failed.push(String(error.message ?? error)),
});
await failing.consumeStream();

console.log(
  JSON.stringify({
    parts,
    streamed: {
      text: await stream.text,
      reasoning: await stream.reasoningText,
      finish: await stream.finishReason,
      usage: await stream.usage,
    },
    whole: { text: whole.text, reasoning: whole.reasoningText, finish: whole.finishReason, usage: whole.usage },
    failed,
    failedFinish: await Promise.resolve(failing.finishReason).catch((error) => `rejected: ${error.name}`),
  }),
);
