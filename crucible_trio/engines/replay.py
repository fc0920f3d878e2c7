"""An engine that plays a recording, for tests, demos and benchmarks. It logs at start that it is not a model.

The recordings are two real streams of a small model, one per mode. engines/recordings/README.md says how they were
made. Every prompt gets the same text with the recorded pauses.
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
_NOTICE: Final = "This is a recording, not a model: every prompt gets the same text."
_MODES: Final[tuple[Mode, ...]] = ("standard", "deep")


class _RecordingLine(msgspec.Struct, frozen=True):
    t_ms: float
    kind: Literal["trace", "delta"]
    text: str


class _RecordingStep(msgspec.Struct, frozen=True):
    """One line of a recording, with the trace cut into segments. `seconds` count from the start of the recording."""

    seconds: float
    pieces: tuple[tuple[int | None, str], ...]


@final
class ReplayEngine:
    """Plays the recording of the request's mode.

    For `max_output_tokens` each line of the recording counts as one token. When a slow reader delays the engine, the
    rest of the recording shifts: it continues at the recorded pace and does not catch up. Usage is unknown, because the
    recordings hold no counts.

    Args:
        speed: Factor relative to the recorded pace. `inf` does not pause, but every piece is a checkpoint.
        fail_at: Fail with `recording_failed` instead of playing this line. Lines count from 0.
        stall_at: Stall instead of playing this line, until cancelled.

    Attributes:
        info: The engine's name and its one model.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, *, speed: float = 1.0, fail_at: int | None = None, stall_at: int | None = None) -> None:
        if not speed > 0:
            message = f"speed must be greater than 0, not {speed}"
            raise ValueError(message)
        if any(line is not None and line < 0 for line in (fail_at, stall_at)):
            message = "fail_at and stall_at must not be negative: they count lines from 0"
            raise ValueError(message)
        self.info = EngineInfo(name="replay", models=(MODEL_NAME,), notice=_NOTICE)
        self._speed = speed
        self._fail_at = fail_at
        self._stall_at = stall_at
        self._steps = {mode: _load(mode) for mode in _MODES}
        logger.warning("engine 'replay' is not a model: it plays the same recording for every prompt")

    async def generate(self, request: Request, output: Output) -> Finish:
        """Play the recording of the request's mode.

        Cancellation: stops playing.

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
                raise EngineError("recording_failed", "The recording was configured to fail here.", retryable=True)
            write_began = trio.current_time()
            await _play(step, output)
            begin += trio.current_time() - write_began
        return Finish("stop")

    async def _pause_until(self, moment: float) -> None:
        if self._speed < math.inf:  # at infinite speed the write is the checkpoint
            await trio.sleep_until(moment)


async def _play(step: _RecordingStep, output: Output) -> None:
    for segment, text in step.pieces:
        if segment is None:
            await output.delta(text)
        else:
            await output.reasoning(text, segment)


def _load(mode: Mode) -> tuple[_RecordingStep, ...]:
    content = resources.files("crucible_trio.engines").joinpath("recordings", f"{mode}.jsonl").read_bytes()
    lines = msgspec.json.Decoder(_RecordingLine).decode_lines(content)
    cutter = SegmentCutter()
    steps: list[_RecordingStep] = []
    for line in lines:
        # Trace held back by the cutter comes out with the next line, at the latest with the first line of the answer.
        # A recording ends with its answer, so no text is left in the cutter.
        pieces: list[tuple[int | None, str]] = []
        pieces += cutter.feed(line.text) if line.kind == "trace" else cutter.flush()
        if line.kind == "delta":
            pieces.append((None, line.text))
        steps.append(_RecordingStep(line.t_ms / 1000, tuple(pieces)))
    return tuple(steps)
