// The streams of this browser. Only their ids are kept here. Everything else is asked from the server.

import { api, hasKey } from "./api.js";
import { refusal, UNREACHABLE } from "./words.js";

const MAX_IDS = 50;

const read = () => JSON.parse(localStorage.getItem("streams") ?? "[]");

export function remember(id) {
  const ids = [id, ...read().filter((other) => other !== id)];
  localStorage.setItem("streams", JSON.stringify(ids.slice(0, MAX_IDS)));
}

// Fills the list with the streams that the server still has. `open(id)` is called for the one that the user picks.
export async function fill(list, open) {
  const ids = new Set(read());
  const response = await api("GET", "v1/streams").catch(() => null);
  if (!response?.ok) return list.replaceChildren(response ? await refusal(response, hasKey()) : UNREACHABLE);
  const streams = (await response.json()).data.filter(({ id }) => ids.has(id));
  list.replaceChildren(...streams.map((stream) => entry(stream, open)));
  if (!streams.length) list.append("The server has none of them now.");
}

function entry({ id, status, mode, created_at: createdAt }, open) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  const time = new Date(createdAt * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const code = document.createElement("code");
  code.textContent = id;
  button.append(`${time} · ${mode} · ${status} `, code);
  button.addEventListener("click", () => open(id));
  const item = document.createElement("li");
  item.append(button);
  return item;
}
