"""The log of a stream that is only listed."""

from __future__ import annotations

from typing import final

from crucible_trio.errors import LogUnavailableError
from crucible_trio.log.contract import Cursor


@final
class ListedLog:
    """Knows the head and the terminal record, and has no other records (`LogReader`).

    A list of streams reads them from Redis without their logs. `Pipeline.find` gives a stream that can be read.

    Args:
        head: The number of the last record.
        terminal: The frame of the terminal record. None while the stream runs.
    """

    def __init__(self, head: int, terminal: bytes | None) -> None:
        self.head = head
        self.finished = terminal is not None
        self.readers = 0
        self.size_bytes = 0
        self._terminal = terminal

    def read(self, after: int, limit_bytes: int | None = None) -> list[bytes]:
        """The terminal record, and nothing else."""
        if self._terminal is not None and after == self.head - 1:
            return [self._terminal]
        raise _not_here()

    def attach(self, after: int) -> Cursor:
        """Refuse."""
        raise _not_here()

    async def reached(self, offset: int) -> None:
        """Return: there are no records."""

    async def wait_finished(self) -> None:
        """Refuse, unless the stream has ended."""
        if not self.finished:
            raise _not_here()

    def wake(self) -> None:
        """Nothing waits."""


def _not_here() -> LogUnavailableError:
    message = "a stream from a list has no records here: find it by its id"
    return LogUnavailableError(message)
