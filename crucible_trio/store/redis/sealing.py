"""The end of a stream whose process died, which another process writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from crucible_trio.errors import EngineError
from crucible_trio.recorder import bounded_error
from crucible_trio.records import (
    ReasoningDelta,
    ReasoningDone,
    StreamFailed,
    Timings,
    Usage,
    decode_frame,
    encode_frame,
)

_ERROR: Final = bounded_error(
    EngineError("producer_lost", "The server process that generated this stream was lost.", retryable=True)
)


def sealing_frames(stream_id: str, frames: Iterable[bytes], total_seconds: float) -> list[bytes]:
    """The frames that end a log: `reasoning.done` if the trace is open, and the terminal record.

    Args:
        stream_id: The stream.
        frames: All frames of its log.
        total_seconds: The time since the stream was accepted.
    """
    head = 0
    segments: set[int] = set()
    for frame in frames:
        head += 1
        match decode_frame(frame):
            case ReasoningDelta(segment=segment):
                segments.add(segment)
            case ReasoningDone():
                segments.clear()
    sealing: list[bytes] = []
    if segments:
        sealing.append(encode_frame(stream_id, ReasoningDone(head + 1, len(segments))))
    seq = head + len(sealing) + 1
    timings = Timings(None, round(max(0.0, total_seconds) * 1000, 3))
    sealing.append(encode_frame(stream_id, StreamFailed(seq, _ERROR, Usage(), timings)))
    return sealing
