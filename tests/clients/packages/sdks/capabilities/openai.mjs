// The openai package as a client: plain calls and the helpers. A driver of the capabilities.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { City, Driver, Weather, main } from "./driver.mjs";

const parameters = z.toJSONSchema(City);

class Plain extends Driver {
  client = new OpenAI({ baseURL: this.call.url, apiKey: "none" });
  turn = [{ role: "user", content: this.call.prompt }];

  async whole() {
    return this.textOf(await this.ask(this.turn));
  }

  async stream() {
    return this.textOf(await this.askStreamed(this.turn));
  }

  async secondTurn() {
    const answer = await this.ask(this.turn);
    return this.textOf(await this.ask([...this.turn, ...this.history(answer), { role: "user", content: this.call.second }]));
  }

  async tools(ask = this.ask) {
    const answer = await ask.call(this, this.turn, { tools: [this.tool] });
    return this.textOf(await ask.call(this, [...this.turn, ...this.result(answer)], { tools: [this.tool] }));
  }

  async toolsStreamed() {
    return this.tools(this.askStreamed);
  }

  async image() {
    return this.textOf(await this.ask([{ role: "user", content: this.imageParts }]));
  }
}

class Chat extends Plain {
  tool = { type: "function", function: { name: "weather", parameters } };
  imageParts = [
    { type: "text", text: this.call.prompt },
    { type: "image_url", image_url: { url: this.call.image } },
  ];

  request(messages, more) {
    return { model: this.call.model, messages, ...more };
  }

  async ask(messages, more) {
    return (await this.client.chat.completions.create(this.request(messages, more))).choices[0].message;
  }

  async askStreamed(messages, more) {
    const message = { role: "assistant", content: "" };
    const chunks = await this.client.chat.completions.create({ ...this.request(messages, more), stream: true });
    for await (const { choices } of chunks) {
      for (const { delta } of choices) {
        await this.saw(delta.content);
        message.content += delta.content ?? "";
        for (const piece of delta.tool_calls ?? []) {
          if (piece.id) message.tool_calls = [piece];
          else message.tool_calls[0].function.arguments += piece.function.arguments;
        }
      }
    }
    return message;
  }

  textOf = (message) => message.content;
  history = (message) => [message];

  result(message) {
    const [{ id }] = message.tool_calls;
    return [message, { role: "tool", tool_call_id: id, content: this.call.result }];
  }

  async structuredOutput() {
    const { content } = await this.ask(this.turn, { response_format: zodResponseFormat(Weather, "Weather") });
    return JSON.parse(content);
  }
}

class HelpedChat extends Chat {
  async askStreamed(messages, more) {
    const stream = this.client.chat.completions.stream(this.request(messages, more));
    stream.on("content", (piece) => this.saw(piece));
    return await stream.finalMessage();
  }

  async tools(stream = false) {
    const weather = {
      name: "weather",
      parameters,
      parse: JSON.parse,
      function: () => this.call.result,
    };
    const tools = [{ type: "function", function: weather }];
    return await this.client.chat.completions.runTools({ ...this.request(this.turn, { tools }), stream }).finalContent();
  }

  async toolsStreamed() {
    return this.tools(true);
  }

  async structuredOutput() {
    const more = { response_format: zodResponseFormat(Weather, "Weather") };
    return (await this.client.chat.completions.parse(this.request(this.turn, more))).choices[0].message.parsed;
  }
}

class Responses extends Plain {
  tool = { type: "function", name: "weather", parameters, strict: true };
  imageParts = [
    { type: "input_text", text: this.call.prompt },
    { type: "input_image", image_url: this.call.image, detail: "auto" },
  ];

  request(input, more) {
    return { model: this.call.model, input, ...more };
  }

  async ask(input, more) {
    return await this.client.responses.create(this.request(input, more));
  }

  async askStreamed(input, more) {
    let last;
    for await (const event of await this.client.responses.create({ ...this.request(input, more), stream: true })) {
      if (event.type === "response.output_text.delta") await this.saw(event.delta);
      last = event;
    }
    return last.response;
  }

  // The response of a stream's last event has no `output_text`.
  textOf = (response) => response.output.at(-1).content.map((part) => part.text).join("");
  history = (response) => response.output;

  result(response) {
    const { call_id } = response.output.find((item) => item.type === "function_call");
    return [...response.output, { type: "function_call_output", call_id, output: this.call.result }];
  }

  async structuredOutput() {
    return JSON.parse(this.textOf(await this.ask(this.turn, { text: { format: zodTextFormat(Weather, "Weather") } })));
  }
}

class HelpedResponses extends Responses {
  async askStreamed(input, more) {
    const stream = this.client.responses.stream(this.request(input, more));
    stream.on("response.output_text.delta", ({ delta }) => this.saw(delta));
    return await stream.finalResponse();
  }

  async secondTurn() {
    const { id } = await this.ask(this.turn);
    return this.textOf(await this.ask(this.call.second, { previous_response_id: id }));
  }

  async structuredOutput() {
    const more = { text: { format: zodTextFormat(Weather, "Weather") } };
    return (await this.client.responses.parse(this.request(this.turn, more))).output_parsed;
  }
}

await main({
  "openai-npm chat": Chat,
  "openai-npm chat, helpers": HelpedChat,
  "openai-npm responses": Responses,
  "openai-npm responses, helpers": HelpedResponses,
});
