"""The event log in this process: a list of frames, the cursors of its readers, and the room that they leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, final

import trio

from crucible_trio.errors import CursorAheadError, LogLostError
from crucible_trio.log.contract import AppendListener, LogListener


class ByteAccount(Protocol):
    """Adds up what all logs of a process take."""

    def log_grew(self, size: int) -> None:
        """A log has accepted this many bytes."""


@final
class MemoryCursor:
    """A cursor of a `MemoryLog`. `crucible_trio.log.contract.Cursor` documents the methods."""

    __slots__ = ("_log", "_task", "listener", "offset")

    def __init__(self, log: MemoryLog, offset: int) -> None:
        self._log = log
        self._task: trio.lowlevel.Task | None = None
        self.offset = offset
        self.listener: AppendListener | None = None

    def advance(self, offset: int) -> None:
        """Move forward, and give the writer room."""
        if offset > self.offset:
            self.offset = offset
            self._log._moved(offset)

    def detach(self) -> None:
        """Leave the log. May be called twice."""
        self._log._leave(self)

    async def wait(self, after: int) -> None:
        """Wait for a record after `after`, the log's end, or `wake`."""
        self._log.check()
        if self._log.head > after or self._log.finished:
            await trio.lowlevel.checkpoint()
            return
        # No checkpoint lies between the caller's look and parking here, so no wake can be missed.
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    @property
    def is_waiting(self) -> bool:
        """Whether a task is in `wait` and has not been woken."""
        return self._task is not None

    def wake(self) -> None:
        """Make `wait` return."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _appended(self) -> None:
        if self._task is None:
            return
        if self.listener is not None:
            self.offset = self.listener.write_appended()
        if self.offset < self._log.head or self._log.finished:
            self.wake()


@final
class MemoryLog:
    """An event log in this process. It commits before `append_nowait` returns.

    `crucible_trio.log.contract.Log` documents the methods.

    It keeps the whole stream, so a slower second reader never holds the first back: it can catch up.

    Args:
        room_without_readers: Whether an engine may go on while no reader is attached.
        account: Is told of every append.

    Attributes:
        size_bytes: Bytes of all frames.
        finished: Whether the terminal record is in.
        ever_read: The furthest offset of any cursor so far.
        is_lost: Whether readers can get no end.
        listener: Is told of new room.
    """

    def __init__(self, *, room_without_readers: bool, account: ByteAccount | None = None) -> None:
        self.size_bytes = 0
        self.finished = False
        self.ever_read = 0
        self.listener: LogListener | None = None
        self.is_lost = False
        self._room_without_readers = room_without_readers
        self._account = account
        self._frames: list[bytes] = []
        self._cursors: set[MemoryCursor] = set()
        self._furthest = 0  # offset of the attached cursors
        self._waiters = trio.lowlevel.ParkingLot()  # in `wait_read` and `wait_finished`

    @property
    def head(self) -> int:
        """The number of the last record, 0 while there is none."""
        return len(self._frames)

    @property
    def pending_head(self) -> int:
        """The same as `head`."""
        return len(self._frames)

    @property
    def closed(self) -> bool:
        """The same as `finished`."""
        return self.finished

    @property
    def readers(self) -> int:
        """How many cursors are attached."""
        return len(self._cursors)

    @property
    def is_read(self) -> bool:
        """Whether a reader is attached."""
        return bool(self._cursors)

    @property
    def furthest(self) -> int:
        """The furthest offset of the attached cursors, 0 without any."""
        return self._furthest

    @property
    def is_awaited(self) -> bool:
        """Whether a task waits for the end, or for a reader."""
        return bool(self._waiters)

    # Writing

    def append_nowait(self, frames: Sequence[bytes], *, last: bool = False, pieces: int = 0) -> None:
        """Append records. They are visible, and written to clients that keep up, when this returns."""
        if self.finished:
            raise trio.ClosedResourceError
        self._frames.extend(frames)
        self.finished = last
        size = sum(map(len, frames))
        self.size_bytes += size
        for cursor in self._cursors:
            cursor._appended()
            self._note(cursor.offset)
        if last:
            self._waiters.unpark_all()
        if self._account is not None:
            self._account.log_grew(size)

    @property
    def has_room(self) -> bool:
        """Whether a running engine may go on."""
        if self._cursors:
            return self._furthest >= len(self._frames)
        return self._room_without_readers

    async def flushed(self) -> None:
        """Return: everything is visible."""

    async def wait_read(self, offset: int) -> None:
        """Wait until some cursor has reached `offset`."""
        while self.ever_read < offset:
            self.check()
            await self._waiters.park()

    def mark_read(self, offset: int) -> None:
        """A reader of another log with the same records has reached `offset`."""
        if offset > self.ever_read:
            self.ever_read = offset
            self._waiters.unpark_all()

    def lose(self) -> None:
        """Raise `LogLostError` in all readers that need more than the log has, now and from now on."""
        self.is_lost = True
        self._waiters.unpark_all()
        self.wake()

    def check(self) -> None:
        """Raise `LogLostError` if the log is lost."""
        if self.is_lost:
            raise LogLostError

    # Reading

    def attach(self, after: int) -> MemoryCursor:
        """Attach a reader that has everything up to `after`."""
        self.check()
        if after > len(self._frames):
            raise CursorAheadError(after, len(self._frames))
        cursor = MemoryCursor(self, after)
        self._cursors.add(cursor)
        self._moved(after)
        return cursor

    def read(self, after: int, limit_bytes: int | None = None) -> list[bytes]:
        """The frames after an offset, oldest first."""
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

    async def reached(self, offset: int) -> None:
        """Return: nothing is pending."""

    async def wait_finished(self) -> None:
        """Wait until the terminal record is in."""
        while not self.finished:
            self.check()
            await self._waiters.park()

    def wake(self) -> None:
        """Wake all waiting readers."""
        for cursor in self._cursors:
            cursor.wake()

    def _note(self, offset: int) -> None:
        if offset > self._furthest:
            self._furthest = offset
        if offset > self.ever_read:
            self.ever_read = offset
            if self._waiters:
                self._waiters.unpark_all()

    def _moved(self, offset: int) -> None:
        self._note(offset)
        if self.listener is not None:
            self.listener.room_available()

    def _leave(self, cursor: MemoryCursor) -> None:
        self._cursors.discard(cursor)
        self._furthest = max((other.offset for other in self._cursors), default=0)
        if self.listener is not None:
            self.listener.room_available()
