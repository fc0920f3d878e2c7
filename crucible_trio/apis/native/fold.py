"""The native wire: one record, one frame, encoded once by the recorder and shared by all readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, final

import msgspec
import trio

from crucible_trio.dialects import Dialect
from crucible_trio.engine import Trace
from crucible_trio.log import MemoryLog
from crucible_trio.records import ReasoningDelta, ReasoningDone, StreamCreated, decode_frame, encode_frame

# What is folded at a time when a view resumes in the middle of a log.
_FOLD_BYTES: Final = 64 * 1024


async def open_view(trace: Trace, log: MemoryLog, after: int) -> Dialect:
    """A reader's view of a log, ready for the record after a position.

    Args:
        trace: `segments`: all records. `final`: no `reasoning.delta`; `reasoning.done` carries the texts. `none`:
            neither. Positions are the log's in every view, so one view's cursor is valid in another.
        log: The log.
        after: The position up to which the reader has everything.

    Checkpoints: where it folds what came before, so that a long log holds nobody up. Cancellation: safe.
    """
    if trace == "segments":
        return _Segments()
    if trace == "none":
        return _NoTrace()
    fold = _Final()
    position = 0
    while position < after:
        frames = log.read(position, _FOLD_BYTES)[: after - position]
        fold.feed(frames)
        position += len(frames)
        await trio.lowlevel.checkpoint()
    return fold


@final
class _Segments:
    resumes: ClassVar = True

    def feed(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(frames)


@final
class _NoTrace:
    resumes: ClassVar = True

    def feed(self, frames: Sequence[bytes]) -> bytes:
        hidden = (ReasoningDelta, ReasoningDone)
        return b"".join(frame for frame in frames if not isinstance(decode_frame(frame), hidden))


@final
class _Final:
    resumes: ClassVar = True

    def __init__(self) -> None:
        self._stream_id = ""
        self._segments: dict[int, list[str]] = {}  # since the last `reasoning.done`

    def feed(self, frames: Sequence[bytes]) -> bytes:
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
