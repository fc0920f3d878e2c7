"""One connection to a server, and the exchanges on it, one at a time."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import Final, final

import trio

from crucible_trio.http.direct_reads import DirectReads, Receiver
from crucible_trio.http.parser import ResponseParser

# At most this much is taken from the socket when the caller asks for more, and nothing when not: backpressure.
RECEIVE_BYTES: Final = 32 * 1024


@final
class HttpConnection:
    """A connection that sends requests and receives responses.

    Args:
        stream: The connection, such as a socket, TLS on one, or a stream in memory.
        reads: Reads sockets. None: every task reads its own.

    Attributes:
        idle_since: When it was last used, on trio's clock.
        is_reused: Whether this is not its first exchange.
    """

    def __init__(self, stream: trio.abc.Stream, reads: DirectReads | None = None) -> None:
        self.idle_since = 0.0
        self.is_reused = False
        self._stream = stream
        self._file = _file_of(stream)
        self._is_plain = isinstance(stream, trio.SocketStream)
        self._reads = reads if self._is_plain else None

    async def exchange(self, request: bytes) -> ResponseParser:
        """Send a request, and wait for the head of its response.

        Returns:
            The parser of the response.

        Raises:
            ConnectionLostError: The connection ended before the head was complete.
            InvalidResponseError: The response breaks HTTP.

        Cancellation: the connection must be closed then.
        """
        parser = ResponseParser()
        # A server that refuses a body early answers and closes. The answer can still be read.
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(request)
        while not parser.has_head:
            await self.receive_into(parser)
            if not parser.has_head:
                parser.check()
        return parser

    async def receive_into(self, parser: ResponseParser) -> None:
        """Wait for bytes of a response. Now and then none come, so call it in a loop.

        Raises:
            ConnectionLostError: The connection ended before the response.
            trio.ClosedResourceError: The connection was closed on this side.

        Checkpoints: always. Cancellation: nothing is lost.
        """
        if self._is_plain:
            # Tokens come one at a time: the socket is empty when the next one is asked for. trio's way tries to read
            # before it waits, which costs a third of the whole.
            await trio.lowlevel.wait_readable(self._open_file())
            self.receive_now(parser)
            return
        try:
            data = await self._stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError:
            parser.lose()
        _feed(parser, data)

    def receive_now(self, parser: ResponseParser) -> None:
        """Read the bytes that the socket has. Now and then there are none. Raises as `receive_into`."""
        try:
            data = os.read(self._open_file(), RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            parser.lose()
        _feed(parser, data)

    async def receive_directly(self, receiver: Receiver) -> bool:
        """Call a receiver, which calls `receive_now`, whenever there are bytes, until it returns False.

        Returns:
            Whether this connection can do that. If not, it has not waited.

        Raises, checkpoints, cancellation: as `DirectReads.receive`.
        """
        if self._reads is None:
            return False
        await self._reads.receive(self._open_file(), receiver)
        return True

    def is_stale(self) -> bool:
        """Whether the server has closed an idle connection, or has sent something on it that nobody asked for."""
        if self._file is None:
            return False
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        return bool(poll.poll(0))

    async def aclose(self) -> None:
        """Close the connection without waiting for the server. Cancellation: it is closed all the same."""
        if self._reads is not None and self._file is not None:
            self._reads.close(self._file)
        self._file = None
        await trio.aclose_forcefully(self._stream)

    def _open_file(self) -> int:
        # The number of a closed file may be another connection's by now.
        if self._file is None:
            raise trio.ClosedResourceError
        return self._file


def _feed(parser: ResponseParser, data: bytes | bytearray) -> None:
    if data:
        parser.feed(data)
    else:
        parser.feed_eof()


def _file_of(stream: trio.abc.Stream) -> int | None:
    """The file descriptor of the socket below a stream. None: there is no socket."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None
