"""The wire of OpenAI's chat completions.

`ChatDialect` makes the chunks of a streamed completion, and `chat_completion` the one object of a completion that is
not streamed. Chunks have no numbers, so this wire has no cursor: a cut stream is read again from record 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, final

from msgspec import UNSET, UnsetType

from crucible_trio import sse
from crucible_trio.apis.kit.endings import Ending, ending_of
from crucible_trio.apis.kit.plain_dialect import PlainDialect
from crucible_trio.apis.openai.chat.objects import (
    CalledFunction,
    ChatCompletion,
    ChunkChoice,
    ChunkDelta,
    CompletionChoice,
    CompletionChunk,
    CompletionMessage,
    CompletionUsage,
    FunctionDelta,
    MessageToolCall,
    TokenLogprobs,
    ToolCallChunk,
    format_id,
    usage_of,
)
from crucible_trio.apis.openai.chat.upstream_fields import RepeatedFields, foreign_fields, json_members
from crucible_trio.apis.openai.errors import OpenAIErrorEvent, error_of
from crucible_trio.content import FieldsPlace
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCreated,
    Terminal,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    decode_frame,
    encode_json,
)
from crucible_trio.settings.apis import TraceField
from crucible_trio.snapshot import Snapshot

_DONE: Final = sse.encode_line(b"[DONE]")

# OpenAI's reasons. Some clients accept no others.
_FINISH_REASONS: Final[Mapping[Ending, str]] = {
    "cut": "length",
    "filtered": "content_filter",
    "calls": "tool_calls",
    "stopped": "stop",
}


@final
class ChatDialect(PlainDialect):
    """Makes the events of a streamed completion.

    They come in this order:

    * a chunk with the role
    * a chunk for each record of the trace
    * a chunk for each record of the answer, of a refusal, of a tool call, and of an upstream's fields
    * a chunk with the `finish_reason`
    * a chunk with the usage, if the request asks for it and the engine counted
    * `[DONE]`

    A stream that did not end well has an event with an `error` in place of the last three. The SDKs raise for it.

    Args:
        include_usage: Send the usage, and `"usage": null` in every other chunk.
        trace_field: The name of the trace.
    """

    def __init__(self, *, include_usage: bool = False, trace_field: TraceField = "reasoning_content") -> None:
        super().__init__()
        self._trace_field = trace_field
        self._include_usage = include_usage
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        self._id = ""
        self._created = 0
        self._model = ""
        self._repeated = RepeatedFields()
        self._open_calls = 0  # begun, and not whole
        self._whole_calls = 0

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Fold the records (`Dialect`)."""
        return b"".join(self._one(decode_frame(frame)) for frame in frames)

    def keep_alive(self) -> bytes:
        """A chunk with an empty delta (`Dialect`).

        Clients with a watchdog count events, and not comments. The chunk has no place in the log.
        """
        return self._delta(ChunkDelta())

    def _one(self, record: AnyRecord) -> bytes:
        match record:
            case StreamCreated():
                self._id, self._created = format_id(record.stream), int(record.created_at)
                self._model = record.model
                return self._delta(ChunkDelta(role="assistant", content=""))
            case ReasoningDelta(delta=text):
                content, reasoning = _trace_values(text, self._trace_field)
                return self._delta(ChunkDelta(reasoning_content=content, reasoning=reasoning))
            case OutputDelta(delta=text, logprobs=None):
                return self._delta(ChunkDelta(content=text))
            case OutputDelta(delta=text, logprobs=logprobs):
                return self._delta(ChunkDelta(content=text), logprobs=TokenLogprobs(logprobs or []))
            case RefusalDelta(delta=text):
                return self._delta(ChunkDelta(refusal=text))
            case ToolCallStarted():
                self._open_calls += 1
                started = ToolCallChunk(record.index, FunctionDelta("", record.name), record.id, "function")
                return self._delta(ChunkDelta(tool_calls=(started,)))
            case ToolCallDelta(index=index, delta=arguments):
                return self._delta(ChunkDelta(tool_calls=(ToolCallChunk(index, FunctionDelta(arguments)),)))
            case ToolCallDone():
                self._open_calls -= 1
                self._whole_calls += 1
                return b""
            case UpstreamFields(at=at, fields=fields):
                return self._upstream_fields(at, foreign_fields(at, fields))
        return self._end(record) if isinstance(record, TERMINAL) else b""

    def _delta(
        self, delta: ChunkDelta, finish_reason: str | None = None, logprobs: TokenLogprobs | UnsetType = UNSET
    ) -> bytes:
        return self._chunk((ChunkChoice(0, delta, finish_reason, logprobs),), self._no_usage)

    def _end(self, terminal: Terminal) -> bytes:
        error = error_of(terminal)
        if error is not None:
            return sse.encode_line(encode_json(OpenAIErrorEvent(error)))
        reason = _FINISH_REASONS[ending_of(terminal, whole_calls=self._whole_calls, open_calls=self._open_calls)]
        events = [self._delta(ChunkDelta(), reason)]
        if self._include_usage and (usage := usage_of(terminal.usage)) is not None:
            events.append(self._chunk((), usage))
        return b"".join([*events, _DONE])

    def _chunk(
        self,
        choices: tuple[ChunkChoice | dict[str, object], ...],
        usage: CompletionUsage | UnsetType | None,
        more: bytes = b"",
    ) -> bytes:
        chunk = CompletionChunk(self._id, "chat.completion.chunk", self._created, self._model, choices, usage)
        return sse.encode_line(encode_json(chunk)[:-1] + more + self._repeated.members + b"}")

    def _upstream_fields(self, at: FieldsPlace, fields: dict[str, object]) -> bytes:
        """A chunk with an empty delta and these fields. Those that every chunk repeats only come with the next one."""
        if at == "chunk":
            self._repeated.take(fields)
        if not fields:
            return b""
        choice: dict[str, object] = {"index": 0, "delta": fields if at == "delta" else {}, "finish_reason": None}
        if at == "choice":
            choice |= fields
        return self._chunk((choice,), self._no_usage, json_members(fields) if at == "chunk" else b"")


def chat_completion(
    snapshot: Snapshot, terminal: Terminal, logprobs: list[object], *, trace_field: TraceField = "reasoning_content"
) -> ChatCompletion:
    """Make one object of a stream that ended well.

    Args:
        snapshot: The stream.
        terminal: Its last record, for which `error_of` has no error.
        logprobs: The log probabilities of the whole answer (`logprobs_in`).
        trace_field: The name of the trace.
    """
    content, reasoning = _trace_values("".join(snapshot.trace), trace_field) if snapshot.trace else (UNSET, UNSET)
    whole = [call for call in snapshot.tool_calls if call.complete]
    calls = [MessageToolCall(call.id, CalledFunction(call.name, call.arguments)) for call in whole]
    message = CompletionMessage(
        "assistant",
        snapshot.output or (None if calls or snapshot.refusal else ""),
        snapshot.refusal,
        reasoning_content=content,
        reasoning=reasoning,
        tool_calls=calls or UNSET,
    )
    open_calls = len(snapshot.tool_calls) - len(whole)
    reason = _FINISH_REASONS[ending_of(terminal, whole_calls=len(whole), open_calls=open_calls)]
    usage = usage_of(terminal.usage)
    return ChatCompletion(
        id=format_id(snapshot.id),
        object="chat.completion",
        created=int(snapshot.created_at),
        model=snapshot.model,
        choices=(CompletionChoice(0, message, reason, TokenLogprobs(logprobs) if logprobs else None),),
        usage=UNSET if usage is None else usage,
    )


def logprobs_in(frames: Iterable[bytes]) -> list[object]:
    """All log probabilities in the records of a log."""
    logprobs: list[object] = []
    for frame in frames:
        if b'"logprobs":' in frame:  # nearly no frame has any, and decoding is expensive
            record = decode_frame(frame)
            if isinstance(record, OutputDelta):
                logprobs += record.logprobs or ()
    return logprobs


def _trace_values(trace: str, field: TraceField) -> tuple[str | UnsetType, str | UnsetType]:
    """The values of `reasoning_content` and `reasoning`."""
    return UNSET if field == "reasoning" else trace, UNSET if field == "reasoning_content" else trace
