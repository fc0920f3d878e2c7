"""How an engine under a test's control waits for the cut of its connection."""

from __future__ import annotations

from typing import final

import trio


@final
class Stage:
    """Holds engines back until the kit has cut, so that a cut falls into a stream that is being made.

    An engine, or any other source of events, awaits `turn(key)` before each piece; `key` is what `{key}` stands for in
    the wire, so the prompt should hold it.
    """

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._released: set[str] = set()
        self._changed: dict[str, trio.lowlevel.ParkingLot] = {}

    async def turn(self, key: str) -> None:
        """Wait until this stream's next piece is wanted. Checkpoints: always. Cancellation: takes no turn."""
        await trio.lowlevel.checkpoint()
        while key not in self._released and not self._turns.get(key):
            await self._changed.setdefault(key, trio.lowlevel.ParkingLot()).park()
        if self._turns.get(key):
            self._turns[key] -= 1

    def more(self, key: str) -> None:
        """One more piece is wanted."""
        self._turns[key] = self._turns.get(key, 0) + 1
        self._wake(key)

    def release(self, key: str) -> None:
        """All the rest is wanted: the connection is cut, or will not be."""
        self._released.add(key)
        self._turns.pop(key, None)
        self._wake(key)

    def _wake(self, key: str) -> None:
        if lot := self._changed.pop(key, None):
            lot.unpark_all()
