"""`Stage`: the engine under test waits until the kit has cut the connection."""

from __future__ import annotations

from typing import final

import trio


@final
class Stage:
    """Makes engines wait for the kit, so that the kit can cut a stream that is still being generated.

    The engine, or another source of events, awaits `turn(key)` before each piece. `key` is the text that replaces
    `{key}` in the wire, so the prompt should contain it.
    """

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}
        self._released: set[str] = set()
        self._changed: dict[str, trio.lowlevel.ParkingLot] = {}

    async def turn(self, key: str) -> None:
        """Wait until the kit wants the next piece of this stream. Checkpoints: always. Cancellation: uses no turn."""
        await trio.lowlevel.checkpoint()
        while key not in self._released and not self._turns.get(key):
            await self._changed.setdefault(key, trio.lowlevel.ParkingLot()).park()
        if self._turns.get(key):
            self._turns[key] -= 1

    def more(self, key: str) -> None:
        """Let the engine write one more piece."""
        self._turns[key] = self._turns.get(key, 0) + 1
        self._wake(key)

    def release(self, key: str) -> None:
        """Let the engine write the rest. The kit has cut the connection, or will not cut it."""
        self._released.add(key)
        self._turns.pop(key, None)
        self._wake(key)

    def _wake(self, key: str) -> None:
        if lot := self._changed.pop(key, None):
            lot.unpark_all()
