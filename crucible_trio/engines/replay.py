"""An engine that plays a recording: for tests, demos and benchmarks. It is no model, and says so when it is made.

The recordings are two real streams of a small model, one per mode; engines/recordings/README.md says how they were
made. Whatever is asked, the same text comes, with the pauses it had.
"""

from __future__ import annotations

import logging
import math
from importlib import resources
from typing import Final, Literal, final

import msgspec
import trio

from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.engines.segments import SegmentCutter
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.records import Mode
from crucible_trio.request import Request

logger = logging.getLogger(__name__)

MODEL_NAME: Final = "recorded"
_MODES: Final[tuple[Mode, ...]] = ("standard", "deep")


class _Line(msgspec.Struct, frozen=True):
    t_ms: float
    kind: Literal["trace", "delta"]
    text: str


class _Step(msgspec.Struct, frozen=True):
    """What one line of a recording does; the trace is already cut into segments."""

    seconds: float
    pieces: tuple[tuple[int | None, str], ...]


@final
class ReplayEngine:
    """Plays the recording of the request's mode.

    A line of the recording counts as a token for `max_output_tokens`. A reader that holds the engine up shifts the rest
    of the recording: it goes on at its pace and does not catch up. Usage is unknown: the recordings hold no counts.

    Args:
        speed: How much faster than recorded; `inf` does not pause at all, but every piece is a checkpoint.
        fail_at: Fail with `recording_failed` instead of playing this line; lines count from 0.
        stall_at: Wait for ever instead of playing this line.

    Attributes:
        info: What the engine can do.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, *, speed: float = 1.0, fail_at: int | None = None, stall_at: int | None = None) -> None:
        if not speed > 0:
            message = f"speed must be over 0, not {speed}"
            raise ValueError(message)
        if any(line is not None and line < 0 for line in (fail_at, stall_at)):
            message = "fail_at and stall_at count lines from 0"
            raise ValueError(message)
        self.info = EngineInfo(name="replay", models=(MODEL_NAME,))
        self._speed = speed
        self._fail_at = fail_at
        self._stall_at = stall_at
        self._steps = {mode: _load(mode) for mode in _MODES}
        logger.warning("engine 'replay' plays a recording, whatever is asked: it is not a model")

    async def generate(self, request: Request, output: Output) -> Finish:
        """Play the recording of the request's mode.

        Raises:
            EngineError: `recording_failed`, at the line `fail_at`.
        """
        begin = trio.current_time()
        for number, step in enumerate(self._steps[request.mode]):
            if number == request.max_output_tokens:
                return Finish("length")
            await self._pause_until(begin + step.seconds / self._speed)
            if number == self._stall_at:
                await trio.sleep_forever()
            if number == self._fail_at:
                raise EngineError("recording_failed", "The recording was told to fail here.", retryable=True)
            asked = trio.current_time()
            await _play(step, output)
            begin += trio.current_time() - asked
        return Finish("stop")

    async def _pause_until(self, moment: float) -> None:
        if self._speed < math.inf:  # otherwise writing is the checkpoint
            await trio.sleep_until(moment)


async def _play(step: _Step, output: Output) -> None:
    for segment, text in step.pieces:
        if segment is None:
            await output.delta(text)
        else:
            await output.reasoning(text, segment)


def _load(mode: Mode) -> tuple[_Step, ...]:
    content = resources.files("crucible_trio.engines").joinpath("recordings", f"{mode}.jsonl").read_bytes()
    lines = msgspec.json.Decoder(_Line).decode_lines(content)
    cutter = SegmentCutter()
    steps: list[_Step] = []
    for line in lines:
        # What the cutter held back of the trace comes out with the next line, at the latest with the first of the
        # answer. A recording ends with its answer, so nothing is left.
        pieces: list[tuple[int | None, str]] = []
        pieces += cutter.feed(line.text) if line.kind == "trace" else cutter.flush()
        if line.kind == "delta":
            pieces.append((None, line.text))
        steps.append(_Step(line.t_ms / 1000, tuple(pieces)))
    return tuple(steps)
