"""A correction to quart-trio's connection, without which every response leaves its connection open.

At the end of a response hypercorn tells the application that the client is gone. quart-trio answers that by cancelling
the request, which is at that moment inside hypercorn's own end-of-response: keep-alive is never armed, and neither
`Connection: close` nor HTTP/1.0 ever closes. Once the last body message is being sent there is nothing left to cancel.
"""

from __future__ import annotations

from typing import final

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection


@final
class Connection(TrioASGIHTTPConnection):
    """One request, cancelled when its client leaves, but not inside its own end."""

    _is_ending = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request (ASGI)."""

        async def send_and_note_the_end(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._is_ending = True
            await send(message)

        await super().__call__(receive, send_and_note_the_end)

    async def handle_messages(  # type: ignore[override]  # as in the class it corrects
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Feed the request's body until the client is gone, then cancel the request."""
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._is_ending:
            nursery.cancel_scope.cancel()
