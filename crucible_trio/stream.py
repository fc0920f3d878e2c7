"""The handle of a stream, which routes and users hold. The stream's generation may run in another process."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Protocol, final

import msgspec

from crucible_trio.errors import TooManyReadersError
from crucible_trio.hold import Hold
from crucible_trio.log.contract import Cursor, LogReader
from crucible_trio.metrics import Metrics
from crucible_trio.reader import Reader
from crucible_trio.records import TERMINAL, CancelledBy, Terminal, decode_frame
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.snapshot import Progress, Snapshot, Status, fold, status_of


@final
class StreamFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The facts that are fixed for the life of a stream, stored with its log before record 1.

    Attributes:
        id: The stream's id.
        owner: Who may read and stop it.
        request: With `model` filled in.
        on_disconnect: The policy while no reader is attached.
        created_at: Unix time in seconds.
        for_apis: Further facts, by the name of the API that reads them. They appear on no other API's wire.
        label: A name that its owner gave to a series of streams, such as a chat. The newest of them can be found by it.
        keeps_input: Whether the request's input is kept until the stream's retention ends. Otherwise only until its
            generation has ended.
    """

    id: str
    owner: str
    request: Request
    on_disconnect: OnDisconnect
    created_at: float
    for_apis: Mapping[str, msgspec.Raw] = {}
    label: str | None = None
    keeps_input: bool = True


class Producer(Protocol):
    """The source of a stream's records: a `Generation` here, or a connection to the process that has it."""

    @property
    def paused(self) -> bool:
        """Whether the engine waits for a reader to attach."""

    @property
    def hold(self) -> Hold | None:
        """Where clients wait for the engine's answer. None if the stream is not held."""

    def progress(self) -> Progress | None:
        """How far the engine is ahead of the log. None if it is not known here."""

    def cancel(self, by: CancelledBy = "client") -> None:
        """Stop the engine at its next checkpoint and end the stream, if it has not ended. Returns immediately."""

    def reader_attached(self) -> None:
        """A reader has attached."""

    def reader_left(self) -> None:
        """A reader has left."""


@final
class Stream:
    """One stream. `Pipeline.start` and `Pipeline.find` return it.

    Args:
        facts: Its fixed facts.
        log: Its records.
        producer: Generates them.
        metrics: Where its readers are counted.
        max_readers: How many readers may be attached at a time.

    Attributes:
        facts: Its fixed facts.
        id: The stream's id.
        owner: Who may read and stop it.
        request: With `model` filled in. After the end of a stream that does not keep its input, `input` is empty.
        log: Its records.
        max_readers: How many readers may be attached at a time.
        producer: Generates its records.
        is_known: Whether a client may have been told its id.
    """

    __slots__ = (
        "__weakref__",
        "_metrics",
        "_terminal",
        "facts",
        "id",
        "is_known",
        "log",
        "max_readers",
        "owner",
        "producer",
        "request",
    )

    def __init__(
        self, facts: StreamFacts, log: LogReader, producer: Producer, metrics: Metrics, *, max_readers: int
    ) -> None:
        self.facts = facts
        self.id = facts.id
        self.owner = facts.owner
        self.request = facts.request
        self.log = log
        self.max_readers = max_readers
        self.is_known = True
        self.producer = producer
        self._metrics = metrics
        self._terminal: Terminal | None = None

    def attach(self, after: int = 0) -> Reader:
        """A reader that has everything up to the offset `after`. Enter it with `async with`.

        Entering raises `CursorAheadError` when the offset is beyond the head, and `TooManyReadersError` when the stream
        has as many readers as it may have.
        """
        return Reader(self, after)

    def cancel(self, by: CancelledBy = "client") -> None:
        """Stop the engine at its next checkpoint and end the stream, if it has not ended. Returns immediately."""
        self.producer.cancel(by)

    def release_input(self) -> None:
        """Drop the parts of the request that only the engine reads. Call it when the engine has ended."""
        request = copy(self.request)  # the engine may still hold the other one
        msgspec.structs.force_setattr(request, "input", ())  # a `Request` must have one
        msgspec.structs.force_setattr(request, "extra", {})
        self.facts = msgspec.structs.replace(self.facts, request=request)
        self.request = request

    @property
    def created_at(self) -> float:
        """When the stream was accepted: Unix time in seconds."""
        return self.facts.created_at

    @property
    def on_disconnect(self) -> OnDisconnect:
        """The policy while no reader is attached."""
        return self.facts.on_disconnect

    @property
    def takes_readers(self) -> bool:
        """Whether one more reader may attach."""
        return self.log.readers < self.max_readers

    @property
    def terminal(self) -> Terminal | None:
        """The last record. None until it is in the log."""
        if self._terminal is None and self.log.finished:
            [frame] = self.log.read(self.log.head - 1)
            record = decode_frame(frame)
            assert isinstance(record, TERMINAL)
            self._terminal = record
        return self._terminal

    @property
    def status(self) -> Status:
        """`running` until the terminal record is in the log, then what that record says."""
        terminal = self.terminal
        return "running" if terminal is None else status_of(terminal)

    @property
    def paused(self) -> bool:
        """Whether the engine waits for a reader to attach."""
        return self.producer.paused

    @property
    def hold(self) -> Hold | None:
        """Where clients wait for the engine's answer. None if the stream is not held."""
        return self.producer.hold

    def finished_before(self, offset: int) -> bool:
        """Whether a reader at `offset` has everything, the terminal record included."""
        return self.log.finished and offset >= self.log.head

    def snapshot(self) -> Snapshot:
        """The content of the log, exactly. Taken without a checkpoint."""
        snapshot = fold(self.log.read(0))
        snapshot.paused = self.paused
        snapshot.progress = self.producer.progress()
        return snapshot

    # For its readers

    def open_cursor(self, after: int) -> Cursor:
        """Attach a cursor (`Attachable`)."""
        if not self.takes_readers:
            raise TooManyReadersError(self.max_readers)
        cursor = self.log.attach(after)
        self.producer.reader_attached()
        self._metrics.readers += 1
        if after > 0:
            self._metrics.resumes += 1
        return cursor

    def reader_left(self) -> None:
        """A reader has detached its cursor (`Attachable`)."""
        self._metrics.readers -= 1
        self.producer.reader_left()
