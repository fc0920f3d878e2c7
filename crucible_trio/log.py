"""The event log: the frames of one stream, its readers' cursors, and the room they leave the engine.

`MemoryLog` is also the contract for a log in another process: every method a stream or reader uses is here, and nothing
depends on the frames being a list. None that writes waits, so such a log takes what it is given into a buffer of
its own, and has no room until that is out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import trio

from crucible_trio.errors import CursorAheadError


@final
class Cursor:
    """How far one attached reader has got: the last position it has handed to its transport.

    Attributes:
        position: That position.
        write_at_once: Called when something is appended while the reader waits: hands over what can be without waiting,
            and returns the position up to which everything is. Unless that is the head, the reader is woken; at the
            log's end always.
    """

    __slots__ = ("_log", "_task", "position", "write_at_once")

    def __init__(self, log: MemoryLog, position: int) -> None:
        self._log = log
        self._task: trio.lowlevel.Task | None = None
        self.position = position
        self.write_at_once: Callable[[], int] | None = None

    def advance(self, position: int) -> None:
        """Say that everything up to `position` has been handed over. Never goes back."""
        if position > self.position:
            self.position = position
            self._log._moved(position)

    def detach(self) -> None:
        """Leave; may be called twice."""
        self._log._leave(self)

    async def wait(self, after: int) -> None:
        """Wait until there is something after a position, the log is finished, or `wake` is called.

        Checkpoints: always. Cancellation: safe. The caller looks again: a return promises nothing.
        """
        if self._log.head > after or self._log.finished:
            await trio.lowlevel.checkpoint()
            return
        # Parked without a checkpoint before it, so no wake between the caller's look and this can be missed.
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    @property
    def waits(self) -> bool:
        """Whether somebody is in `wait` and has not been woken."""
        return self._task is not None

    def wake(self) -> None:
        """Let `wait` return, for news that are in no log."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _appended(self) -> None:
        if self._task is None:
            return
        if self.write_at_once is not None:
            self.position = self.write_at_once()
        if self.position < self._log.head or self._log.finished:
            self.wake()


@final
class MemoryLog:
    """An event log in this process. One writer, any number of readers.

    It keeps the whole stream, so a slower second reader never holds the first: it can catch up.

    Args:
        room_without_readers: Whether an engine may go on while nobody is attached.
        on_growth: Called with the number of bytes of every append.
        on_room: Called when there may be room that was not there before.

    Attributes:
        size_bytes: Bytes of all frames.
        finished: Whether the terminal record is in; nothing is appended after it.
        ever_read: The furthest position any reader has passed, also one that has left.
    """

    def __init__(
        self,
        *,
        room_without_readers: bool,
        on_growth: Callable[[int], None] = lambda _: None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.size_bytes = 0
        self.finished = False
        self.ever_read = 0
        self._room_without_readers = room_without_readers
        self._on_growth = on_growth
        self._on_room = on_room
        self._frames: list[bytes] = []
        self._cursors: set[Cursor] = set()
        self._furthest = 0  # of the attached cursors
        self._first_read = trio.lowlevel.ParkingLot()

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
        for cursor in self._cursors:
            cursor._appended()
            self._note(cursor.position)
        self._on_growth(size)

    @property
    def has_room(self) -> bool:
        """Whether a running engine may go on."""
        if self._cursors:
            return self._furthest >= len(self._frames)
        return self._room_without_readers

    async def wait_read(self, position: int) -> None:
        """Wait until some reader's cursor has passed `position`.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """
        while self.ever_read < position:
            await self._first_read.park()

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

    def wake(self) -> None:
        """Let all waiting readers look again, for news that are in no log."""
        for cursor in self._cursors:
            cursor.wake()

    def _note(self, position: int) -> None:
        if position > self._furthest:
            self._furthest = position
        if position > self.ever_read:
            self.ever_read = position
            if self._first_read:
                self._first_read.unpark_all()

    def _moved(self, position: int) -> None:
        self._note(position)
        self._on_room()

    def _leave(self, cursor: Cursor) -> None:
        self._cursors.discard(cursor)
        self._furthest = max((other.position for other in self._cursors), default=0)
        self._on_room()
