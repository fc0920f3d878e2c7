// Sentences for the user: what the model does, what the page has checked, how a stream ended, why a request was refused.

export const UNREACHABLE = "The server cannot be reached.";

const REASONS = {
  max_output_tokens: "Ended early: the text reached its greatest length.",
  first_token_deadline: "Ended early: the model took too long to begin.",
  idle_deadline: "Ended early: the model fell silent for too long.",
  total_deadline: "Ended early: it took too long in all.",
  log_limit: "Ended early: the stream reached the most that the server keeps.",
};

const CANCELLED = {
  client: "Stopped.",
  disconnect: "Stopped: no client was reading.",
  shutdown: "Stopped: the server shut down.",
};

const ACTIVITIES = {
  generating: "The model is generating.",
  queued: "The model is busy. This stream waits for its turn.",
  waiting: "The buffer is full: the model waits for this reader.",
  paused: "The model is paused: it waits for a reader.",
  ended: "The model has finished.",
};

// By the status of the stream, if the model has not come to its end.
const UNFINISHED = {
  incomplete: "The model ended early.",
  failed: "The model failed.",
  cancelled: "The model was stopped.",
};

export const activityWords = (activity, status) =>
  (activity === "ended" && UNFINISHED[status]) || (ACTIVITIES[activity] ?? "");

// What the numbers of the records that came prove. `isWhole`: the stream has ended, and `isSame`: the page's text is the
// text in the server's log. Null: the log was not asked.
export function verdict({ seq, holes, repeats, exact }, isWhole, isSame) {
  const range = seq === 1 ? "Record 1" : `Records 1 to ${seq}`;
  if (holes.length) return `Record ${holes[0]} is missing.`;
  if (repeats.length) return `Record ${repeats[0]} came twice.`;
  if (isSame === false) return `${range} came once each, but the text differs from the server's log.`;
  if (!exact || !seq) return "";
  const end = isSame ? " The text equals the server's log." : "";
  return `${range}${isWhole ? "" : " so far"}, each exactly once.${end}`;
}

// How a stream ended: `record` is its terminal record.
export function ending({ type, reason, error, by, finish_reason: finishReason }) {
  if (type === "stream.failed") return `It failed: ${error.message}${error.retryable ? " Asking again may help." : ""}`;
  if (type === "stream.cancelled") return CANCELLED[by] ?? `Stopped: ${by}.`;
  if (type === "stream.incomplete") return REASONS[reason] ?? `Ended early: ${reason}.`;
  if (finishReason === "tool_calls") return "Done: the model waits for the results of its tool calls.";
  return finishReason === "stop" ? "Done." : `Done (${finishReason}).`;
}

// Why a request was refused. `hadKey`: whether it was sent with a key.
export async function refusal(response, hadKey) {
  const { error } = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const later = wait ? `Try again in ${wait} seconds.` : "Try again later.";
  switch (response.status) {
    case 401: return hadKey ? "The server does not know this key." : "This server needs a key.";
    case 413: return "The question is too long for this server.";
    case 429: return `You have as many streams running as you may have. ${later}`;
    case 503: return `${error?.code === "draining" ? "The server is shutting down." : "The server is full."} ${later}`;
    default: return `The server refused this: ${error?.message ?? `status ${response.status}`}.`;
  }
}
