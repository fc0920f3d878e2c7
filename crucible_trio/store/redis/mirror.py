"""A copy of a log that another process writes, for the readers in this one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from crucible_trio.log.memory import ByteAccount, MemoryLog
from crucible_trio.records import CancelledBy, Terminal
from crucible_trio.snapshot import Progress
from crucible_trio.store.redis.messages import Outbox

if TYPE_CHECKING:
    from crucible_trio.hold import Hold
    from crucible_trio.stream import Stream

Entry: TypeAlias = tuple[bytes, Sequence[bytes]]
"""An entry of a Redis stream: its id, and the name and value of its one field."""

PAUSED_MARK = " paused"
"""Stands behind the process in the lease of a stream that waits for a reader."""


@final
class Mirror:
    """One stream that another process generates or has generated.

    It is the `Producer` of its stream and the `LogListener` of its log. It reports to the generating process how many
    readers it has and how far the furthest has got.

    Args:
        stream_id: The stream's id.
        outbox: Where reports and requests for the generating process go.
        account: Counts the bytes of the log.

    Attributes:
        id: The stream's id.
        log: The records so far.
        stream: The stream, once it is open.
        owner: Whose it is, once that is known.
        opened: The mirror is whole, or has failed.
        failure: Why it could not be opened.
        used_at: When it was last asked for.
        missing_since: When Redis was first seen without the stream.
        last_id: The last entry that has been read, as epoch and number.
        reading: Held while a page is read.
        is_dropped: Whether its bytes are not counted any more. Then it takes no more entries.
    """

    def __init__(self, stream_id: str, outbox: Outbox, account: ByteAccount) -> None:
        self.id = stream_id
        self.log = MemoryLog(room_without_readers=True, account=account)
        self.log.listener = self
        self.stream: Stream | None = None
        self.owner: str | None = None
        self.opened = trio.Event()
        self.failure: Exception | None = None
        self.used_at = trio.current_time()
        self.missing_since: float | None = None
        self.last_id = (0, 0)
        self.reading = trio.Lock()
        self.is_dropped = False
        self._outbox = outbox
        self._process: str | None = None
        self._is_paused = False
        self._reported = (0, 0)  # readers, and the furthest offset

    # From Redis

    def lease_is(self, lease: bytes | None) -> None:
        """The lease of the stream: the process that generates it. None if it has lapsed."""
        text = "" if lease is None else lease.decode()
        process = text.removesuffix(PAUSED_MARK) or None
        self._is_paused = text.endswith(PAUSED_MARK)
        if process != self._process:
            self._process = process
            self._reported = (0, 0)
            self.report()

    def feed(self, entries: Iterable[Entry]) -> bool:
        """Add entries to the log. Those that it has are skipped.

        Returns:
            False if an entry is missing before one of them. Then none from that one on has been added.
        """
        frames: list[bytes] = []
        last = False
        is_whole = True
        for entry_id, (field, frame) in entries:
            epoch, _, number = entry_id.partition(b"-")
            seq = int(number)
            following = self.log.head + len(frames) + 1
            if seq > following:
                is_whole = False
                break
            self.last_id = max(self.last_id, (int(epoch), seq))
            if seq == following:
                frames.append(frame)
                last = field == b"e"
        if frames and not self.log.finished and not self.is_dropped:
            self.log.append_nowait(frames, last=last)
            self.report()
        return is_whole

    @property
    def position(self) -> str:
        """The id of the last entry that has been read."""
        epoch, number = self.last_id
        return f"{epoch}-{number}"

    @property
    def is_used(self) -> bool:
        """Whether a reader is attached, or a task waits for the end."""
        return bool(self.log.readers) or self.log.is_awaited

    # To the generating process

    def report(self) -> None:
        """Report the readers, if the generating process needs to know."""
        readers, furthest = self.log.readers, self.log.furthest
        had, was = self._reported
        if bool(readers) != bool(had) or (readers and furthest > was and (furthest >= self.log.head or was < 1)):
            self.report_now()

    def report_now(self) -> None:
        """Report the readers."""
        if self._process is not None and not self.log.finished:
            self._reported = (self.log.readers, self.log.furthest)
            self._outbox.to(self._process).readers[self.id] = self._reported

    def room_available(self) -> None:
        """A cursor has moved, come or left (`LogListener`)."""
        self.report()

    def log_ended(self, terminal: Terminal | None) -> None:
        """Never called: this log has no writer (`LogListener`)."""

    # As the producer of its stream

    @property
    def paused(self) -> bool:
        """Whether the engine waits for a reader, as far as this process knows (`Producer`)."""
        return self._is_paused and not self.log.finished and not self.log.readers

    @property
    def hold(self) -> Hold | None:
        """None: clients wait for an engine's answer in its own process only (`Producer`)."""
        return None

    def progress(self) -> Progress | None:
        """None: only the generating process knows (`Producer`)."""
        return None

    def cancel(self, by: CancelledBy = "client") -> None:
        """Ask the generating process to cancel the stream (`Producer`)."""
        if self._process is not None and not self.log.finished:
            self._outbox.to(self._process).cancel[self.id] = by

    def reader_attached(self) -> None:
        """Nothing to do: the log says so (`Producer`)."""

    def reader_left(self) -> None:
        """Nothing to do: the log says so (`Producer`)."""
