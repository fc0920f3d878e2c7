"""When pieces go from a buffer to its log: in the engine's call, or a little later, for many streams in one pass.

A switch of tasks costs more than recording a piece and writing it to a socket together. So a piece that comes alone is
recorded by the call that brings it. Pieces of a burst stay in the buffer and are merged. When there is more to do than
time, all pieces go through the buffer: records grow, and the cost of a piece falls.
"""

from __future__ import annotations

import logging
from collections import deque
from math import inf
from time import perf_counter
from typing import Final, Protocol, final

import trio

from crucible_trio.timers import Timers

logger = logging.getLogger(__name__)

# How long one pass of the scheduler may record, or an engine that never waits may write, before other tasks run, in
# real time. A record takes 10 to 20 us.
_SECONDS_PER_PASS: Final = 0.005
_PIECES_PER_PASS: Final = 64


class Recordable(Protocol):
    """A buffer that can be recorded: a `Generation`."""

    def record(self) -> None:
        """Move the buffer's pieces to the log. Must not wait."""


@final
class Batcher(trio.abc.Instrument):
    """Batches the work of a pipeline's generations. `Timers` and the scheduler drive it.

    Attributes:
        passes: How often the scheduler has looked for tasks to run. A piece that comes in the same pass as the one
            before belongs to a burst.
        recorded_now: Records made in the engine's call.
        direct_writes: Records that went to a client in the middle of their append. The bodies count them.
    """

    def __init__(self, timers: Timers) -> None:
        self.passes = 0
        self.recorded_now = 0
        self.direct_writes = 0
        self._timers = timers
        self._pass_began = -inf
        self._waiting: deque[Recordable] = deque()
        self._is_called = False  # soon, by the timers

    def after_io_wait(self, timeout: float) -> None:
        """The scheduler begins a pass (`trio.abc.Instrument`)."""
        self.passes += 1
        self._pass_began = perf_counter()

    def is_over(self, pieces: int) -> bool:
        """Whether an engine that has written this many pieces in this pass should let other tasks run."""
        return pieces >= _PIECES_PER_PASS or perf_counter() - self._pass_began > _SECONDS_PER_PASS

    def may_record_now(self) -> bool:
        """Whether a call of an engine may record its piece. Counts it if so."""
        # Streams that wait are served in order. With more to do than time some stream always waits, so each record has
        # everything since its stream's last one. Records grow with the load, and a thousand busy streams keep up.
        if self._waiting or perf_counter() - self._pass_began > _SECONDS_PER_PASS:
            return False
        self.recorded_now += 1
        return True

    def record_later(self, recordable: Recordable) -> None:
        """Record in a later pass. The caller does not add a `recordable` that already waits."""
        self._waiting.append(recordable)
        if not self._is_called:
            self._call_soon()

    def timer_fired(self) -> None:
        """Record for the streams that wait (`Timed`)."""
        self._is_called = False
        until = perf_counter() + _SECONDS_PER_PASS
        while self._waiting:
            try:
                self._waiting.popleft().record()
            except Exception:
                logger.exception("internal error while recording")
            if perf_counter() > until:
                break
        if self._waiting and not self._is_called:
            self._call_soon()

    def _call_soon(self) -> None:
        self._is_called = True
        self._timers.call_soon(self)
