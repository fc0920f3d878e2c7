"""The native wire: one record is one frame, which the recorder encoded once for all readers.

A client resumes by `Last-Event-ID`, from which the route takes the offset. Offsets are the log's in every view, so an
offset from one view is valid in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import msgspec
import trio

from crucible_trio import sse
from crucible_trio.apis.kit.dialect import Dialect
from crucible_trio.apis.kit.replay import FOLD_BYTES
from crucible_trio.log.contract import LogReader
from crucible_trio.records import (
    ReasoningDelta,
    ReasoningDone,
    ServerBusy,
    ServerDraining,
    StreamCreated,
    decode_frame,
    encode_control,
    encode_frame,
)
from crucible_trio.request import Trace


async def open_dialect(trace: Trace, log: LogReader, after: int, *, retry_milliseconds: int) -> Dialect:
    """Open one reader's view of a log.

    Args:
        trace: `segments`: all records. `final`: no `reasoning.delta`, but `reasoning.done` has the texts. `none`: no
            reasoning records.
        log: The log.
        after: The offset up to which the reader has everything.
        retry_milliseconds: When a client should reconnect.

    Checkpoints: while it folds earlier records, so that a long log does not block other tasks. Cancellation: safe.
    """
    if trace == "segments":
        return SegmentsDialect(after, retry_milliseconds)
    if trace == "none":
        return NoTraceDialect(after, retry_milliseconds)
    dialect = FinalTraceDialect(after, retry_milliseconds)
    offset = 0
    while offset < after:
        frames = log.read(offset, FOLD_BYTES)[: after - offset]
        dialect.feed(frames)
        offset += len(frames)
        await trio.lowlevel.checkpoint()
    return dialect


class NativeDialect:
    """The shared part of all views of the native wire. Subclasses add `feed`."""

    def __init__(self, resume_offset: int, retry_milliseconds: int) -> None:
        self.resume_offset = resume_offset
        self._retry_milliseconds = retry_milliseconds

    def opening(self) -> bytes:
        """The `retry:` line (`Dialect`)."""
        return sse.retry_line(self._retry_milliseconds)

    def keep_alive(self) -> bytes:
        """A comment line (`Dialect`)."""
        return sse.HEARTBEAT

    def draining(self) -> bytes:
        """`server.draining` (`Dialect`)."""
        return encode_control(ServerDraining(self._retry_milliseconds))

    def busy(self) -> bytes:
        """`server.busy` (`Dialect`)."""
        return encode_control(ServerBusy(self._retry_milliseconds))


class SegmentsDialect(NativeDialect):
    """All records."""

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Join the frames (`Dialect`)."""
        return b"".join(frames)


@final
class NoTraceDialect(NativeDialect):
    """All records but those of the reasoning."""

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Join the frames that are visible (`Dialect`)."""
        hidden = (ReasoningDelta, ReasoningDone)
        return b"".join(frame for frame in frames if not isinstance(decode_frame(frame), hidden))


@final
class FinalTraceDialect(NativeDialect):
    """No `reasoning.delta`. Each `reasoning.done` has the texts since the one before it."""

    def __init__(self, resume_offset: int, retry_milliseconds: int) -> None:
        super().__init__(resume_offset, retry_milliseconds)
        self._stream_id = ""
        self._segments: dict[int, list[str]] = {}  # since the last `reasoning.done`

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Fold the records (`Dialect`)."""
        return b"".join(map(self._one, frames))

    def _one(self, frame: bytes) -> bytes:
        match decode_frame(frame):
            case StreamCreated(stream=stream):
                self._stream_id = stream
            case ReasoningDelta(segment=segment, delta=delta):
                self._segments.setdefault(segment, []).append(delta)
                return b""
            case ReasoningDone() as done:
                trace = ["".join(pieces) for pieces in self._segments.values()]
                self._segments.clear()
                return encode_frame(self._stream_id, msgspec.structs.replace(done, trace=trace))
        return frame
