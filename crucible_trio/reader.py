"""One attached follower of a log."""

from __future__ import annotations

from collections.abc import Awaitable
from sys import maxsize
from types import TracebackType
from typing import Final, Protocol, Self, final

import trio

from crucible_trio.log.contract import AppendListener, Cursor, LogReader
from crucible_trio.records import AnyRecord, decode_frame

# How much is read from the log at a time. The cursor still moves record by record.
_READ_BYTES: Final = 16 * 1024


class Attachable(Protocol):
    """The target of a reader: a `Stream`."""

    @property
    def log(self) -> LogReader:
        """The log to follow."""

    def open_cursor(self, after: int) -> Cursor:
        """Attach at an offset, or raise `CursorAheadError` or `TooManyReadersError`."""

    def reader_left(self) -> None:
        """A reader has detached its cursor."""


@final
class Reader:
    """Follows a log from an offset to the terminal record. Enter it with `async with`.

    `async for` gives records, and moves the cursor when the next record is asked for. A transport uses `take`, `wait`
    and `passed` instead: its cursor moves when a write has returned, not when a record was read.

    Args:
        stream: The stream to follow.
        after: The offset up to which the reader has everything.

    Attributes:
        taken: The offset up to which frames have been taken.
        listener: Set before entering, by a transport that can write without waiting.
        until: The last offset that `take` returns. The cursor stays before it, until the client asks for more with
            another reader. Set before entering, by a transport whose client asks for a part.
    """

    def __init__(self, stream: Attachable, after: int) -> None:
        self._stream = stream
        self._log = stream.log
        self.listener: AppendListener | None = None
        self._cursor: Cursor | None = None
        self.taken = after
        self.until = maxsize
        self._records: list[AnyRecord] = []  # newest first. A deque would take 700 bytes of every idle stream

    async def __aenter__(self) -> Self:
        self._cursor = self._stream.open_cursor(self.taken)
        self._cursor.listener = self.listener
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cursor is not None:
            self._cursor.detach()
            self._cursor = None
            self._stream.reader_left()

    def take(self, limit_bytes: int) -> list[bytes]:
        """The next frames, each once. None when everything up to `until` has been taken.

        Args:
            limit_bytes: Stop before the frame that would pass it. The first frame is always returned.
        """
        frames = self._log.read(self.taken, limit_bytes)
        if self.taken + len(frames) > self.until:
            frames = frames[: self.until - self.taken]
        self.taken += len(frames)
        return frames

    @property
    def at_end(self) -> bool:
        """Whether the terminal record has been taken."""
        return self._log.finished and self.taken >= self._log.head

    def wait(self) -> Awaitable[None]:
        """Wait for something to take, the log's end, or `wake`. The caller looks again.

        Checkpoints: always. Cancellation: safe.
        """
        return self._entered.wait(self.taken)

    @property
    def is_waiting(self) -> bool:
        """Whether a task is in `wait` and has not been woken."""
        return self._entered.is_waiting

    def wake(self) -> None:
        """Make `wait` return, for news that are not in the log."""
        self._entered.wake()

    def passed(self, offset: int) -> None:
        """Say that everything up to `offset` has been written. This gives the engine room. See `until`.

        Raises:
            trio.ClosedResourceError: The reader has not been entered, or has left.
        """
        self._entered.advance(self.read_up_to(offset))

    def read_up_to(self, written: int) -> int:
        """The offset up to which the client counts as having read, if everything up to `written` has been written."""
        return min(written, self.until - 1)

    @property
    def _entered(self) -> Cursor:
        if self._cursor is None:
            raise trio.ClosedResourceError
        return self._cursor

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AnyRecord:
        """The next record. Asking for it says that the caller is done with the one before.

        Checkpoints: always. Cancellation: safe, no record is lost.
        """
        self.passed(self.taken - len(self._records))
        if self._records:
            await trio.lowlevel.checkpoint()
        while not self._records:
            if self.at_end:
                raise StopAsyncIteration
            await self.wait()
            self._records = [decode_frame(frame) for frame in reversed(self.take(_READ_BYTES))]
        return self._records.pop()
