"""The store in this process. It keeps logs in memory, and waits for nothing but an idempotency key."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Final, Protocol, final

import trio

from crucible_trio.config import Settings
from crucible_trio.errors import OverloadedError, OwnerLimitError, StreamNotFoundError
from crucible_trio.log.contract import Log
from crucible_trio.log.memory import ByteAccount, MemoryLog
from crucible_trio.records import encode_json
from crucible_trio.store.facts_bytes import FactsBytes
from crucible_trio.store.idempotency import IdempotencyKeys
from crucible_trio.store.labels import Labels
from crucible_trio.store.retention import Retention
from crucible_trio.stream import Stream, StreamFacts
from crucible_trio.timers import Timer, Timers

ANONYMOUS: Final = ""
"""The owner of every stream where no keys are configured."""


class LogFactory(Protocol):
    """Makes the logs of a store."""

    def __call__(self, *, room_without_readers: bool, account: ByteAccount | None) -> Log:
        """Make an empty log. The arguments are those of `MemoryLog`."""


@final
class MemoryStore:
    """Logs and streams of one process. `crucible_trio.store.contract.StreamStore` documents the methods.

    Args:
        settings: Limits and retention.
        timers: Fire when a stream's retention is over.
        new_log: Makes its logs.

    Attributes:
        ready: Always True.
        failures: Always 0.
        log_bytes: Bytes of all logs, and of the facts stored with them.
    """

    def __init__(self, settings: Settings, timers: Timers, *, new_log: LogFactory = MemoryLog) -> None:
        self.ready = True
        self.failures = 0
        self.log_bytes = 0
        self._settings = settings
        self._timers = timers
        self._new_log = new_log
        self._created: set[str] = set()  # ids of the streams whose generation has not ended
        self._created_by_owner: Counter[str] = Counter()
        self._facts = FactsBytes()
        self._streams: dict[str, Stream] = {}  # those that have started and not ended
        self._order: dict[str, Stream] = {}  # all streams that can be listed, oldest first
        self._keys = IdempotencyKeys()
        self._labels = Labels()
        self._retention = Retention(settings.retention_seconds)
        self._expiry = Timer(inf, self)

    @property
    def running(self) -> int:
        """Streams that have not ended."""
        return len(self._created)

    @property
    def kept(self) -> int:
        """Finished streams that can still be read."""
        return len(self._retention)

    # Starting

    async def claim(self, owner: str, key: str, digest: bytes, stream_id: str) -> str:
        """Claim an idempotency key. Checkpoints: only while another claim is about to start its stream."""
        return await self._keys.claim(owner, key, digest, stream_id)

    async def release(self, owner: str, key: str, stream_id: str) -> None:
        """Give a claimed key back."""
        self._keys.release(owner, key, stream_id)

    async def create(self, facts: StreamFacts) -> Log:
        """Make the log of a new stream. Checkpoints: never."""
        limit = self._settings.max_streams_per_owner
        if facts.owner != ANONYMOUS and self._created_by_owner[facts.owner] >= limit:
            raise OwnerLimitError(limit)
        if len(self._created) >= self._settings.max_streams:
            message = f"the server already has {self._settings.max_streams} running streams"
            raise OverloadedError(message)
        encode_json(facts)  # fails for half a character, so before anything is counted
        measured = self._facts.measure(facts)
        kept = self.kept
        self._evict(measured.new_bytes)
        if self.kept != kept:  # the last stream that shared a message may be gone
            measured = self._facts.measure(facts)
        size = measured.new_bytes
        if self.log_bytes + size >= self._settings.total_log_bytes:
            message = "the server's event log memory limit is reached"
            raise OverloadedError(message)
        self._created.add(facts.id)
        self._created_by_owner[facts.owner] += 1
        self.log_grew(self._facts.add(facts.id, measured))
        return self._new_log(room_without_readers=facts.on_disconnect == "continue", account=self)

    async def started(self, stream: Stream, key: str | None) -> None:
        """Let a stream be found. Checkpoints: never."""
        self._streams[stream.id] = self._order[stream.id] = stream
        if key is not None:
            self._keys.started(stream.owner, key, stream.id)
        if stream.facts.label is not None:
            self._labels.started(stream.owner, stream.facts.label, stream.id)

    # Finding

    async def find(self, stream_id: str, owner: str | None) -> Stream:
        """Find a stream. Checkpoints: never."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return self._retention.find(stream_id, owner)
        if owner not in {None, stream.owner} or stream_id not in self._order:
            raise StreamNotFoundError
        return stream

    async def find_labelled(self, owner: str, label: str) -> Stream | None:
        """Find the newest stream with a label. Checkpoints: never."""
        stream_id = self._labels.find(owner, label)
        return None if stream_id is None else self._order[stream_id]

    async def count_readers(self, stream_id: str, *, attached: int = 0, away: int = 0) -> int:
        """Count the readers that have not been sent the end. Checkpoints: never."""
        return self._labels.count(stream_id, attached, away)

    async def list(self, owner: str) -> list[Stream]:
        """The owner's streams, newest first. Checkpoints: never."""
        return [stream for stream in reversed(self._order.values()) if stream.owner == owner]

    # Ending

    def ended(self, stream: Stream) -> None:
        """Keep a stream whose generation has ended for its retention, if it was started and not forgotten."""
        self._created.discard(stream.id)
        self._created_by_owner[stream.owner] -= 1
        if not self._created_by_owner[stream.owner]:
            del self._created_by_owner[stream.owner]
        was_started = self._streams.pop(stream.id, None) is not None
        if stream.id in self._order:
            self._recount(stream)
            self._retention.keep(stream, trio.current_time())
            self._set_expiry()
        elif was_started:
            self._drop(stream, forgotten=True)
        else:
            self._free(stream)

    async def forget(self, stream: Stream) -> None:
        """Let no caller find a stream again. Checkpoints: never."""
        self.forget_now(stream)

    def forget_now(self, stream: Stream) -> None:
        """The same as `forget`."""
        self._unlist(stream)
        if stream.id not in self._streams:
            self._drop(stream, forgotten=True)

    def keeps(self, stream: Stream) -> bool:
        """Whether a stream can be found."""
        return stream.id in self._order

    def wake_readers(self) -> None:
        """Wake all waiting readers."""
        for stream in (*self._streams.values(), *self._retention):
            stream.log.wake()

    # Memory

    def log_grew(self, size: int) -> None:
        """Count bytes (`ByteAccount`), and evict finished streams if there are too many."""
        self.log_bytes += size
        self._evict()

    def timer_fired(self) -> None:
        """The retention of a stream, or the memory of an expired one, may be over (`Timed`)."""
        now = trio.current_time()
        for stream in self._retention.expired(now):
            self._drop(stream)
        for stream_id in self._retention.unremember(now):
            self._keys.drop(stream_id)
        self._set_expiry()

    def _set_expiry(self) -> None:
        self._expiry = self._timers.set_no_later(self._expiry, self._retention.next_change(), self)

    def _evict(self, size: int = 0) -> None:
        """Evict finished streams until the logs have room for more bytes, if they can have it."""
        while size < self._settings.total_log_bytes <= self.log_bytes + size:
            stream = self._retention.oldest_unread()
            if stream is None:
                return
            self._drop(stream)

    def _drop(self, stream: Stream, *, forgotten: bool = False) -> None:
        self._unlist(stream)
        self._retention.drop(stream, trio.current_time(), forgotten=forgotten)
        self._set_expiry()
        self._free(stream)

    def _unlist(self, stream: Stream) -> None:
        self._order.pop(stream.id, None)
        if stream.facts.label is not None:
            self._labels.drop(stream.owner, stream.facts.label, stream.id)

    def _free(self, stream: Stream) -> None:
        facts_bytes = self._facts.remove(stream.id)
        if facts_bytes:  # a stream can be forgotten after it was dropped
            self.log_bytes -= stream.log.size_bytes + facts_bytes

    def _recount(self, stream: Stream) -> None:
        """Count the facts of a stream again, whose input may have been released."""
        if not stream.facts.keeps_input:
            self.log_bytes -= self._facts.remove(stream.id)
            self.log_bytes += self._facts.add(stream.id, self._facts.measure(stream.facts))
