"""One attached follower of a log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self, final

import trio

from crucible_trio.log import Cursor, MemoryLog
from crucible_trio.records import AnyRecord, decode_frame

# What is taken from the log at a time; the cursor moves record by record all the same.
_READ_BYTES: Final = 16 * 1024


@final
class Reader:
    """Follows a log from a position to the terminal record; enter it with `async with`.

    `async for` gives records and moves the cursor when the next one is asked for. A transport uses `take`, `wait` and
    `passed` instead: its cursor moves when a write has returned, not when a record was read.

    Args:
        log: What to follow.
        after: The position up to which the reader has everything.
        attach: Attaches at a position, or refuses by raising.
        left: Called after the reader has left.

    Attributes:
        taken: The position up to which frames have been taken.
        write_at_once: Set before entering, by a transport that can write without waiting. Called in the middle of an
            append while the reader is in `wait`: hands over what it can and returns the position up to which all is.
    """

    def __init__(
        self, log: MemoryLog, after: int, *, attach: Callable[[int], Cursor], left: Callable[[], None]
    ) -> None:
        self._log = log
        self._attach = attach
        self._left = left
        self.write_at_once: Callable[[], int] | None = None
        self._cursor: Cursor | None = None
        self.taken = after
        self._records: list[AnyRecord] = []  # newest first; a deque would take 700 bytes of every idle stream

    async def __aenter__(self) -> Self:
        self._cursor = self._attach(self.taken)
        self._cursor.write_at_once = self.write_at_once
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cursor is not None:
            self._cursor.detach()
            self._cursor = None
            self._left()

    def take(self, limit_bytes: int) -> list[bytes]:
        """The next frames, each once; none when everything has been taken.

        Args:
            limit_bytes: Stop before the frame that would pass it; the first frame is always given.
        """
        frames = self._log.read(self.taken, limit_bytes)
        self.taken += len(frames)
        return frames

    @property
    def at_end(self) -> bool:
        """Whether the terminal record has been taken."""
        return self._log.finished and self.taken >= self._log.head

    def wait(self) -> Awaitable[None]:
        """Wait for something to take, the log's end, or `wake`; the caller looks again.

        Checkpoints: always. Cancellation: safe.
        """
        return self._entered.wait(self.taken)

    @property
    def waits(self) -> bool:
        """Whether it is in `wait` and has not been woken."""
        return self._entered.waits

    def wake(self) -> None:
        """Let `wait` return, for news that are in no log."""
        self._entered.wake()

    def passed(self, position: int) -> None:
        """Say that everything up to `position` has been handed over; this gives the engine room.

        Raises:
            trio.ClosedResourceError: The reader has not been entered, or has left.
        """
        self._entered.advance(position)

    @property
    def _entered(self) -> Cursor:
        if self._cursor is None:
            raise trio.ClosedResourceError
        return self._cursor

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyRecord:
        self.passed(self.taken - len(self._records))  # asking for the next record says that the last one is done with
        if self._records:
            await trio.lowlevel.checkpoint()
        while not self._records:
            if self.at_end:
                raise StopAsyncIteration
            await self.wait()
            self._records = [decode_frame(frame) for frame in reversed(self.take(_READ_BYTES))]
        return self._records.pop()
