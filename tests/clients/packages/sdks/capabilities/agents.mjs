// @openai/agents as a client, with both of its models. A driver of the capabilities.
import {
  Agent,
  OpenAIChatCompletionsModel,
  OpenAIResponsesModel,
  Runner,
  setTracingDisabled,
  tool,
} from "@openai/agents";
import OpenAI from "openai";
import { City, Driver, Weather, main } from "./driver.mjs";

setTracingDisabled(true); // else it sends traces to OpenAI

class Agents extends Driver {
  client = new OpenAI({ baseURL: this.call.url, apiKey: "none" });
  runner = new Runner();

  agent(more) {
    return new Agent({ name: "Weather", instructions: "Be brief.", model: this.model, ...more });
  }

  async run(input, more, options) {
    return await this.runner.run(this.agent(more), input, options);
  }

  async streamed(more) {
    const run = await this.run(this.call.prompt, more, { stream: true });
    await this.read(run.toTextStream());
    await run.completed;
    return run.finalOutput;
  }

  async whole() {
    return (await this.run(this.call.prompt)).finalOutput;
  }

  async stream() {
    return this.streamed();
  }

  async secondTurn() {
    const first = await this.run(this.call.prompt);
    return (await this.run([...first.history, { role: "user", content: this.call.second }])).finalOutput;
  }

  get weather() {
    const execute = async () => this.call.result;
    return { tools: [tool({ name: "weather", description: "The weather.", parameters: City, execute })] };
  }

  async tools() {
    return (await this.run(this.call.prompt, this.weather)).finalOutput;
  }

  async toolsStreamed() {
    return this.streamed(this.weather);
  }

  async structuredOutput() {
    return (await this.run(this.call.prompt, { outputType: Weather })).finalOutput;
  }

  async image() {
    const content = [
      { type: "input_text", text: this.call.prompt },
      { type: "input_image", image: this.call.image },
    ];
    return (await this.run([{ role: "user", content }])).finalOutput;
  }
}

class Chat extends Agents {
  model = new OpenAIChatCompletionsModel(this.client, this.call.model);
}

class Responses extends Agents {
  model = new OpenAIResponsesModel(this.client, this.call.model);
}

class Continued extends Responses {
  async secondTurn() {
    const { lastResponseId } = await this.run(this.call.prompt);
    return (await this.run(this.call.second, {}, { previousResponseId: lastResponseId })).finalOutput;
  }
}

await main({
  "openai-agents-js chat": Chat,
  "openai-agents-js responses": Responses,
  "openai-agents-js responses, earlier ids": Continued,
});
