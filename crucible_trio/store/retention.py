"""Finished streams while they can be read, and the ids of expired ones. Times are arguments: nothing needs trio."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import Final, final

from crucible_trio.errors import StreamExpiredError, StreamNotFoundError
from crucible_trio.stream import Stream

# How long an expired stream is told from one that never existed.
REMEMBERED_SECONDS: Final = 3600.0
# Limits the remembered ids, about 300 bytes each. Beyond it the oldest are forgotten.
MAX_REMEMBERED: Final = 100_000


@final
@dataclass(frozen=True, slots=True)
class _Gone:
    owner: str
    forgotten: bool
    until: float


@final
class Retention:
    """Keeps finished streams for `keep_seconds` each, then their ids for an hour. Times are `trio.current_time()`."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._kept: OrderedDict[str, tuple[Stream, float]] = OrderedDict()  # oldest first
        self._gone: OrderedDict[str, _Gone] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Stream]:
        return (stream for stream, _ in self._kept.values())

    def keep(self, stream: Stream, now: float) -> None:
        """Keep a stream that has just ended."""
        self._kept[stream.id] = (stream, now + self._keep_seconds)

    def find(self, stream_id: str, owner: str | None) -> Stream:
        """Find a kept stream.

        Raises:
            StreamExpiredError, StreamNotFoundError: As `StreamStore.find` says.
        """
        kept = self._kept.get(stream_id)
        if kept is not None and owner in {None, kept[0].owner}:
            return kept[0]
        gone = self._gone.get(stream_id)
        if gone is not None and owner in {None, gone.owner} and not gone.forgotten:
            raise StreamExpiredError
        raise StreamNotFoundError

    def drop(self, stream: Stream, now: float, *, forgotten: bool = False) -> None:
        """Drop a stream and remember its id. If it was `forgotten`, it looks as if it had never existed."""
        self._kept.pop(stream.id, None)
        self._gone.pop(stream.id, None)
        self._gone[stream.id] = _Gone(stream.owner, forgotten, now + REMEMBERED_SECONDS)

    def oldest_unread(self) -> Stream | None:
        """The stream to evict first when memory is short."""
        return next((stream for stream in self if not stream.log.readers), None)

    def expired(self, now: float) -> list[Stream]:
        """The kept streams whose time is over."""
        return [stream for stream, _ in takewhile(lambda kept: kept[1] <= now, self._kept.values())]

    def unremember(self, now: float) -> list[str]:
        """Drop the ids whose hour is over, or that are too many.

        Returns:
            Those ids.
        """
        dropped: list[str] = []
        while self._gone:
            stream_id, gone = next(iter(self._gone.items()))
            if gone.until > now and len(self._gone) <= MAX_REMEMBERED:
                break
            del self._gone[stream_id]
            dropped.append(stream_id)
        return dropped

    def next_change(self) -> float:
        """When the next stream or id expires."""
        kept = next((until for _, until in self._kept.values()), inf)
        gone = next((gone.until for gone in self._gone.values()), inf)
        return min(kept, gone)
