"""An ASGI extension: the server tells the application that the client has left, without a task that waits for it.

In ASGI an application learns this from `receive`. So each request has one task that waits in `receive` and one that
sends. The waiting one takes 4 KiB of every idle stream.

`crucible_trio.server` offers the extension and `crucible_trio.web` uses it. Neither imports the other: both import this
module. A server without the extension needs more memory and nothing else.
"""

from __future__ import annotations

from typing import Final, Protocol

EXTENSION: Final = "crucible_trio.disconnects"
"""The server puts `RequestEvents` at `scope["extensions"][EXTENSION]["events"]`. Middleware that wraps `receive` to see
`http.disconnect` must remove it."""


class DisconnectListener(Protocol):
    """The application's end: one request."""

    def client_left(self) -> None:
        """The client has left, or has its complete response. Neither waits nor raises."""


class RequestEvents(Protocol):
    """The server's end: the events of one request that `receive` has not returned."""

    @property
    def ready(self) -> bool:
        """Whether `receive` would return immediately."""

    def tell(self, listener: DisconnectListener) -> None:
        """Call the listener in place of sending `http.disconnect`. Immediately, if that has been sent.

        Call it when `receive` has returned the whole body, and do not call `receive` afterwards.
        """
