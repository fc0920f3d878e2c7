"""One task that runs the deadlines of all streams and the heartbeats of all readers.

A cancel scope with a deadline takes 600 bytes of every idle stream and 2 us of every token. So no stream and no reader
has a cancel scope for its deadline, and none moves its timer when the deadline moves. A timer fires at the earliest
time that could matter. Its target then compares times, and usually sets the next timer.

Timers that are due shortly after one another fire in one pass of the scheduler. With 5,000 silent streams a heartbeat
is due every 2 ms, and a pass for each of them took half of the CPU of an idle server. Such timers also share a bucket:
with one heap of 5,000 timers, an idle server needed 1.14 times the CPU.
"""

from __future__ import annotations

import heapq
from collections import deque
from math import inf
from operator import attrgetter
from typing import Final, Protocol, final

import trio

# A timer fires at its time, unless another fired less than this long before. Then it fires this long after the other.
_INTERVAL: Final = 0.05
# Timers that fire before other tasks run. A heartbeat takes tens of microseconds.
_PER_PASS: Final = 64
# 30,000 years. A later timer never fires.
_NEVER: Final = 1e12
_BY_TIME: Final = attrgetter("at")


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
        self._buckets: dict[int, list[Timer]] = {}  # by the number of the interval in which they are due
        self._numbers: list[int] = []  # of the buckets, as a heap
        self._next_at = inf  # no timer in a bucket is due earlier
        self._due: deque[Timer] = deque()
        self._soon: list[Timed] = []
        self._woken = trio.lowlevel.ParkingLot()
        self._wakes_at = inf  # when the task of `run` looks at the buckets again

    def set(self, at: float, target: Timed) -> Timer:
        """Set a timer that fires at `at`, in the task of `run`. Timers with one time fire in the order of `set`."""
        timer = Timer(at, target)
        if at < _NEVER:
            self._put(timer)
        if at < self._wakes_at:
            self._woken.unpark_all()
        return timer

    def _put(self, timer: Timer) -> None:
        number = _interval(timer.at)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = []
            heapq.heappush(self._numbers, number)
        bucket.append(timer)
        self._next_at = min(self._next_at, timer.at)

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
            self._find_due(now)
            if self._due:
                fired_at = now
            for _ in range(min(len(self._due), _PER_PASS)):
                self._due.popleft().fire()
            if self._soon or self._due or self._next_at <= now:
                await trio.lowlevel.checkpoint()
                continue
            self._wakes_at = max(self._next_at, fired_at + _INTERVAL)
            with trio.move_on_at(self._wakes_at):
                await self._woken.park()

    def _find_due(self, now: float) -> None:
        """Move the timers that are due from their buckets to `_due`."""
        if now < self._next_at:
            return
        later: list[Timer] = []
        while self._numbers and self._numbers[0] <= _interval(now):
            bucket = self._buckets.pop(heapq.heappop(self._numbers))
            bucket.sort(key=_BY_TIME)
            for timer in bucket:
                (self._due if timer.at <= now else later).append(timer)
        for timer in later:
            if timer.at < inf:  # else it was cancelled
                self._put(timer)
        self._next_at = self._earliest()

    def _earliest(self) -> float:
        while self._numbers:
            at = min(timer.at for timer in self._buckets[self._numbers[0]])
            if at < inf:
                return at
            del self._buckets[heapq.heappop(self._numbers)]  # all have been cancelled
        return inf


def _interval(at: float) -> int:
    return int(at / _INTERVAL)
