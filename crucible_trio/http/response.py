"""A response, whose body is read as it comes."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, final

import trio

from crucible_trio.http.connection import HttpConnection
from crucible_trio.http.headers import Headers
from crucible_trio.http.parser import ResponseParser


class ConnectionOwner(Protocol):
    """Takes connections back."""

    async def release(self, connection: HttpConnection, *, is_reusable: bool) -> None:
        """Keep the connection for another request, or close it. Cancellation: one of both happens all the same."""


class BodySink(Protocol):
    """Takes the bytes of a body."""

    def take(self, data: bytes) -> bool:
        """Take the next bytes, at least one. Must not wait. Returns whether to go on."""


@final
class HttpResponse:
    """A response: status, headers, and a body to read. For one task. Leaving its `async with` ends it.

    Attributes:
        status: The HTTP status, from 200 on.
        reason: The reason phrase.
        headers: The headers.
        has_promised_end: Whether the response says where its body ends. Otherwise it ends with the connection, and a
            cut looks like an end.
    """

    def __init__(self, parser: ResponseParser, connection: HttpConnection, owner: ConnectionOwner) -> None:
        self.status = parser.status
        self.reason = parser.reason
        self.headers: Headers = parser.headers
        self.has_promised_end = parser.has_promised_end
        self._parser = parser
        self._connection: HttpConnection | None = connection
        self._owner = owner

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def read(self) -> bytes:
        """Wait for the next bytes of the body. Empty at its end.

        Nothing is read from the connection while nobody calls this: backpressure.

        Raises:
            ConnectionLostError: The connection ended before the body.
            InvalidResponseError: The response breaks HTTP.
            trio.ClosedResourceError: The response is closed.

        Checkpoints: always. Cancellation: nothing is lost.
        """
        parser, connection = self._parser, self._connection
        if connection is None:
            raise trio.ClosedResourceError
        if (data := parser.take_body()) or parser.is_complete:  # it came with the head
            await trio.lowlevel.checkpoint()
            return data
        while True:
            await connection.receive_into(parser)
            if (data := parser.take_body()) or parser.is_complete:
                return data

    async def pass_on(self, sink: BodySink) -> bool:
        """Give the bytes of the body to a sink as they come, until it wants no more.

        Returns:
            Whether the body has ended.

        Raises:
            Exception: The sink raised it. Otherwise as `read`.

        Checkpoints: always. Cancellation: nothing is lost. The sink is not called any more.
        """
        if self._connection is None:
            raise trio.ClosedResourceError
        receiver = _Receiver(self._parser, self._connection, sink)
        await trio.lowlevel.checkpoint()
        if receiver.pass_on() and not await self._connection.receive_directly(receiver):
            while (data := await self.read()) and sink.take(data):
                pass
            return not data
        return not receiver.is_stopped

    async def read_all(self, limit: int) -> bytes:
        """Read the whole body, or its first `limit` bytes.

        Raises:
            ConnectionLostError, InvalidResponseError: As `read`.

        Checkpoints: always. Cancellation: the bytes read so far are lost.
        """
        parts = []
        while limit > 0 and (data := await self.read()):
            parts.append(data[:limit])
            limit -= len(data)
        return b"".join(parts)

    async def aclose(self) -> None:
        """Return the connection if the body has ended. Otherwise close it. Cancellation: it happens all the same."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._owner.release(connection, is_reusable=self._parser.is_complete and self._parser.is_reusable)


@final
class _Receiver:
    """Gives the body to a sink whenever its connection has bytes."""

    def __init__(self, parser: ResponseParser, connection: HttpConnection, sink: BodySink) -> None:
        self.is_stopped = False
        self._parser = parser
        self._connection = connection
        self._sink = sink

    def receive_now(self) -> bool:
        self._connection.receive_now(self._parser)
        return self.pass_on()

    def pass_on(self) -> bool:
        """Give the received bytes to the sink. Returns whether to go on."""
        if data := self._parser.take_body():
            if not self._sink.take(data):
                self.is_stopped = True
                return False
            self._parser.check()
        return not self._parser.is_complete
