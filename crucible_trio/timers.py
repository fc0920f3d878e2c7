"""One task that runs the deadlines of all streams and the heartbeats of all readers.

A cancel scope with a deadline takes 600 bytes of every idle stream and 2 us of every token. So no stream and no reader
has a cancel scope for its deadline, and none moves its timer when the deadline moves. A timer fires at the earliest
time that could matter. Its target then compares times, and usually sets the next timer.

Timers that are due shortly after one another fire in one pass of the scheduler. With 5,000 silent streams a heartbeat
is due every 2 ms, and a pass for each of them took half of the CPU of an idle server.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import Final, Protocol, final

import trio

# A timer fires at its time, unless another fired less than this long before. Then it fires this long after the other.
_INTERVAL: Final = 0.05
# Timers that fire before other tasks run. A heartbeat takes tens of microseconds.
_PER_PASS: Final = 64


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
    """The timers of one pipeline or server. They fire while `run` runs, at most 0.05 s late if the server keeps up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()  # timers with the same time fire in the order in which they were set
        self._soon: list[Timed] = []
        self._woken = trio.lowlevel.ParkingLot()
        self._wakes_at = inf  # when the task of `run` looks at the heap again

    def set(self, at: float, target: Timed) -> Timer:
        """Set a timer that fires at `at`, in the task of `run`."""
        timer = Timer(at, target)
        heapq.heappush(self._heap, (at, next(self._numbers), timer))
        if at < self._wakes_at:
            self._woken.unpark_all()
        return timer

    def set_no_later(self, timer: Timer, at: float, target: Timed) -> Timer:
        """Keep `timer` if it fires at `at` or earlier. Otherwise cancel it and set one that fires at `at`."""
        if timer.at <= at:
            return timer
        timer.cancel()
        return self.set(at, target)

    def call_soon(self, target: Timed) -> None:
        """Call the target's `timer_fired` in the next pass of the scheduler, in the task of `run`."""
        self._soon.append(target)
        self._woken.unpark_all()

    async def run(self) -> None:
        """Fire timers until cancelled."""
        fired_at = -inf
        while True:
            soon, self._soon = self._soon, []
            for target in soon:
                target.timer_fired()
            now = trio.current_time()
            if self._fire(now):
                fired_at = now
            if self._soon or (self._heap and self._heap[0][0] <= now):
                await trio.lowlevel.checkpoint()
                continue
            self._wakes_at = max(self._heap[0][0], fired_at + _INTERVAL) if self._heap else inf
            with trio.move_on_at(self._wakes_at):
                await self._woken.park()

    def _fire(self, now: float) -> bool:
        """Fire the timers that are due, or the first of them. Returns whether there were any."""
        fired = 0
        while fired < _PER_PASS and self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2].fire()
            fired += 1
        return fired > 0
