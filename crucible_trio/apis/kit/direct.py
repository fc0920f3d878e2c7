"""The direct writes of one body: records are written to the client in the middle of the append.

Without direct writes an append wakes the reader's task, and the task writes. With them the append itself writes, and no
task is woken. `crucible_trio.direct_writes` describes the extension that a server offers for this.

A write may leave work for the body. `_left` says which:

| `_left` | entered when | the work, done by `settle` |
|---|---|---|
| None | at first, and after `settle` | none |
| `_Held` | the kernel took a part, so the server holds the rest | flush the rest |
| `_Oversized` | the new events are more than one write may hold | return the events, which the body sends |
| `_Failed` | the dialect raised | raise the same error, in the body's task |

Whenever work is left, the reader is woken and the body calls `settle` before it waits again. So nothing is written
directly while work is left, and events stay in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import trio
from quart import request

from crucible_trio.apis.kit.dialect import Dialect
from crucible_trio.apis.kit.silence import Silence
from crucible_trio.batching import Batcher
from crucible_trio.direct_writes import EXTENSION, DirectWriter
from crucible_trio.reader import Reader

MESSAGE_BYTES: Final = 16 * 1024
"""The most that one write holds, and one message of a body. Our server gives each message one write deadline."""


@final
@dataclass(frozen=True, slots=True)
class _Held:
    pass


@final
@dataclass(frozen=True, slots=True)
class _Oversized:
    events: bytes


@final
@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


_HELD: Final = _Held()


@final
class AppendWriter:
    """Writes the records that are appended while the body waits for its reader.

    Args:
        writer: The server's end.
        reader: The body's reader. It must not have been entered yet.
        dialect: The body's dialect.
        batcher: Counts the writes.
        silence: Restarted by every write.
    """

    __slots__ = ("_batcher", "_dialect", "_left", "_reader", "_silence", "_writer")

    def __init__(
        self, writer: DirectWriter, reader: Reader, dialect: Dialect, batcher: Batcher, silence: Silence
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._dialect = dialect
        self._batcher = batcher
        self._silence = silence
        self._left: _Held | _Oversized | _Failed | None = None
        reader.listener = self

    def write_appended(self) -> int:
        """Write the records that were just appended, while the reader waits (`AppendListener`).

        Returns:
            The offset up to which the client has everything. Below the log's head, the log wakes the reader.
        """
        before = self._reader.taken
        if self._left is not None or not self._writer.ready:
            return before
        try:
            events = self._dialect.feed(self._reader.take(MESSAGE_BYTES))
        except Exception as error:  # a bug here must not reach the engine, which called append
            self._left = _Failed(error)
            return before
        if len(events) > MESSAGE_BYTES:
            self._left = _Oversized(events)
            return before
        if events and not self._write(events):
            return before
        return self._reader.read_up_to(self._reader.taken)

    def write_keep_alive(self) -> bool:
        """Write a keep-alive, if the body waits and nothing else is to be written.

        Returns:
            Whether the kernel took it. If not, wake the reader.
        """
        if not (self._reader.is_waiting and self._left is None and self._writer.ready):
            return False
        keep_alive = self._dialect.keep_alive()
        return len(keep_alive) <= MESSAGE_BYTES and self._write(keep_alive)

    async def settle(self) -> bytes:
        """Do the work that the last write left. The body calls this whenever its reader has woken.

        Returns:
            Events that the body must send, because they were too many for a direct write. Usually empty.

        Raises:
            Exception: The dialect raised it in the middle of an append.

        Checkpoints: only if the server holds a part of a write. Cancellation: the connection is reset.
        """
        match self._left:
            case _Held():
                await self._writer.flush()
                self._left = None
            case _Oversized(events=events):
                self._left = None
                return events
            case _Failed(error=error):
                raise error
        return b""

    def _write(self, data: bytes) -> bool:
        self._silence.since = trio.current_time()
        self._batcher.direct_writes += 1
        if self._writer.write_last_nowait(data) if self._reader.at_end else self._writer.write_nowait(data):
            return True
        self._left = _HELD
        return False


def direct_writer() -> DirectWriter | None:
    """The direct writer of the current request's connection. None if the server offers none."""
    extensions = request.scope.get("extensions") or {}
    return extensions.get(EXTENSION, {}).get("body")
