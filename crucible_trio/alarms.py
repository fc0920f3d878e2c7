"""One timer for the deadlines of all streams and the heartbeats of all readers.

A cancel scope with a deadline takes 600 bytes of every idle stream and 2 us of every token. Here nobody has a timer of
its own, and an alarm is not moved when its deadline does: it fires at the earliest time that could matter, its owner
compares clocks, and mostly sets another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from math import inf
from typing import final

import trio


@final
class Alarm:
    """One call in the future.

    Attributes:
        at: When, in `trio.current_time()`; `inf` once it has fired or was cancelled.
    """

    __slots__ = ("_call", "at")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Do not call, and hold on to nothing; may be repeated."""
        self.at = inf
        self._call = None

    def fire(self) -> None:
        """Call, unless cancelled."""
        call = self._call
        self.cancel()
        if call is not None:
            call()


@final
class Alarms:
    """The alarms of one pipeline; they fire while `run` runs."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = count()  # breaks ties in the order of setting
        self._earlier = trio.lowlevel.ParkingLot()

    def set(self, at: float, call: Callable[[], None]) -> Alarm:
        """Have `call` called at a time, in the task of `run`; it must neither wait nor raise."""
        alarm = Alarm(at, call)
        heapq.heappush(self._heap, (at, next(self._numbers), alarm))
        if self._heap[0][2] is alarm:
            self._earlier.unpark_all()
        return alarm

    def set_no_later(self, alarm: Alarm, at: float, call: Callable[[], None]) -> Alarm:
        """Keep an alarm that comes at `at` or before; otherwise cancel it and set one that does."""
        if alarm.at <= at:
            return alarm
        alarm.cancel()
        return self.set(at, call)

    async def run(self) -> None:
        """Fire alarms until cancelled."""
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                heapq.heappop(self._heap)[2].fire()
            with trio.move_on_at(self._heap[0][0] if self._heap else inf):
                await self._earlier.park()
