// Makes calls with clients from npm, all at the same time, and with the retries of the client.
// Standard input: a list of calls, as in tests/clients/retries.py. Prints how each of them ended.
import { readFileSync } from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

// The key tells the server which call a request belongs to.
const clients = {
  async "openai-npm chat"({ id, url, stream }) {
    const client = new OpenAI({ baseURL: url, apiKey: id });
    const answer = await client.chat.completions.create({ ...chat(id), stream });
    if (!stream) return answer.choices[0].message.content;
    let text = "";
    for await (const chunk of answer) text += chunk.choices[0]?.delta.content ?? "";
    return text;
  },
  async "openai-npm responses"({ id, url, stream }) {
    const client = new OpenAI({ baseURL: url, apiKey: id });
    const answer = await client.responses.create({ model: "scripted", input: id, stream });
    return stream ? ofEvents(answer) : whole(answer);
  },
  async "AI SDK chat"(call) {
    const provider = createOpenAICompatible({ name: "crucible", baseURL: call.url, apiKey: call.id });
    return generate(call, provider("scripted"));
  },
  async "AI SDK responses"(call) {
    return generate(call, createOpenAI({ baseURL: call.url, apiKey: call.id })("scripted"));
  },
  async "LangChain JS"({ id, url, stream, retries }) {
    const options = { model: "scripted", apiKey: id, configuration: { baseURL: url } };
    const model = new ChatOpenAI(retries === null ? options : { ...options, maxRetries: retries });
    if (!stream) return (await model.invoke(id)).content;
    let text = "";
    for await (const chunk of await model.stream(id)) text += chunk.content;
    return text;
  },
};

const chat = (id) => ({ model: "scripted", messages: [{ role: "user", content: id }] });

function whole(response) {
  if (response.status !== "completed") throw new Error(`${response.status}: ${response.incomplete_details?.reason}`);
  return response.output_text;
}

async function ofEvents(events) {
  for await (const event of events) {
    if (event.type === "response.failed") throw new Error(`failed: ${event.response.error.message}`);
    if (event.type === "response.incomplete") return whole(event.response);
    if (event.type === "response.completed") return event.response.output.at(-1).content[0].text;
  }
  throw new Error("no end");
}

async function generate({ id, stream }, model) {
  if (!stream) {
    const { text, finishReason } = await generateText({ model, prompt: id });
    if (finishReason !== "stop") throw new Error(`finish reason ${finishReason}`);
    return text;
  }
  const result = streamText({ model, prompt: id, onError: () => {} });
  let text = "";
  for await (const part of result.fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") text += part.text;
    if (part.type === "finish" && part.finishReason !== "stop") throw new Error(`finish reason ${part.finishReason}`);
  }
  return text;
}

async function end(call) {
  try {
    return { text: await clients[call.client](call) };
  } catch (error) {
    const last = error.lastError ?? error; // the AI SDK wraps the last of several errors
    return { error: String(last.message ?? last), status: last.status ?? last.statusCode ?? null };
  }
}

const calls = JSON.parse(readFileSync(0, "utf-8"));
const ends = await Promise.all(calls.map(async (call) => [call.id, await end(call)]));
console.log(JSON.stringify(Object.fromEntries(ends)));
process.exit(0); // some clients leave connections open after an error
