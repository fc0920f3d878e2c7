"""Three corrections to quart-trio's connection.

Without the first, every response leaves its connection open. At the end of a response hypercorn tells the application
that the client has disconnected. quart-trio then cancels the request, which at that moment is inside hypercorn's own
end-of-response. So keep-alive is never armed, and neither `Connection: close` nor HTTP/1.0 closes the connection. When
the last body message is being sent, nothing is left to cancel.

The second answers a request whose `Host` is not a host name, such as `..`. Quart raises before the request has a
context, so no error handler sees the error.

With the third, a body whose log is lost is no error of the application. It ends without its last part, and the server
resets the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import BadHost

from crucible_trio.apis.kit.replies import http_error_response
from crucible_trio.apis.native.errors import NATIVE_ERRORS
from crucible_trio.errors import LogLostError

if TYPE_CHECKING:  # types only: this module must work without hypercorn, under any server
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent


@final
class QuartConnection(TrioASGIHTTPConnection):
    """One request. It is cancelled when its client leaves, but not while it sends its own end."""

    _is_ending = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request (ASGI)."""

        async def send_and_note_the_end(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._is_ending = True
            await send(message)

        # As in the base class, but with one task less. A task takes 2 to 3 KiB of every idle stream.
        request = self._create_request_from_scope(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.handle_request, nursery, request, send_and_note_the_end)
            await self.handle_messages(nursery, request, receive)

    async def handle_messages(  # type: ignore[override]  # as in the base class
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Feed the request's body until the client leaves, then cancel the request."""
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._is_ending:
            nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]  # as in the base class
        self, nursery: trio.Nursery, request: Request, send: ASGISendCallable
    ) -> None:
        """Answer the request, with 400 if its `Host` is not a host name."""
        try:
            await super().handle_request(nursery, request, send)
        except BadHost as error:
            await self._send_response(send, http_error_response(error, NATIVE_ERRORS))
            nursery.cancel_scope.cancel()
        except LogLostError:
            nursery.cancel_scope.cancel()
