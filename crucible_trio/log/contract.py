"""The contract of a log with its writer and its readers.

A log holds the frames of one stream. Records are numbered from 1 without holes. An *offset* is the number of the last
record that a reader has, so 0 is the beginning. One generation writes. Any number of readers follow, each with a
cursor.

A log may commit later than it accepts: `append_nowait` takes frames, and they become visible, in order, once the log
has made sure of them. Until then they are pending, no reader sees them, and the log has no room. `MemoryLog` commits
before `append_nowait` returns. That is a property of that log, and nothing outside depends on it.

A log that several processes share can also be ended by another process, or be lost. Then its writer is told
(`LogListener.log_ended`), and a reader of a lost log gets `LogLostError`.

Every log passes the tests in `tests/log`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crucible_trio.records import Terminal


class LogListener(Protocol):
    """The writer of a log: a `Generation`."""

    def room_available(self) -> None:
        """The log may have room that it did not have before: a cursor moved or left, or frames were committed."""

    def log_ended(self, terminal: Terminal | None) -> None:
        """Another process has ended the log with this record, or the log is lost. Nothing can be appended any more."""


class AppendListener(Protocol):
    """A reader that can write to its client without waiting: the body of an event stream."""

    def write_appended(self) -> int:
        """Write the new visible records, as far as that needs no waiting. Must not raise.

        Called in the middle of a commit, while the reader is in `Cursor.wait`.

        Returns:
            The offset up to which everything has been written. Unless that is the log's head, the reader is woken.
        """


class Cursor(Protocol):
    """How far one attached reader has got.

    Attributes:
        offset: The last record that the reader has passed on to its transport.
        listener: Set by a reader that can write without waiting.
    """

    offset: int
    listener: AppendListener | None

    def advance(self, offset: int) -> None:
        """Say that everything up to `offset` has been passed on. Never goes back. Gives the writer room."""

    def detach(self) -> None:
        """Leave the log. May be called twice."""

    async def wait(self, after: int) -> None:
        """Wait until a record after `after` is visible, the log is finished, or `wake` is called.

        Raises:
            LogLostError: The log is lost.

        Checkpoints: always. Cancellation: safe. The caller looks again, because a return promises nothing.
        """

    @property
    def is_waiting(self) -> bool:
        """Whether a task is in `wait` and has not been woken."""

    def wake(self) -> None:
        """Make `wait` return, for news that are not in the log."""


class LogWriter(Protocol):
    """A log as its generation sees it.

    Attributes:
        listener: Is told of new room. Set once, before the first append after record 1.
    """

    listener: LogListener | None

    @property
    def pending_head(self) -> int:
        """The number of the last record that the log has accepted. At least `LogReader.head`."""

    @property
    def closed(self) -> bool:
        """Whether the terminal record has been accepted. Nothing is appended after it."""

    @property
    def is_read(self) -> bool:
        """Whether a reader is attached, in this process or in another one."""

    @property
    def ever_read(self) -> int:
        """The furthest offset of any cursor so far, including those that have left."""

    @property
    def has_room(self) -> bool:
        """Whether a running engine may go on.

        That is when nothing is pending, and the furthest attached cursor has reached the head. With no cursor attached
        it depends on the stream's `on_disconnect`. The cursor of another process may be some pieces behind the head,
        because it is reported now and then.
        """

    def append_nowait(self, frames: Sequence[bytes], *, last: bool = False, pieces: int = 0) -> None:
        """Accept the frames of the next records. Never waits.

        Args:
            frames: The frames of the records `pending_head + 1` and on.
            last: Whether the terminal record is the last of them.
            pieces: How many pieces they hold.

        Raises:
            trio.ClosedResourceError: The log is closed.
        """

    async def flushed(self) -> None:
        """Wait until everything accepted so far is visible, or the log has been ended by another process.

        Raises:
            LogLostError: The log is lost.

        Checkpoints: only if it has to wait. Cancellation: safe, the frames stay accepted.
        """

    async def wait_read(self, offset: int) -> None:
        """Wait until some cursor has reached `offset`.

        Raises:
            LogLostError: The log is lost.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """


class LogReader(Protocol):
    """A log as its readers see it: the visible part."""

    @property
    def head(self) -> int:
        """The number of the last visible record, 0 while there is none."""

    @property
    def finished(self) -> bool:
        """Whether the terminal record is visible."""

    @property
    def readers(self) -> int:
        """How many cursors are attached."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all accepted frames."""

    def read(self, after: int, limit_bytes: int | None = None) -> list[bytes]:
        """The visible frames after an offset, oldest first.

        Args:
            after: An offset up to the head.
            limit_bytes: Stop before the frame that would pass it. The first frame is always returned.

        Raises:
            CursorAheadError: `after` is beyond the head.
        """

    def attach(self, after: int) -> Cursor:
        """Attach a reader that has everything up to `after`.

        Raises:
            CursorAheadError: `after` is beyond the head.
            LogLostError: The log is lost.
        """

    async def reached(self, offset: int) -> None:
        """Wait until `offset` is visible, if it is pending. Another process may have shown it to a client before.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """

    async def wait_finished(self) -> None:
        """Wait until the terminal record is visible.

        Raises:
            LogLostError: The log is lost.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """

    def wake(self) -> None:
        """Wake all waiting readers, for news that are not in the log."""


class Log(LogWriter, LogReader, Protocol):
    """A whole log."""
