"""A stream's content and state at one moment, folded from its log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.content import FieldsPlace
from crucible_trio.records import (
    TERMINAL,
    CancelledBy,
    ErrorInfo,
    IncompleteReason,
    Mode,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    Usage,
    decode_frame,
)

Status: TypeAlias = Literal["running", "completed", "incomplete", "failed", "cancelled"]
Activity: TypeAlias = Literal["generating", "queued", "waiting", "paused", "ended"]

_STATUS: Final[dict[type[Terminal], Status]] = {
    StreamCompleted: "completed",
    StreamIncomplete: "incomplete",
    StreamFailed: "failed",
    StreamCancelled: "cancelled",
}


def status_of(terminal: Terminal) -> Status:
    """The status of a stream that ended with this record."""
    return _STATUS[type(terminal)]


@final
class SnapshotToolCall(msgspec.Struct, kw_only=True):
    """A tool call in a snapshot.

    Attributes:
        index: Counts the stream's calls from 0.
        id: The call's id.
        name: The tool's name.
        arguments: The arguments so far, as the model wrote them.
        complete: Whether the model has ended the call.
    """

    index: int
    id: str
    name: str
    arguments: str = ""
    complete: bool = False


@final
class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an engine is ahead of its log.

    Attributes:
        activity: The engine's state. `queued`: it waits for a slot of the model. `waiting`: the buffer is full, and the
            engine waits for a reader that is attached. `paused`: it waits for a reader to attach.
        pieces: Pieces that the engine has written. A piece is often one token.
        buffered: How many of them are not in the log yet.
    """

    activity: Activity
    pieces: int
    buffered: int


@final
class Snapshot(msgspec.Struct, kw_only=True):
    """The content of a log up to `last_seq`, exactly.

    Attributes:
        paused: Whether the stream waits for a reader.
        progress: How far the engine is ahead. None where the stream's producer does not say.
        output: The answer so far.
        trace: The reasoning so far, by segment.
        refusal: The refusal so far. None where the model has not refused.
        tool_calls: The tool calls so far.
        upstream_fields: The last value of each field that an upstream server sent and this server does not interpret,
            by its place.
        finish_reason: Why a completed stream ended.
        reason: The limit that ended an incomplete stream.
        error: Why a failed stream failed.
        by: Who or what cancelled a stream.
    """

    id: str = ""
    status: Status
    paused: bool = False
    progress: Progress | None = None
    mode: Mode
    model: str
    created_at: float
    last_seq: int
    output: str
    trace: list[str]
    refusal: str | None = None
    tool_calls: list[SnapshotToolCall] = []
    upstream_fields: dict[FieldsPlace, dict[str, object]] = {}
    finish_reason: str | None = None
    reason: IncompleteReason | None = None
    error: ErrorInfo | None = None
    by: CancelledBy | None = None
    usage: Usage | None = None
    timings: Timings | None = None


def fold(frames: Iterable[bytes]) -> Snapshot:
    """Fold a log from record 1 on."""
    output: list[str] = []
    trace: list[list[str]] = []
    refusal: list[str] = []
    calls: list[SnapshotToolCall] = []
    arguments: list[list[str]] = []
    snapshot = Snapshot(status="running", mode="standard", model="", created_at=0.0, last_seq=0, output="", trace=[])
    for frame in frames:
        record = decode_frame(frame)
        snapshot.last_seq = record.seq
        match record:
            case StreamCreated():
                snapshot.id, snapshot.mode = record.stream, record.mode
                snapshot.model, snapshot.created_at = record.model, record.created_at
            case ReasoningDelta():
                while record.segment >= len(trace):  # a cancelled call may have left out the piece that opened one
                    trace.append([])
                trace[record.segment].append(record.delta)
            case OutputDelta():
                output.append(record.delta)
            case RefusalDelta():
                refusal.append(record.delta)
            case ToolCallStarted():
                calls.append(SnapshotToolCall(index=record.index, id=record.id, name=record.name))
                arguments.append([])
            case ToolCallDelta():
                arguments[record.index].append(record.delta)
            case ToolCallDone():
                calls[record.index].complete = True
            case UpstreamFields():
                snapshot.upstream_fields.setdefault(record.at, {}).update(record.fields)
            case StreamCompleted():
                snapshot.finish_reason = record.finish_reason
            case StreamIncomplete():
                snapshot.reason = record.reason
            case StreamFailed():
                snapshot.error = record.error
            case StreamCancelled():
                snapshot.by = record.by
        if isinstance(record, TERMINAL):
            snapshot.status = status_of(record)
            snapshot.usage, snapshot.timings = record.usage, record.timings
    snapshot.output = "".join(output)
    snapshot.trace = ["".join(pieces) for pieces in trace]
    snapshot.refusal = "".join(refusal) if refusal else None
    for call, pieces in zip(calls, arguments, strict=True):
        call.arguments = "".join(pieces)
    snapshot.tool_calls = calls
    return snapshot
