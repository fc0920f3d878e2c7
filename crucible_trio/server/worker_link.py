"""The connection between a supervisor and one of its workers: messages in both directions over a socket pair.

Neither side waits when it sends: what the socket does not take stays in a queue. The number of messages is bounded by
the protocol: a side never asks again before it has the answer. End of file means that the other process has ended.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from typing import Final, Self, TypeAlias, final

import msgspec
import trio

from crucible_trio.totals import Family

_LENGTH_BYTES: Final = 4
_CHUNK_BYTES: Final = 64 * 1024


class Setup(msgspec.Struct, frozen=True, tag=True):
    """The first message to a worker.

    Attributes:
        number: The worker's number, from 1.
        sockets: File descriptors of the sockets to listen on.
        settings: Settings for the worker. The caller of the supervisor encodes them, and the worker decodes them.
    """

    number: int
    sockets: list[int]
    settings: bytes


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a worker: let running streams finish, then end."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """To a worker: end immediately."""


class Count(msgspec.Struct, frozen=True, tag=True):
    """To a worker: send your metrics."""


class Total(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the metrics of all workers. The answer to `Collect`."""

    families: list[Family]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a worker: clients can connect. With the message of its start."""

    message: str


class CannotStart(msgspec.Struct, frozen=True, tag=True):
    """From a worker: a setting is wrong, or does not work on this machine. The message says which."""

    message: str


class Counted(msgspec.Struct, frozen=True, tag=True):
    """From a worker: its metrics. The answer to `Count`."""

    families: list[Family]


class Collect(msgspec.Struct, frozen=True, tag=True):
    """From a worker: its metrics, and the question for those of all workers."""

    families: list[Family]


Message: TypeAlias = Setup | Drain | Stop | Count | Total | Ready | CannotStart | Counted | Collect

_DECODER: Final = msgspec.msgpack.Decoder(Message)


@final
class WorkerLink:
    """One end of the connection. Iterating over it receives messages until the other process has ended.

    Args:
        sock: One socket of a pair. The link closes it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._queue, self._queued = trio.open_memory_channel[bytes](math.inf)
        self._received = bytearray()

    async def run(self) -> None:
        """Send what is posted, until cancelled or until the other process has ended."""
        with self._queued, suppress(trio.BrokenResourceError):
            async for data in self._queued:
                await self._stream.send_all(data)

    def post(self, message: Message) -> None:
        """Send a message. Does not wait. A message to a process that has ended is lost."""
        with suppress(trio.BrokenResourceError):
            self._queue.send_nowait(frame(message))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Receive the next message.

        Cancellation: loses nothing. Checkpoints: when it waits.
        """
        while (message := self._take()) is None:
            try:
                data = await self._stream.receive_some(_CHUNK_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise StopAsyncIteration
            self._received += data
        return message

    def _take(self) -> Message | None:
        end = _LENGTH_BYTES + int.from_bytes(self._received[:_LENGTH_BYTES])
        if len(self._received) < end:  # also before the whole length is there
            return None
        message: Message = _DECODER.decode(self._received[_LENGTH_BYTES:end])
        del self._received[:end]
        return message

    def close(self) -> None:
        """Close this end. Does not wait."""
        self._stream.socket.close()


def frame(message: Message) -> bytes:
    """The bytes of a message: its length and the message in MessagePack."""
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(_LENGTH_BYTES) + data
