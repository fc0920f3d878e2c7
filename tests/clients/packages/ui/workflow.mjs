// The transport of @ai-sdk/workflow, which resumes by the number of its chunks. Arguments: the URL of the API behind a
// proxy that cuts connections. Prints JSON.
import { Chat } from "@ai-sdk/react";
import { WorkflowChatTransport } from "@ai-sdk/workflow/client";

const [api] = process.argv.slice(2);
let requests = 0;
console.error = () => {}; // the transport reports each cut
const transport = new WorkflowChatTransport({
  api,
  maxConsecutiveErrors: 1000,
  fetch: (...request) => {
    requests += 1;
    return fetch(...request);
  },
  prepareSendMessagesRequest: ({ id, messages, body }) => ({
    headers: { "content-type": "application/json" },
    body: { id, messages, ...body },
  }),
});
const errors = [];
const chat = new Chat({ id: "flow", transport, onError: (error) => errors.push(error.message) });
await chat.sendMessage({ text: "Why?" }, { body: { reasoning: "high" } });
const tail = [];
const stream = await transport.reconnectToStream({ chatId: "flow", startIndex: -4 });
for await (const chunk of stream) tail.push(chunk.type);
console.log(JSON.stringify({ messages: chat.messages, status: chat.status, errors, requests, tail }));
