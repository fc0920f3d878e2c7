"""When tokens go from a buffer to its log: in the engine's own call, or a little later, for many streams in one go.

A switch of tasks costs more than recording a token and writing it to a socket together, so a token that comes alone is
recorded by the call that brings it. What comes in a burst is left in the buffer and merged, and so is everything when
there is more to do than time: then records grow, and the cost of a token falls.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Final, final

import trio

from crucible_trio.timers import Timer, Timers

logger = logging.getLogger(__name__)

# So long, in real time, one pass of the scheduler may record, or an engine that never waits may write, before others
# run. A record takes 10 to 20 us.
_SECONDS_PER_PASS: Final = 0.005
_PIECES_PER_PASS: Final = 64


@final
class Pacing(trio.abc.Instrument):
    """What the streams of a pipeline share to find the right moment. Its `Timers` and the scheduler drive it.

    Attributes:
        passes: How often the scheduler has looked for something to run: a piece of text that comes in the same pass as
            the one before belongs to a burst.
        at_once: Records made in the engine's call.
        direct_writes: Times that a record went to a client in the middle of its append; counted by the transports.
    """

    def __init__(self, timers: Timers) -> None:
        self.passes = 0
        self.at_once = 0
        self.direct_writes = 0
        self._timers = timers
        self._pass_began = -inf
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer = Timer(inf, self)

    def after_io_wait(self, timeout: float) -> None:
        """The scheduler begins a pass (`trio.abc.Instrument`)."""
        self.passes += 1
        self._pass_began = perf_counter()

    def is_over(self, pieces: int) -> bool:
        """Whether an engine that has written so many pieces in this pass should let others run."""
        return pieces >= _PIECES_PER_PASS or perf_counter() - self._pass_began > _SECONDS_PER_PASS

    def may_record_at_once(self) -> bool:
        """Whether a call of an engine may record what it brings; counts it."""
        # Whoever has to wait waits in order. With more to do than time somebody always waits, so each record has what
        # has come since its stream's last one: the busier, the larger, and a thousand busy streams do not fall behind.
        if self._waiting or perf_counter() - self._pass_began > _SECONDS_PER_PASS:
            return False
        self.at_once += 1
        return True

    def record_later(self, record: Callable[[], None]) -> None:
        """Have `record` called in another pass; it must not wait. One that waits already is not to be added again."""
        self._waiting.append(record)
        if self._timer.at == inf:
            self._set_timer(trio.current_time())

    def _set_timer(self, at: float) -> None:
        self._timer = self._timers.set(at, self)

    def timer_fired(self) -> None:
        """Record for the streams that wait (`Timed`)."""
        until = perf_counter() + _SECONDS_PER_PASS
        while self._waiting:
            try:
                self._waiting.popleft()()
            except Exception:
                logger.exception("an error of our own")
            if perf_counter() > until:
                break
        if self._waiting:
            self._set_timer(trio.current_time())
