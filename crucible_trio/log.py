"""The event log: the frames of one stream, its readers' cursors, and the room they leave the engine.

`MemoryLog` is also the contract for a log in another process: every method a stream or reader uses is here, `append` is
awaitable although this one never waits, and nothing depends on the frames being a list. Where `append` does wait, it is
shielded with a deadline, or gives the batch back: what was taken from the buffer must not be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import trio

from crucible_trio.errors import CursorAheadError


@final
class Cursor:
    """How far one attached reader has got: the last position it has handed to its transport."""

    __slots__ = ("_log", "position")

    def __init__(self, log: MemoryLog, position: int) -> None:
        self._log = log
        self.position = position

    def advance(self, position: int) -> None:
        """Say that everything up to `position` has been handed over. Never goes back."""
        if position > self.position:
            self.position = position
            self._log._moved(position)

    def detach(self) -> None:
        """Leave; may be called twice."""
        self._log._leave(self)


@final
class MemoryLog:
    """An event log in this process. One writer, any number of readers.

    It keeps the whole stream, so a slower second reader never holds the first: it can catch up.

    Args:
        room_without_readers: Whether an engine may go on while nobody is attached.
        on_growth: Called with the number of bytes of every append.

    Attributes:
        size_bytes: Bytes of all frames.
        finished: Whether the terminal record is in; nothing is appended after it.
        ever_read: The furthest position any reader has passed, also one that has left.
    """

    def __init__(self, *, room_without_readers: bool, on_growth: Callable[[int], None] = lambda _: None) -> None:
        self.size_bytes = 0
        self.finished = False
        self.ever_read = 0
        self._room_without_readers = room_without_readers
        self._on_growth = on_growth
        self._frames: list[bytes] = []
        self._cursors: set[Cursor] = set()
        self._furthest = 0  # of the attached cursors
        self._released = False
        # ParkingLot, not Condition: a Condition costs three times as much to wake.
        self._followers = trio.lowlevel.ParkingLot()
        self._writer = trio.lowlevel.ParkingLot()

    @property
    def head(self) -> int:
        """The position of the last record; 0 while there is none."""
        return len(self._frames)

    @property
    def readers(self) -> int:
        """How many readers are attached."""
        return len(self._cursors)

    # Writing

    def append_nowait(self, frames: Sequence[bytes], *, last: bool = False) -> None:
        """Append records, in order; no checkpoint lies between taking a token and recording it.

        Args:
            frames: The frames of the records `head + 1` and on.
            last: Whether the terminal record is the last of them.

        Raises:
            trio.ClosedResourceError: The log is finished.
        """
        if self.finished:
            raise trio.ClosedResourceError
        self._frames.extend(frames)
        self.finished = last
        size = sum(map(len, frames))
        self.size_bytes += size
        self._followers.unpark_all()
        self._on_growth(size)

    async def append(self, frames: Sequence[bytes], *, last: bool = False) -> None:
        """Append as `append_nowait` does. Checkpoints: never, so cancellation cannot lose a record."""
        self.append_nowait(frames, last=last)

    async def wait_for_room(self) -> None:
        """Wait until the furthest reader has reached the head, or no reader holds the engine back.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """
        while not self.has_room:
            await self._writer.park()

    @property
    def has_room(self) -> bool:
        """Whether a running engine may go on."""
        if self._released:
            return True
        if self._cursors:
            return self._furthest >= len(self._frames)
        return self._room_without_readers

    def release_room(self) -> None:
        """From now on there is room: it holds back a running engine and nothing else."""
        self._released = True
        self._writer.unpark_all()

    async def wait_read(self, position: int) -> None:
        """Wait until some reader's cursor has passed `position`.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """
        while self.ever_read < position:
            await self._writer.park()

    # Reading

    def attach(self, after: int) -> Cursor:
        """Attach a reader that has everything up to `after`.

        Raises:
            CursorAheadError: `after` is beyond the head.
        """
        if after > len(self._frames):
            raise CursorAheadError(after, len(self._frames))
        cursor = Cursor(self, after)
        self._cursors.add(cursor)
        self._moved(after)
        return cursor

    def read(self, after: int, limit_bytes: int | None = None) -> list[bytes]:
        """The frames after a position, oldest first.

        Args:
            after: A position up to the head.
            limit_bytes: Stop before the frame that would pass it; the first frame is always given.

        Raises:
            CursorAheadError: `after` is beyond the head.
        """
        if after > len(self._frames):
            raise CursorAheadError(after, len(self._frames))
        if limit_bytes is None:
            return self._frames[after:]
        end = after
        size = 0
        for end in range(after, len(self._frames)):
            size += len(self._frames[end])
            if size > limit_bytes and end > after:
                return self._frames[after:end]
        return self._frames[after : end + 1]

    async def wait(self, after: int) -> None:
        """Wait until there is something after a position, the log is finished, or `wake` is called.

        Checkpoints: always. Cancellation: safe. The caller looks again: a return promises nothing.
        """
        if len(self._frames) > after or self.finished:
            await trio.lowlevel.checkpoint()
        else:  # parked without a checkpoint before it, so no wake between the caller's look and this can be missed
            await self._followers.park()

    def wake(self) -> None:
        """Let all waiting readers look again, for news that are in no log."""
        self._followers.unpark_all()

    def _moved(self, position: int) -> None:
        self.ever_read = max(self.ever_read, position)
        self._furthest = max(self._furthest, position)
        self._writer.unpark_all()

    def _leave(self, cursor: Cursor) -> None:
        self._cursors.discard(cursor)
        self._furthest = max((other.position for other in self._cursors), default=0)
        self._writer.unpark_all()
