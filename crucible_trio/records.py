"""The records of a stream, their JSON, their frames and their ids.

A log holds frames. A frame is a record's bytes on the native wire: `encode_frame` makes one, and `decode_frame` gives
the record back. Source of the shapes: docs/reference/protocol.md.
"""

from __future__ import annotations

import re
import secrets
from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio import sse
from crucible_trio.content import FieldsPlace
from crucible_trio.errors import InvalidLastEventIdError, UpstreamReport

Mode: TypeAlias = Literal["standard", "deep"]
IncompleteReason: TypeAlias = Literal[
    "max_output_tokens", "first_token_deadline", "idle_deadline", "total_deadline", "log_limit"
]
CancelledBy: TypeAlias = Literal["client", "disconnect", "shutdown"]


@final
class Usage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them. None where it did not count, because the server never guesses."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


@final
class Timings(msgspec.Struct, frozen=True):
    """Milliseconds since the stream was accepted. `first_token_ms` is None when the engine wrote nothing."""

    first_token_ms: float | None
    total_ms: float


@final
class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a stream failed: the facts of an `EngineError`."""

    code: str
    message: str
    retryable: bool
    status: int | None = None
    retry_after: float | None = None
    upstream: UpstreamReport | None = None


class Record(msgspec.Struct, frozen=True, tag_field="type"):
    """One entry of a log. `seq` counts from 1 without holes."""

    seq: int


@final
class StreamCreated(Record, frozen=True, tag="stream.created"):
    """Always record 1, in the log before the engine is called. `created_at` is Unix time in seconds."""

    stream: str
    mode: Mode
    model: str
    created_at: float


@final
class ReasoningDelta(Record, frozen=True, tag="reasoning.delta"):
    """A piece of the reasoning trace. Segments count from 0 and never go back."""

    segment: int
    delta: str


@final
class ReasoningDone(Record, frozen=True, tag="reasoning.done", omit_defaults=True):
    """The trace has stopped, or pauses for another kind of content.

    Attributes:
        segments: How many segments there were since the last `reasoning.done`.
        trace: Their texts. Never in a log: the view `trace=final` fills it in.
    """

    segments: int
    trace: list[str] | None = None


@final
class OutputDelta(Record, frozen=True, tag="output.delta", omit_defaults=True):
    """A piece of the answer.

    Attributes:
        delta: Its text. Empty where the log probabilities of a piece need another record.
        logprobs: Log probabilities of its tokens, as the engine gave them.
    """

    delta: str
    logprobs: list[object] | None = None


@final
class RefusalDelta(Record, frozen=True, tag="refusal.delta"):
    """A piece of the text with which the model refuses to answer."""

    delta: str


@final
class ToolCallStarted(Record, frozen=True, tag="tool_call.started"):
    """The model calls a tool. `index` counts the calls of a stream from 0.

    The arguments follow before any record of another kind.
    """

    index: int
    id: str
    name: str


@final
class ToolCallDelta(Record, frozen=True, tag="tool_call.delta"):
    """A piece of the call's arguments."""

    index: int
    delta: str


@final
class ToolCallDone(Record, frozen=True, tag="tool_call.done"):
    """The model has ended the call. A call without this record is not whole."""

    index: int


@final
class StreamContinued(Record, frozen=True, tag="stream.continued"):
    """The connection to the model was lost here, and a second request goes on with the answer.

    Attributes:
        characters: The length of the answer so far, in Unicode characters.
    """

    characters: int


@final
class UpstreamFields(Record, frozen=True, tag="upstream.fields"):
    """Fields of an upstream server's chunk that this server does not interpret. They can stand between any records.

    Attributes:
        at: Where they stood.
        fields: The fields as the server sent them. They replace earlier values of the same names.
    """

    at: FieldsPlace
    fields: dict[str, object]


@final
class StreamCompleted(Record, frozen=True, tag="stream.completed", omit_defaults=True):
    """The engine finished.

    Attributes:
        stop_string: The stop string of the request that ended the answer, where the engine knows it.
    """

    finish_reason: str
    usage: Usage
    timings: Timings
    stop_string: str | None = None


@final
class StreamIncomplete(Record, frozen=True, tag="stream.incomplete"):
    """A limit ended the stream. The log has everything up to then."""

    reason: IncompleteReason
    usage: Usage
    timings: Timings


@final
class StreamFailed(Record, frozen=True, tag="stream.failed"):
    """The engine failed. The log has everything up to then."""

    error: ErrorInfo
    usage: Usage
    timings: Timings


@final
class StreamCancelled(Record, frozen=True, tag="stream.cancelled"):
    """Cancelled by a client, by disconnection or by shutdown."""

    by: CancelledBy
    usage: Usage
    timings: Timings


@final
class UnknownRecord(Record, frozen=True):
    """A record of a type that only a later version knows, in a log that processes of both versions read.

    The native wire passes its bytes on. Everything else skips it. A later version that needs more than that gives its
    logs another schema number.
    """


@final
class ServerDraining(msgspec.Struct, frozen=True, tag_field="type", tag="server.draining"):
    """Out-of-band event: the server is shutting down. The stream still ends with its terminal record."""

    reconnect_in_ms: int


@final
class ServerBusy(msgspec.Struct, frozen=True, tag_field="type", tag="server.busy"):
    """Out-of-band event: the stream has too many readers, so the client should reconnect later."""

    reconnect_in_ms: int


Terminal: TypeAlias = StreamCompleted | StreamIncomplete | StreamFailed | StreamCancelled
_KnownRecord: TypeAlias = (
    StreamCreated
    | ReasoningDelta
    | ReasoningDone
    | OutputDelta
    | RefusalDelta
    | ToolCallStarted
    | ToolCallDelta
    | ToolCallDone
    | StreamContinued
    | UpstreamFields
    | Terminal
)
AnyRecord: TypeAlias = _KnownRecord | UnknownRecord
Control: TypeAlias = ServerDraining | ServerBusy

TERMINAL: Final = (StreamCompleted, StreamIncomplete, StreamFailed, StreamCancelled)
CONTROL: Final = (ServerDraining, ServerBusy)


class _Numbered(msgspec.Struct):
    seq: int


# How deep the JSON of others may be nested. Near Python's recursion limit it could be decoded in one place, and not be
# encoded again in another.
MAX_DEPTH: Final = 100

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[_KnownRecord] = msgspec.json.Decoder(_KnownRecord)
_event_decoder: msgspec.json.Decoder[_KnownRecord | Control] = msgspec.json.Decoder(_KnownRecord | Control)
_seq_decoder = msgspec.json.Decoder(_Numbered)

# U+0080 to U+009F, U+2028 and U+2029 in UTF-8. Older line splitters in the httpx family break lines there. JSON allows
# them in strings only, where an escape means the same.
_BREAKS_LINES = re.compile(rb"\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")


def encode_json(value: msgspec.Struct | msgspec.Raw) -> bytes:
    """Encode as one line of JSON that no client's line splitter breaks."""
    encoded = _encoder.encode(value)
    if encoded.isascii():
        return encoded
    return _BREAKS_LINES.sub(lambda match: rb"\u%04x" % ord(match[0].decode()), encoded)


def is_deeper(value: object) -> bool:
    """Whether lists and dicts are nested deeper than `MAX_DEPTH` levels. Does not recurse."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list | tuple)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:  # nearly always after a few levels, and requests with thousands of tools ask for each tool
            return False
    return any(isinstance(value, dict | list | tuple) for value in level)


def encode_frame(stream_id: str, record: AnyRecord) -> bytes:
    """The bytes of a record on the native wire: JSON on one `data` line, its id, a blank line."""
    return sse.encode_line(encode_json(record), format_event_id(stream_id, record.seq))


def encode_control(event: Control) -> bytes:
    """The bytes of an out-of-band event. It has no id, so a client keeps its last one."""
    return sse.encode_line(encode_json(event))


def decode_frame(frame: bytes) -> AnyRecord:
    """The record that `encode_frame` was given. A type that this version does not know is an `UnknownRecord`."""
    data = frame[len(b"data: ") : frame.rindex(b"\nid: ")]
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        return UnknownRecord(_seq_decoder.decode(data).seq)


def decode_event(data: str | bytes) -> AnyRecord | Control:
    """Read the `data` of an event, as a client does.

    Raises:
        msgspec.DecodeError: The data is not one of our events.
    """
    return _event_decoder.decode(data)


STREAM_PREFIX: Final = "str_"
"""The beginning of every stream's id. 128 random bits follow: the id alone finds the stream, and cannot be guessed."""

_STREAM_ID = re.compile(STREAM_PREFIX + r"[A-Za-z0-9_-]{22}")

# Longer than any id that this server sends, shorter than the limits of proxies for a header.
MAX_EVENT_ID_LENGTH: Final = 200


def new_stream_id() -> str:
    """A new id: ASCII letters, digits, `_` and `-`."""
    return STREAM_PREFIX + secrets.token_urlsafe(16)


def is_stream_id(text: str) -> bool:
    """Whether this server can have made such an id."""
    return _STREAM_ID.fullmatch(text) is not None


def format_event_id(stream_id: str, seq: int) -> str:
    """The id a client sends back as `Last-Event-ID`."""
    return f"{stream_id}.{seq}"


def parse_event_id(text: str) -> tuple[str, int]:
    """Split an event id at its last dot.

    Returns:
        The stream's id, and the offset: the `seq` of the last record that the client received, 0 for none.

    Raises:
        InvalidLastEventIdError: This server cannot have sent it.
    """
    stream_id, dot, seq = text.rpartition(".")
    if len(text) > MAX_EVENT_ID_LENGTH or not dot or not is_stream_id(stream_id):
        raise InvalidLastEventIdError
    if not (seq.isascii() and seq.isdigit()) or (seq != "0" and seq.startswith("0")):
        raise InvalidLastEventIdError
    return stream_id, int(seq)
