// Chat completions with the openai package, streamed and whole. Argument: the base URL. Prints JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const ask = { model: "small:deep", messages: [{ role: "user", content: "Why?" }] };

const streamed = { content: "", reasoning_content: "" };
const stream = await client.chat.completions.create({
  ...ask,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  const [choice] = chunk.choices;
  for (const name of ["content", "reasoning_content"]) streamed[name] += choice?.delta[name] ?? "";
  streamed.finish_reason = choice?.finish_reason ?? streamed.finish_reason;
  streamed.usage = chunk.usage ?? streamed.usage;
}

const whole = await client.chat.completions.create(ask);

const runner = client.chat.completions.stream(ask);
const accumulated = await runner.finalChatCompletion();

const refused = await client.chat.completions.create({ ...ask, n: 2 }).catch((error) => error);

console.log(
  JSON.stringify({
    streamed,
    whole,
    accumulated: accumulated.choices[0].message,
    refused: { name: refused.constructor.name, status: refused.status, code: refused.code, param: refused.param },
  }),
);
