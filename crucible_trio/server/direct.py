"""An ASGI extension: write a piece of a response's body without waiting, below hypercorn's `send`.

`send` must be called by a task of its own, goes through Quart and hypercorn, and costs a pass of the scheduler. Whoever
has a small piece for a client that keeps up can leave all that out: in docs/performance.md a token costs 28 us instead
of 61. It is there as `scope["extensions"]["crucible_trio.direct_writes"]["body"]`; ASGI middleware that changes bodies
must take it away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from crucible_trio.server.connection import Connection


@final
class DirectWrites:
    """Writes into one response. Neither `ready` nor `write_nowait` ever raises."""

    __slots__ = ("_connection", "_is_chunked", "_request")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._request = connection.request
        self._is_chunked: bool | None = None  # not known yet

    @property
    def ready(self) -> bool:
        """Whether a piece can be written now: the body has begun, and nothing else is being written or left over."""
        return self._connection.is_ready_for(self._request)

    def write_nowait(self, data: bytes) -> bool:
        """Write a piece of the body; only when `ready`, and not empty.

        Returns:
            Whether the kernel has all of it. What is left goes out before anything else that is sent, and with `flush`;
            until then nothing more can be written here.
        """
        return self._connection.write_nowait(_chunk(data) if self._is_chunked else self._framed(data))

    def _framed(self, data: bytes) -> bytes:
        # h11 frames the first piece, and shows how: as chunks, whose bytes depend on nothing else, or otherwise.
        framed = self._connection.frame(data)
        self._is_chunked = framed == _chunk(data)
        return framed

    async def flush(self) -> None:
        """Write what is left, as `send` would: with a deadline, and a reset when that passes.

        Checkpoints: always. Cancellation: resets the connection, because nobody knows what is out.
        """
        await self._connection.flush()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
