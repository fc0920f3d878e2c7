// A page's chat without the page: the Chat of @ai-sdk/react with the default transport, as `useChat` makes it.
// Arguments: the names of the two packages, because there are two major versions, the URL of the API, and the same URL
// behind a proxy that cuts connections. Prints JSON.
const [ai, react, api, cutApi] = process.argv.slice(2);
const { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } = await import(ai);
const { Chat } = await import(react);

function open(id, { url = api, messages = [], body = {}, ...more } = {}) {
  const log = { errors: [], finished: [] };
  const chat = new Chat({
    id,
    messages,
    transport: new DefaultChatTransport({ api: url, body: { reasoning: "high", ...body } }),
    onError: (error) => log.errors.push(error.message),
    onFinish: ({ finishReason, isAbort, isError }) => log.finished.push([finishReason ?? null, isAbort, isError]),
    ...more,
  });
  return { chat, log };
}
const seen = ({ chat, log }) => ({ messages: chat.messages, status: chat.status, ...log });
const until = async (condition) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
};
const text = (chat) =>
  (chat.lastMessage?.role === "assistant" ? chat.lastMessage.parts : [])
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");
const results = {};

// A question, its answer, and a page that comes later.
const asked = open("asked");
await asked.chat.sendMessage({ text: "Why?" });
await asked.chat.resumeStream();
results.asked = seen(asked);

// An image, and another answer to the same question.
const pictured = open("pictured");
const files = [{ type: "file", mediaType: "image/png", filename: "dot.png", url: "data:image/png;base64,AA==" }];
await pictured.chat.sendMessage({ text: "Image?", files });
const firstId = pictured.chat.lastMessage.id;
await pictured.chat.regenerate();
results.pictured = { isNew: pictured.chat.lastMessage.id !== firstId, ...seen(pictured) };

// Failures, after the answer has begun and before.
const failed = open("failed");
await failed.chat.sendMessage({ text: "Fail!" });
results.failed = seen(failed);
const refused = open("refused", { body: { model: "none" } });
await refused.chat.sendMessage({ text: "Why?" });
results.refused = seen(refused);

// The connection is cut again and again, and the page resumes each time.
const cut = open("cut", { url: cutApi });
await cut.chat.sendMessage({ text: "Why?" });
let cuts = 0;
while (cut.chat.status === "error" && cuts < 100) {
  cuts += 1;
  await cut.chat.resumeStream();
}
results.cut = { cuts, ...seen(cut) };

// The page is left in the middle. Another one, with the messages that the first one had stored, resumes.
const left = open("left");
void left.chat.sendMessage({ text: "Slow?" });
await until(() => text(left.chat).length > 3);
await left.chat.stop();
const back = open("left", { messages: left.chat.messages.slice(0, 1) });
await back.chat.resumeStream();
results.back = seen(back);
results.lengthWhenLeft = text(left.chat).length;

// The user stops the answer.
const stopped = open("stopped");
const sending = stopped.chat.sendMessage({ text: "Slow?" });
await until(() => text(stopped.chat).length > 3);
const watching = open("stopped");
const reading = watching.chat.resumeStream();
await until(() => text(watching.chat).length > 3);
results.stopStatus = (await fetch(`${api}/stopped/stop`, { method: "POST" })).status;
await Promise.all([sending, reading]);
results.stopped = seen(stopped);
results.watching = seen(watching);

// A tool of the page, whose result the model gets without another question. Then the page is reloaded.
const ran = [];
const tools = { weather: { inputSchema: { type: "object", properties: { city: { type: "string" } } } } };
const tooled = open("tooled", {
  body: { tools },
  sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
  onToolCall: ({ toolCall }) => {
    ran.push(toolCall.input);
    void tooled.chat.addToolOutput({ tool: toolCall.toolName, toolCallId: toolCall.toolCallId, output: { sky: "clear" } });
  },
});
await tooled.chat.sendMessage({ text: "Weather?" });
await until(() => text(tooled.chat).length > 3);
const kept = structuredClone(tooled.chat.messages);
await tooled.chat.stop();
const again = open("tooled", { messages: kept, body: { tools }, onToolCall: () => ran.push("again") });
await again.chat.resumeStream();
results.tooled = { ran, kept, ...seen(again) };

// Every kind of content.
const full = open("full", { body: { tools } });
await full.chat.sendMessage({ text: "Everything?" });
results.full = seen(full);

console.log(JSON.stringify(results));
