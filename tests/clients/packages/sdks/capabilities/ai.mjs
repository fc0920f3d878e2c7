// The AI SDK as a client: two major versions, with the provider for compatible servers and with OpenAI's. A driver of
// the capabilities.
import * as ai7 from "ai";
import * as ai6 from "ai-6";
import { createOpenAI as createOpenAI7 } from "@ai-sdk/openai";
import { createOpenAI as createOpenAI6 } from "ai-6-openai";
import { createOpenAICompatible as createCompatible7 } from "@ai-sdk/openai-compatible";
import { createOpenAICompatible as createCompatible6 } from "ai-6-openai-compatible";
import { City, Driver, Weather, main } from "./driver.mjs";

class Sdk extends Driver {
  constructor(call, ai, provider) {
    super(call);
    this.ai = ai;
    this.provider = provider;
  }

  settings = { name: "crucible", baseURL: this.call.url, apiKey: "none" };
  turn = [{ role: "user", content: this.call.prompt }];
  options = {};

  request(more) {
    return { model: this.model, messages: this.turn, providerOptions: this.options, ...more };
  }

  async generate(more) {
    return (await this.ai.generateText(this.request(more))).text;
  }

  async streamed(more) {
    const errors = [];
    const onError = ({ error }) => errors.push(error); // `textStream` only ends
    const result = this.ai.streamText(this.request({ onError, ...more }));
    const text = await this.read(result.textStream);
    if (errors.length) throw errors[0];
    return more ? await result.text : text; // that of the last step
  }

  async whole() {
    return this.generate();
  }

  async stream() {
    return this.streamed();
  }

  async secondTurn() {
    const { response } = await this.ai.generateText(this.request());
    const second = { role: "user", content: this.call.second };
    return this.generate({ messages: [...this.turn, ...response.messages, second] });
  }

  get weather() {
    const weather = this.ai.tool({ inputSchema: City, execute: async () => this.call.result });
    return { tools: { weather }, stopWhen: this.ai.stepCountIs(3) };
  }

  async tools() {
    return this.generate(this.weather);
  }

  async toolsStreamed() {
    return this.streamed(this.weather);
  }

  async structuredOutput() {
    const output = this.ai.Output.object({ schema: Weather });
    return (await this.ai.generateText(this.request({ output }))).output;
  }

  async image() {
    const image = { type: "image", image: this.call.image };
    return this.generate({ messages: [{ role: "user", content: [{ type: "text", text: this.call.prompt }, image] }] });
  }
}

const compatible = (ai, create) =>
  class Compatible extends Sdk {
    constructor(call) {
      super(call, ai);
      // Without this setting it asks for any JSON, and does not send the schema.
      this.model = create({ ...this.settings, supportsStructuredOutputs: true })(call.model);
    }
  };

const chat = (ai, create) =>
  class Chat extends Sdk {
    constructor(call) {
      super(call, ai);
      this.model = create(this.settings).chat(call.model);
    }
  };

const responses = (ai, create, store) =>
  class Responses extends Sdk {
    constructor(call) {
      super(call, ai);
      this.model = create(this.settings)(call.model);
      this.options = store ? {} : { openai: { store, include: ["reasoning.encrypted_content"] } };
    }
  };

await main({
  "AI SDK 7 openai-compatible": compatible(ai7, createCompatible7),
  "AI SDK 7 openai chat": chat(ai7, createOpenAI7),
  "AI SDK 7 openai responses": responses(ai7, createOpenAI7, true),
  "AI SDK 7 openai responses, `store: false`": responses(ai7, createOpenAI7, false),
  "AI SDK 6 openai-compatible": compatible(ai6, createCompatible6),
  "AI SDK 6 openai chat": chat(ai6, createOpenAI6),
  "AI SDK 6 openai responses": responses(ai6, createOpenAI6, true),
  "AI SDK 6 openai responses, `store: false`": responses(ai6, createOpenAI6, false),
});
