"""Two corrections to quart-trio's connection.

Without the first, every response leaves its connection open. At the end of a response hypercorn tells the application
that the client is gone. quart-trio answers that by cancelling the request, which is at that moment inside hypercorn's
own end-of-response: keep-alive is never armed, and neither `Connection: close` nor HTTP/1.0 ever closes. Once the last
body message is being sent there is nothing left to cancel.

The second answers a request whose `Host` is no host name, such as `..`: Quart raises before it has a request context,
so no error handler sees it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import BadHost

from crucible_trio.web.errors import http_error_response

if TYPE_CHECKING:  # types alone: nothing here needs hypercorn, or another server, to be there
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent


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

        # As in the class this corrects, but for one task less: a thousand idle streams notice.
        request = self._create_request_from_scope(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.handle_request, nursery, request, send_and_note_the_end)
            await self.handle_messages(nursery, request, receive)

    async def handle_messages(  # type: ignore[override]  # as in the class it corrects
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Feed the request's body until the client is gone, then cancel the request."""
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._is_ending:
            nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]  # as in the class it corrects
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Answer the request, also with 400."""
        try:
            await super().handle_request(nursery, request, send)
        except BadHost as error:
            await self._send_response(send, await http_error_response(error))
            nursery.cancel_scope.cancel()
