"""The readers that other processes have of the streams generated here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import trio

from crucible_trio.log.shared import RemoteCursor
from crucible_trio.store.redis.commits import OwnStream
from crucible_trio.store.redis.messages import Message

# A process reports every 5 s.
_SILENCE_SECONDS: Final = 15.0


@final
class Presence:
    """Turns the reports of other processes into cursors of the logs here.

    Args:
        streams: The running streams of this process.
    """

    def __init__(self, streams: Mapping[str, OwnStream]) -> None:
        self._streams = streams
        self._heard_at: dict[str, float] = {}
        self._cursors: dict[str, dict[str, RemoteCursor]] = {}  # by stream, then by process

    def report(self, message: Message) -> None:
        """Another process reports its readers."""
        if message.readers:
            self._heard_at[message.sender] = trio.current_time()
        for stream_id, (readers, offset) in message.readers.items():
            own = self._streams.get(stream_id)
            if own is None or own.stream is None:
                continue
            cursors = self._cursors.setdefault(stream_id, {})
            if not readers:
                self._leave(stream_id, message.sender)
            elif message.sender in cursors:
                cursors[message.sender].advance(offset)
            else:
                cursors[message.sender] = own.log.attach_remote(offset)
                own.stream.producer.reader_attached()

    def forget_silent(self) -> None:
        """Forget the processes that have not reported for some seconds: they are dead, and so are their readers."""
        now = trio.current_time()
        for process, heard_at in list(self._heard_at.items()):
            if now > heard_at + _SILENCE_SECONDS:
                del self._heard_at[process]
                for stream_id in list(self._cursors):
                    self._leave(stream_id, process)

    def ended(self, stream_id: str) -> None:
        """A stream has ended."""
        self._cursors.pop(stream_id, None)

    def _leave(self, stream_id: str, process: str) -> None:
        cursor = self._cursors[stream_id].pop(process, None)
        own = self._streams.get(stream_id)
        if cursor is not None and own is not None and own.stream is not None:
            cursor.detach()
            own.stream.producer.reader_left()
