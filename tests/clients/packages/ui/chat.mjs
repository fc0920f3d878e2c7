// A page's chat without the page: the Chat of @ai-sdk/react with the default transport, as `useChat` makes it.
// Arguments: the names of the two packages, because there are two major versions, and the URL of the API. Prints JSON.
const [ai, react, api] = process.argv.slice(2);
const { DefaultChatTransport } = await import(ai);
const { Chat } = await import(react);

const errors = [];
const finished = [];
const chat = new Chat({
  id: "chat 1",
  transport: new DefaultChatTransport({ api, body: { reasoning: "high" } }),
  onError: (error) => errors.push(error.message),
  onFinish: ({ finishReason, isAbort, isDisconnect, isError }) =>
    finished.push({ finishReason, isAbort, isDisconnect, isError }),
});
await chat.sendMessage({ text: "Why?" });
const first = structuredClone(chat.messages);
await chat.sendMessage({ text: "Fail!" });
console.log(JSON.stringify({ first, messages: chat.messages, status: chat.status, errors, finished }));
