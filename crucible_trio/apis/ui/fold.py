"""The wire of the AI SDK's UI message stream.

Chunks have no ids, so a reader begins with the first one, or leaves out as many as it has (`skip`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias, final

import msgspec
from msgspec import UNSET, UnsetType

from crucible_trio import sse
from crucible_trio.apis.kit.endings import Ending, ending_of
from crucible_trio.apis.kit.failures import CANCELLED_MESSAGES, CUT_TO_LENGTH, DEADLINE_MESSAGES
from crucible_trio.apis.kit.ids import with_prefix
from crucible_trio.apis.kit.plain_dialect import PlainDialect
from crucible_trio.apis.ui import chunks
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCancelled,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    Usage,
    decode_frame,
    encode_json,
)

# A comment with a blank line, as the AI SDK's examples send it.
_PING: Final = b": ping\n\n"

_FINISH_REASONS: Final[Mapping[Ending, chunks.FinishReason]] = {
    "cut": "length",
    "filtered": "content-filter",
    "calls": "tool-calls",
    "stopped": "stop",
}

_NOT_JSON: Final = "The arguments of this call are not valid JSON."


_Kind: TypeAlias = Literal["text", "refusal", "reasoning"]


class _OpenPart(NamedTuple):
    kind: _Kind
    segment: int  # of the trace
    id: str


class _Call(NamedTuple):
    id: str
    name: str
    arguments: list[str]


@final
class UIDialect(PlainDialect):
    """Makes the chunks of one stream (`Dialect`).

    They come in this order:

    * `start`, with the id of the message, and `start-step`
    * for each segment of the trace, each run of text and each tool call: its start, its deltas and its end
    * `finish-step` and `finish` with the reason

    A stream that failed has an `error` before `finish`, and one that a client stopped has an `abort`. A call that broke
    off has no end. A body that ends without `finish` was cut.

    Attributes:
        chunks_made: The number of chunks so far, including those that were left out.

    Args:
        message_id: The id of the message. None: one made of the stream's id.
        tools: The tools that the request declared.
        skip: How many chunks the reader has.
        earlier: Encoded chunks of the message from before this stream, which go between `start` and `start-step`.
    """

    def __init__(
        self,
        *,
        message_id: str | None = None,
        tools: Collection[str] = (),
        skip: int = 0,
        earlier: Sequence[msgspec.Raw] = (),
    ) -> None:
        super().__init__()
        self.chunks_made = 0
        self._message_id = message_id
        self._tools = tools
        self._skip = skip
        self._earlier = earlier
        self._parts = 0  # text and segments so far
        self._open: _OpenPart | None = None
        self._call = _Call("", "", [])  # the last one
        self._open_calls = 0
        self._whole_calls = 0

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Fold the records (`Dialect`)."""
        return b"".join(map(self._one, frames))

    def keep_alive(self) -> bytes:
        """A comment (`Dialect`)."""
        return _PING

    def _one(self, frame: bytes) -> bytes:
        record = decode_frame(frame)
        events: list[bytes] = []
        for chunk in self._chunks(record):
            self.chunks_made += 1
            if self.chunks_made > self._skip:
                events.append(sse.encode_line(encode_json(chunk)))
        if isinstance(record, TERMINAL):
            events.append(chunks.DONE)
        return b"".join(events)

    def _chunks(self, record: AnyRecord) -> Iterator[chunks.Chunk | msgspec.Raw]:
        match record:
            case StreamCreated():
                metadata = chunks.StartMetadata(record.model, record.stream, int(record.created_at * 1000))
                message_id = self._message_id or format_message_id(record.stream)
                yield chunks.Start(message_id=message_id, message_metadata=metadata)
                yield from self._earlier
                yield chunks.StartStep()
            case ReasoningDelta(segment=segment, delta=text):
                yield from self._begin("reasoning", segment)
                yield chunks.ReasoningDelta(id=self._part_id, delta=text)
            case OutputDelta(delta=text) if text:
                yield from self._begin("text")
                yield chunks.TextDelta(id=self._part_id, delta=text)
            case RefusalDelta(delta=text):
                yield from self._begin("refusal")
                yield chunks.TextDelta(id=self._part_id, delta=text)
            case ToolCallStarted(id=call_id, name=name):
                yield from self._end_part()
                self._open_calls += 1
                self._call = _Call(call_id, name, [])
                yield chunks.ToolInputStart(tool_call_id=call_id, tool_name=name, dynamic=self._is_dynamic(name))
            case ToolCallDelta(delta=text):
                self._call.arguments.append(text)
                yield chunks.ToolInputDelta(tool_call_id=self._call.id, input_text_delta=text)
            case ToolCallDone():
                self._open_calls -= 1
                self._whole_calls += 1
                yield self._whole_call()
        if isinstance(record, TERMINAL):
            yield from self._end(record)

    def _begin(self, kind: _Kind, segment: int = 0) -> Iterator[chunks.Chunk]:
        """Begin a part, unless the open one goes on."""
        if self._open is not None and (self._open.kind, self._open.segment) == (kind, segment):
            return
        yield from self._end_part()
        self._parts += 1
        part_id = str(self._parts)
        self._open = _OpenPart(kind, segment, part_id)
        yield chunks.ReasoningStart(id=part_id) if kind == "reasoning" else chunks.TextStart(id=part_id)

    def _end_part(self) -> Iterator[chunks.Chunk]:
        part, self._open = self._open, None
        if part is not None:
            yield chunks.ReasoningEnd(id=part.id) if part.kind == "reasoning" else chunks.TextEnd(id=part.id)

    @property
    def _part_id(self) -> str:
        assert self._open is not None
        return self._open.id

    def _is_dynamic(self, name: str) -> bool | UnsetType:
        return UNSET if name in self._tools else True

    def _whole_call(self) -> chunks.Chunk:
        call_id, name, pieces = self._call
        arguments = "".join(pieces)
        dynamic = self._is_dynamic(name)
        value = one_line_json(arguments)
        if value is None:
            return chunks.ToolInputError(
                tool_call_id=call_id, tool_name=name, input=arguments, error_text=_NOT_JSON, dynamic=dynamic
            )
        return chunks.ToolInputAvailable(tool_call_id=call_id, tool_name=name, input=value, dynamic=dynamic)

    def _end(self, terminal: Terminal) -> Iterator[chunks.Chunk]:
        """The end of the stream. A part that broke off has no end, so the page can show that it is not whole."""
        reason: chunks.FinishReason = "error"
        match terminal:
            case StreamFailed(error=error):
                yield chunks.Error(error_text=_words(error))
            case StreamIncomplete(reason=limit) if limit not in CUT_TO_LENGTH:
                yield chunks.Error(error_text=DEADLINE_MESSAGES[limit])
            case StreamCancelled(by="client"):
                yield chunks.Abort(reason=CANCELLED_MESSAGES["client"])
                reason = "other"
            case StreamCancelled(by=by):
                yield chunks.Error(error_text=CANCELLED_MESSAGES[by])
            case _:
                yield from self._end_part()
                yield chunks.FinishStep()
                reason = _FINISH_REASONS[
                    ending_of(terminal, whole_calls=self._whole_calls, open_calls=self._open_calls)
                ]
        yield chunks.Finish(finish_reason=reason, message_metadata=_metadata(terminal.usage))


def format_message_id(stream_id: str) -> str:
    """The id of a message, from the id of its stream."""
    return with_prefix("msg_", stream_id)


def one_line_json(text: str) -> msgspec.Raw | None:
    """A JSON text without line ends, and with its numbers as they are. Empty text counts as `{}`.

    Returns:
        None for a text that is not JSON.
    """
    data = text.encode() or b"{}"
    try:
        msgspec.json.decode(data)
        return msgspec.Raw(msgspec.json.format(data, indent=-1))
    except (msgspec.DecodeError, RecursionError):
        return None


def _words(error: ErrorInfo) -> str:
    """The message of a failure, in the upstream's words if it blamed the request."""
    blames_request = error.status is not None and 400 <= error.status < 500
    said = error.upstream.message if error.upstream is not None and blames_request else None
    return said or error.message


def _metadata(usage: Usage) -> chunks.FinishMetadata | UnsetType:
    if usage == Usage():
        return UNSET
    counts = (usage.input_tokens, usage.output_tokens)
    total = None if None in counts else sum(count or 0 for count in counts)
    known = [UNSET if count is None else count for count in (*counts, total, usage.reasoning_tokens)]
    return chunks.FinishMetadata(chunks.MessageUsage(*known))
