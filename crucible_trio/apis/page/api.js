// Requests to the native API, with the key of this tab if there is one.

export const hasKey = () => Boolean(sessionStorage.getItem("key"));

export function keepKey(key) {
  sessionStorage.setItem("key", key);
}

export function api(method, url, body) {
  const headers = { Accept: "application/json" };
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem("key")}`;
  if (body) headers["Content-Type"] = "application/json";
  return fetch(url, { method, headers, body: body && JSON.stringify(body) });
}

// The JSON of the answer. Null if the server refused or cannot be reached.
export async function get(url) {
  const response = await api("GET", url).catch(() => null);
  return response?.ok ? response.json().catch(() => null) : null;
}
