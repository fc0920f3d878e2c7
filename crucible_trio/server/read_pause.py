"""Notices that a client leaves while its connection is not being read.

h11 pauses a connection when bytes follow a request, or when the request has an `Upgrade` header, which some HTTP
clients always send. hypercorn then reads nothing until the response has ended. So it would not see that the client has
closed the connection, and the model would go on for a client that is gone.
"""

from __future__ import annotations

from typing import Final, Protocol, final

import trio
from hypercorn.trio.worker_context import EventWrapper

# Bytes read ahead of a paused protocol. A client that sends more than this is noticed when a write to it fails.
MAX_READ_AHEAD: Final = 64 * 1024


class PausableConnection(Protocol):
    """A connection that can read ahead: an `HttpConnection`."""

    async def wait_closed_by_client(self) -> None:
        """Read ahead until the client has closed the connection. Waits forever beyond `MAX_READ_AHEAD`."""


@final
class ReadPause(EventWrapper):
    """hypercorn waits for this event while a connection is paused, and sets it when the response has ended."""

    def __init__(self, connection: PausableConnection) -> None:
        super().__init__()
        self._connection = connection

    async def wait(self) -> None:
        """Wait until the protocol reads again.

        Raises:
            trio.BrokenResourceError: The client has closed the connection.

        Cancellation: safe, the bytes read ahead are kept.
        """
        has_left = False

        async def watch() -> None:
            nonlocal has_left
            await self._connection.wait_closed_by_client()
            has_left = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await super().wait()
            nursery.cancel_scope.cancel()
        if has_left:
            raise trio.BrokenResourceError
