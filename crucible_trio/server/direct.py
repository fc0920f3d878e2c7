"""The server's side of the extension `crucible_trio.direct_writes`."""

from __future__ import annotations

from typing import Protocol, final


class WritableConnection(Protocol):
    """The part of a connection that a `SocketBodyWriter` uses."""

    @property
    def current_request(self) -> object:
        """Identifies the request that is being answered. None between two requests."""

    def is_ready_for(self, request: object) -> bool:
        """Whether a piece of the body can be written now, in response to this request."""

    def frame(self, data: bytes) -> bytes:
        """Frame a piece of a body. Write the result before anything else is framed."""

    def frame_end(self) -> bytes:
        """Frame the end of a body."""

    def write_nowait(self, data: bytes) -> bool:
        """Write framed bytes. Returns whether the kernel took all of them."""

    async def flush(self) -> None:
        """Send the rest that `write_nowait` left."""


@final
class SocketBodyWriter:
    """The `DirectWriter` of one response."""

    __slots__ = ("_connection", "_is_chunked", "_request")

    def __init__(self, connection: WritableConnection) -> None:
        self._connection = connection
        self._request = connection.current_request
        self._is_chunked: bool | None = None  # None: unknown until the first piece

    @property
    def ready(self) -> bool:
        """See `DirectWriter.ready`."""
        return self._connection.is_ready_for(self._request)

    def write_nowait(self, data: bytes) -> bool:
        """See `DirectWriter.write_nowait`."""
        return self._connection.write_nowait(_chunk(data) if self._is_chunked else self._framed(data))

    def write_last_nowait(self, data: bytes) -> bool:
        """See `DirectWriter.write_last_nowait`."""
        connection = self._connection
        return connection.write_nowait(connection.frame(data) + connection.frame_end())

    def _framed(self, data: bytes) -> bytes:
        # h11 frames the first piece, which shows whether the body is chunked. A chunk depends on nothing but its data,
        # so h11 is not needed for the chunks that follow.
        framed = self._connection.frame(data)
        self._is_chunked = framed == _chunk(data)
        return framed

    async def flush(self) -> None:
        """See `DirectWriter.flush`."""
        await self._connection.flush()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
