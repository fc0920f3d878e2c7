"""The log of a generation here whose records are stored elsewhere, where other processes read them.

A record is accepted, then stored, then visible. A commit service stores the accepted records of all logs in batches
(`take`) and reports what the store has (`acknowledge`). Only then do readers in this process get them. So no reader
holds a record that the store does not have, and a slow store slows the engine down: while anything is pending the log
has no room.

Nothing here does I/O, and nothing knows what the store is.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol, final

import trio

from crucible_trio.log.contract import LogListener
from crucible_trio.log.memory import ByteAccount, MemoryCursor, MemoryLog
from crucible_trio.records import Terminal


class CommitService(Protocol):
    """Stores the records of logs."""

    def commit_later(self, log: SharedLog) -> None:
        """The log has something to store. May be called again before that is stored."""


class Batch(NamedTuple):
    """Records to store.

    Attributes:
        first: The number of the first one.
        frames: Their frames.
        last: Whether the terminal record is the last of them.
    """

    first: int
    frames: list[bytes]
    last: bool


@final
class RemoteCursor:
    """The readers of one other process. Its offset may be beyond this log's visible head."""

    def __init__(self, log: SharedLog, offset: int) -> None:
        self._log = log
        self.offset = offset

    def advance(self, offset: int) -> None:
        """The furthest of these readers has got to `offset`. Gives the writer room."""
        if offset > self.offset:
            self.offset = offset
            self._log._remote_moved(offset)

    def detach(self) -> None:
        """The last of these readers has left. May be called twice."""
        self._log._remote_left(self)


@final
class SharedLog:
    """An event log that is stored elsewhere. `crucible_trio.log.contract.Log` documents the methods.

    Args:
        commits: Stores its records.
        room_without_readers: Whether an engine may go on while no reader is attached.
        slack: How many pieces the furthest reader of another process may be behind while the log still has room. Its
            position is reported now and then, and without slack the engine would wait for each report.
        account: Is told of every append.

    Attributes:
        closed: Whether the terminal record is accepted, or the log has ended in another way.
        is_lost: Whether the log is lost.
        size_bytes: Bytes of all accepted frames.
        listener: Is told of new room, and of an end that it has not written.
    """

    def __init__(
        self,
        commits: CommitService,
        *,
        room_without_readers: bool,
        slack: int = 0,
        account: ByteAccount | None = None,
    ) -> None:
        self.closed = False
        self.is_lost = False
        self.size_bytes = 0
        self.listener: LogListener | None = None
        self._commits = commits
        self._slack = slack
        self._account = account
        self._visible = MemoryLog(room_without_readers=room_without_readers)
        self._visible.listener = self
        self._pending: list[bytes] = []
        self._stored = 0  # records that the store has. Less than the visible ones only after it has lost some
        self._end_is_stored = False
        self._pieces = array("Q")  # for each accepted record, the pieces up to it
        self._remote: set[RemoteCursor] = set()
        self._waiters = trio.lowlevel.ParkingLot()  # in `flushed` and `reached`

    # Writing

    @property
    def pending_head(self) -> int:
        """The number of the last accepted record."""
        return self._visible.head + len(self._pending)

    @property
    def ever_read(self) -> int:
        """The furthest offset of any cursor so far, in any process."""
        return self._visible.ever_read

    @property
    def is_read(self) -> bool:
        """Whether a reader is attached in any process."""
        return bool(self._remote) or self._visible.is_read

    @property
    def has_room(self) -> bool:
        """Whether a running engine may go on."""
        if self._is_pending:
            return False
        if self._remote:
            if self._pieces_after(max(cursor.offset for cursor in self._remote)) <= self._slack:
                return True
            return self._visible.is_read and self._visible.has_room
        return self._visible.has_room

    def append_nowait(self, frames: Sequence[bytes], *, last: bool = False, pieces: int = 0) -> None:
        """Accept records. They become visible when they are stored."""
        if self.closed:
            raise trio.ClosedResourceError
        if not frames and not last:
            return
        self.closed = last
        self._pending += frames
        before = self._pieces[-1] if self._pieces else 0
        for index in range(len(frames)):
            self._pieces.append(before + (pieces if index == len(frames) - 1 else 0))
        self._grow(sum(map(len, frames)))
        self._commits.commit_later(self)

    async def flushed(self) -> None:
        """Wait until everything accepted so far is visible."""
        head, closed = self.pending_head, self.closed
        while not self._visible.finished and (closed or self._visible.head < head):
            self._visible.check()
            await self._waiters.park()

    async def wait_read(self, offset: int) -> None:
        """Wait until some cursor in any process has reached `offset`."""
        await self._visible.wait_read(offset)

    # For the commit service

    @property
    def needs_commit(self) -> bool:
        """Whether there is something to store."""
        return self._stored < self.pending_head or (self.closed and not self._end_is_stored)

    def take(self, max_frames: int, max_bytes: int) -> Batch:
        """The next records to store. They stay pending until they are acknowledged, so they can be taken again.

        Args:
            max_frames: At most this many.
            max_bytes: Stop before the frame that would pass it. The first frame is always taken.
        """
        first = self._stored + 1
        if self._stored < self._visible.head:
            rest = [*self._visible.read(self._stored), *self._pending]
        else:
            rest = self._pending
        frames: list[bytes] = []
        for frame in rest[:max_frames]:
            max_bytes -= len(frame)
            if frames and max_bytes < 0:
                break
            frames.append(frame)
        return Batch(first, frames, self.closed and len(frames) == len(rest))

    def acknowledge(self, head: int, *, ended: bool) -> None:
        """The store has the records up to `head`. Makes them visible, and written to clients that keep up.

        Args:
            head: At most `pending_head`. Less than what was acknowledged before if the store has lost records: then
                they are stored again.
            ended: Whether the store knows that the last of them is the terminal record.
        """
        self._stored, self._end_is_stored = head, ended
        new = head - self._visible.head
        if new > 0 or (ended and not self._visible.finished):
            frames, self._pending = self._pending[:new], self._pending[new:]
            self._visible.append_nowait(frames, last=ended)
            self._waiters.unpark_all()
        if self.needs_commit:
            self._commits.commit_later(self)
        self.room_available()

    def end_elsewhere(self, frames: Sequence[bytes], terminal: Terminal) -> None:
        """Another process has ended the log. What is pending here is dropped.

        Args:
            frames: The records after the visible head, the terminal record included.
            terminal: That record.
        """
        self._close()
        self._stored = self._visible.head + len(frames)
        self._end_is_stored = True
        self._visible.append_nowait(frames, last=True)
        self._grow(self._visible.size_bytes - self.size_bytes)
        self._told(terminal)

    def lose(self) -> None:
        """The log is lost, unless it has ended. Its readers get `LogLostError`, and its writer is told."""
        if self.is_lost or self._visible.finished:
            return
        self.is_lost = True
        self._close()
        self._stored, self._end_is_stored = self._visible.head, True
        self._visible.lose()
        self._told(None)

    def _close(self) -> None:
        self.closed = True
        self._pending.clear()

    def _told(self, terminal: Terminal | None) -> None:
        self._waiters.unpark_all()
        if self.listener is not None:
            self.listener.log_ended(terminal)

    # Readers of other processes

    def attach_remote(self, offset: int) -> RemoteCursor:
        """Attach the readers of another process, the furthest of which has got to `offset`."""
        cursor = RemoteCursor(self, offset)
        self._remote.add(cursor)
        self._remote_moved(offset)
        return cursor

    def _remote_moved(self, offset: int) -> None:
        self._visible.mark_read(offset)
        self.room_available()

    def _remote_left(self, cursor: RemoteCursor) -> None:
        self._remote.discard(cursor)
        self.room_available()

    def _pieces_after(self, offset: int) -> int:
        head = self._visible.head
        if offset >= head:
            return 0
        return self._pieces[head - 1] - (self._pieces[offset - 1] if offset else 0)

    # Reading

    @property
    def head(self) -> int:
        """The number of the last visible record."""
        return self._visible.head

    @property
    def finished(self) -> bool:
        """Whether the terminal record is visible."""
        return self._visible.finished

    @property
    def readers(self) -> int:
        """How many cursors are attached in this process."""
        return self._visible.readers

    def read(self, after: int, limit_bytes: int | None = None) -> list[bytes]:
        """The visible frames after an offset, oldest first."""
        return self._visible.read(after, limit_bytes)

    def attach(self, after: int) -> MemoryCursor:
        """Attach a reader that has everything up to `after`."""
        return self._visible.attach(after)

    async def reached(self, offset: int) -> None:
        """Wait until `offset` is visible, if it is pending."""
        while self._visible.head < offset <= self.pending_head:
            await self._waiters.park()

    async def wait_finished(self) -> None:
        """Wait until the terminal record is visible."""
        await self._visible.wait_finished()

    def wake(self) -> None:
        """Wake all waiting readers."""
        self._visible.wake()

    def room_available(self) -> None:
        """A cursor of the visible part has moved (`LogListener`)."""
        if self.listener is not None:
            self.listener.room_available()

    def log_ended(self, terminal: Terminal | None) -> None:
        """Never called: the visible part ends when this log says so (`LogListener`)."""

    @property
    def _is_pending(self) -> bool:
        return bool(self._pending) or (self.closed and not self._visible.finished)

    def _grow(self, size: int) -> None:
        self.size_bytes += size
        if self._account is not None:
            self._account.log_grew(size)
