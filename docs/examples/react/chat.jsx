// A chat page that survives reloads and lost connections. docs/howto/react.md explains it.
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

// A page of another origin sets these two before it loads this file.
const { api = "/v1/ui/chat", headers = {} } = window.chatSettings ?? {};

// The chat's id is in the address, so a reload and a second tab show the same chat.
const address = new URL(location.href);
if (!address.searchParams.has("chat")) {
  address.searchParams.set("chat", crypto.randomUUID());
  history.replaceState(null, "", address);
}
const id = address.searchParams.get("chat");

function Chat() {
  const { messages, status, error, sendMessage, resumeStream } = useChat({
    id,
    messages: JSON.parse(localStorage.getItem(id) ?? "[]"),
    resume: true,
    transport: new DefaultChatTransport({ api, headers, body: { reasoning: "high" } }),
  });
  const [question, setQuestion] = useState("");

  useEffect(() => localStorage.setItem(id, JSON.stringify(messages)), [messages]);

  // The browser reports a lost connection as a TypeError. After an error of the server, trying again does not help.
  useEffect(() => {
    if (!(error instanceof TypeError)) return;
    const timer = setTimeout(() => void resumeStream(), 500);
    return () => clearTimeout(timer);
  }, [error, resumeStream]);

  const ask = (event) => {
    event.preventDefault();
    void sendMessage({ text: question });
    setQuestion("");
  };
  // The hook's own `stop` only closes the connection, and the model would continue.
  const stop = () => void fetch(`${api}/${encodeURIComponent(id)}/stop`, { method: "POST", headers });

  return (
    <>
      {messages.map((message) => (
        <article key={message.id} aria-label={message.role}>
          {message.parts.map((part, index) => (
            <Part key={index} part={part} />
          ))}
        </article>
      ))}
      <p role="status">{status === "error" ? error.message : status}</p>
      <form onSubmit={ask}>
        <input aria-label="Question" value={question} onChange={(event) => setQuestion(event.target.value)} />
        <button>Ask</button>
        <button type="button" onClick={stop}>
          Stop
        </button>
      </form>
    </>
  );
}

function Part({ part }) {
  if (part.type === "text") return <p className="text">{part.text}</p>;
  if (part.type === "reasoning")
    return (
      <details open={part.state === "streaming"}>
        <summary>Reasoning</summary>
        <p className="reasoning">{part.text}</p>
      </details>
    );
  return null;
}

createRoot(document.getElementById("root")).render(<Chat />);
