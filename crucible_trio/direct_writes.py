"""An ASGI extension: the application writes a piece of a response's body without waiting.

ASGI's `send` needs a task, goes through Quart and hypercorn, and costs a pass of the scheduler. A direct write goes to
the socket in the middle of the append that recorded the piece. In docs/performance.md a token costs 28 us with direct
writes and 61 us without.

`crucible_trio.server` offers the extension and `crucible_trio.apis` uses it. Neither imports the other: both import
this module. A server without the extension loses speed and nothing else.
"""

from __future__ import annotations

from typing import Final, Protocol

EXTENSION: Final = "crucible_trio.direct_writes"
"""The server puts a `DirectWriter` at `scope["extensions"][EXTENSION]["body"]`. Middleware that changes bodies must
remove it."""


class DirectWriter(Protocol):
    """Writes into the body of one response. Neither `ready` nor the writes ever raise."""

    @property
    def ready(self) -> bool:
        """Whether a piece can be written now: the body has begun, and the connection has nothing else to send."""

    def write_nowait(self, data: bytes) -> bool:
        """Write a piece of the body. Call it only while `ready`, and never with empty bytes.

        Returns:
            Whether the kernel took all of it. If not, the connection keeps the rest and sends it before anything else.
            Until then `ready` is False.
        """

    def write_last_nowait(self, data: bytes) -> bool:
        """Write the last piece of the body and the end of the response. Otherwise as `write_nowait`."""

    async def flush(self) -> None:
        """Send the rest that `write_nowait` left, with the write deadline of `send`.

        Checkpoints: always. Cancellation: resets the connection, because how much the client has is unknown.
        """
