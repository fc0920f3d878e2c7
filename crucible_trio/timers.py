"""One task that runs the deadlines of all streams and the heartbeats of all readers.

A cancel scope with a deadline takes 600 bytes of every idle stream and 2 us of every token. So no stream and no reader
has a cancel scope for its deadline, and none moves its timer when the deadline moves. A timer fires at the earliest
time that could matter. Its target then compares times, and usually sets the next timer.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Protocol, final

import trio


class Timed(Protocol):
    """Whatever sets a timer."""

    def timer_fired(self) -> None:
        """React to a timer. It must neither wait nor raise. It may come too early, so look at the time."""


@final
class Timer:
    """One call of a target's `timer_fired`.

    Attributes:
        at: When, in `trio.current_time()`. `inf` once the timer has fired or was cancelled.
    """

    __slots__ = ("_target", "at")

    def __init__(self, at: float, target: Timed) -> None:
        self.at = at
        self._target: Timed | None = target

    def cancel(self) -> None:
        """Do not fire, and drop the reference to the target. May be repeated."""
        self.at = inf
        self._target = None

    def fire(self) -> None:
        """Call the target, unless the timer has fired or was cancelled."""
        target = self._target
        self.cancel()
        if target is not None:
            target.timer_fired()


@final
class Timers:
    """The timers of one pipeline or server. They fire while `run` runs."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # timers with the same time fire in the order in which they were set
        self._earlier = trio.lowlevel.ParkingLot()

    def set(self, at: float, target: Timed) -> Timer:
        """Set a timer that fires at `at`, in the task of `run`."""
        timer = Timer(at, target)
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        if self._heap[0][2] is timer:
            self._earlier.unpark_all()
        return timer

    def set_no_later(self, timer: Timer, at: float, target: Timed) -> Timer:
        """Keep `timer` if it fires at `at` or earlier. Otherwise cancel it and set one that fires at `at`."""
        if timer.at <= at:
            return timer
        timer.cancel()
        return self.set(at, target)

    async def run(self) -> None:
        """Fire timers until cancelled."""
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2].fire()
            with trio.move_on_at(self._heap[0][0] if self._heap else inf):
                await self._earlier.park()
