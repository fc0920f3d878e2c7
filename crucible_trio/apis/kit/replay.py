"""Views of a log whose events have numbers of their own wire, from any event on.

One record can become several events, so the number of an event is not the offset of its record. Numbers depend on the
log only. So a view folds the log from record 1 until it reaches the last event that its client has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol, final

import trio

from crucible_trio.apis.kit.plain_dialect import PlainDialect
from crucible_trio.errors import CursorAheadError
from crucible_trio.log.contract import LogReader
from crucible_trio.records import AnyRecord, decode_frame

# How much is folded between two checkpoints.
FOLD_BYTES: Final = 64 * 1024


class NumberedFold(Protocol):
    """Folds the records of a log into events, from record 1 on and in order. Depends on them and on nothing else."""

    @property
    def next_number(self) -> int:
        """The number of the next event, counted from 0. It is also the number of events so far."""

    def encode(self, record: AnyRecord) -> Sequence[bytes]:
        """Fold the next record, and return the bytes of each of its events."""

    def keep_alive(self) -> bytes:
        """As `Dialect.keep_alive`."""


async def open_after(log: LogReader, fold: NumberedFold, after: int | None = None) -> NumberedDialect:
    """Open one reader's view of a log.

    Args:
        log: The log.
        fold: Has folded nothing yet.
        after: The number of the last event that the client has. None for none.

    Returns:
        The view. If the client has some of a record's events, `resume_offset` lies before this record, and the view
        leaves out the events that the client has.

    Raises:
        CursorAheadError: There is no such event yet. `head` is the number of the last event.

    Checkpoints: while it folds earlier records, so that a long log does not block other tasks. Cancellation: safe.
    """
    if after is None:
        return NumberedDialect(fold, 0)
    offset = 0
    while fold.next_number <= after:
        frames = log.read(offset, FOLD_BYTES)
        if not frames:
            raise CursorAheadError(after, fold.next_number - 1)
        for frame in frames:
            events = fold.encode(decode_frame(frame))
            if (missing := fold.next_number - 1 - after) > 0:
                return NumberedDialect(fold, offset, b"".join(events[-missing:]))
            offset += 1
            if missing == 0:
                break
        await trio.lowlevel.checkpoint()
    return NumberedDialect(fold, offset)


@final
class NumberedDialect(PlainDialect):
    """The events of a fold (`Dialect`).

    Args:
        fold: Has folded the records up to the offset, and one more if there is a rest.
        resume_offset: Where the view begins.
        rest: Events of the first record, if it has been folded: those that the client lacks.
    """

    def __init__(self, fold: NumberedFold, resume_offset: int, rest: bytes | None = None) -> None:
        super().__init__(resume_offset)
        self._fold = fold
        self._rest = rest

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Fold the records (`Dialect`)."""
        return b"".join(self._each(frames))

    def keep_alive(self) -> bytes:
        """The event of the fold (`Dialect`)."""
        return self._fold.keep_alive()

    def _each(self, frames: Sequence[bytes]) -> Iterator[bytes]:
        for frame in frames:
            if self._rest is not None:
                rest, self._rest = self._rest, None
                yield rest
            else:
                yield from self._fold.encode(decode_frame(frame))
