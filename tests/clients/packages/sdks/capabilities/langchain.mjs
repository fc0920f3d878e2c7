// LangChain JS as a client, with both APIs. A driver of the capabilities.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { City, Driver, Weather, main } from "./driver.mjs";

class Chat extends Driver {
  options = { model: this.call.model, apiKey: "none", configuration: { baseURL: this.call.url } };
  model = new ChatOpenAI(this.options);
  turn = [new HumanMessage(this.call.prompt)];

  async whole() {
    return (await this.model.invoke(this.turn)).text;
  }

  // The whole message of a stream.
  async last(stream) {
    let message;
    for await (const chunk of stream) {
      await this.saw(chunk.text);
      message = message ? message.concat(chunk) : chunk;
    }
    return message;
  }

  async stream() {
    return (await this.last(await this.model.stream(this.turn))).text;
  }

  async secondTurn() {
    const answer = await this.model.invoke(this.turn);
    return (await this.model.invoke([...this.turn, answer, new HumanMessage(this.call.second)])).text;
  }

  async tools(ask = (model, turn) => model.invoke(turn)) {
    const weather = tool(() => this.call.result, { name: "weather", description: "The weather.", schema: City });
    const model = this.model.bindTools([weather]);
    const answer = await ask(model, this.turn);
    const result = await weather.invoke(answer.tool_calls[0]);
    if (!(result instanceof ToolMessage)) throw new Error("no tool message");
    return (await ask(model, [...this.turn, answer, result])).text;
  }

  async toolsStreamed() {
    return this.tools(async (model, turn) => this.last(await model.stream(turn)));
  }

  async structuredOutput() {
    return await this.model.withStructuredOutput(Weather).invoke(this.turn);
  }

  async image() {
    const content = [
      { type: "text", text: this.call.prompt },
      { type: "image_url", image_url: { url: this.call.image } },
    ];
    return (await this.model.invoke([new HumanMessage({ content })])).text;
  }
}

class Responses extends Chat {
  model = new ChatOpenAI({ ...this.options, useResponsesApi: true });
}

await main({ "LangChain JS chat": Chat, "LangChain JS responses": Responses });
