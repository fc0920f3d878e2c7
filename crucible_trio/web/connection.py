"""Four corrections to quart-trio's connection.

Without the first, every response leaves its connection open. At the end of a response hypercorn tells the application
that the client has disconnected. quart-trio then cancels the request, which at that moment is inside hypercorn's own
end-of-response. So keep-alive is never armed, and neither `Connection: close` nor HTTP/1.0 closes the connection. When
the last body message is being sent, nothing is left to cancel.

The second answers a request whose `Host` is not a host name, such as `..`. Quart raises before the request has a
context, so no error handler sees the error.

The third receives the body of a request with `Expect: 100-continue` only when the route reads it. A server sends `100
Continue` when the application receives, and a client that is refused need not send its body.

With the fourth, a body whose log is lost is no error of the application, nor is a body whose stream got its last reader
between the status line and the body. It ends without its last part, and the server resets the connection.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

import trio
from quart.asgi import ASGIHTTPConnection
from quart.wrappers import Request
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import BadHost

from crucible_trio.apis.kit.replies import http_error_response
from crucible_trio.apis.native.errors import NATIVE_ERRORS
from crucible_trio.disconnects import EXTENSION, RequestEvents
from crucible_trio.errors import LogLostError, TooManyReadersError

if TYPE_CHECKING:  # types only: this module must work without hypercorn, under any server
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent


@final
class QuartConnection(TrioASGIHTTPConnection):
    """One request. It is cancelled when its client leaves, but not while it sends its own end."""

    _is_ending = False
    _scope: trio.CancelScope | None = None

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the request (ASGI)."""

        async def send_and_note_the_end(message: ASGISendEvent) -> None:
            is_body = message["type"] == "http.response.body"
            if is_body and not message.get("more_body", False):
                self._is_ending = True
            await send(message)
            if is_body and waiting is not None:  # from here on, receiving only notices that the client leaves
                waiting.is_wanted.set()

        request = self._create_request_from_scope(send)
        waiting = _WaitingBody(request) if _is_waiting(request) else None
        extension = (self.scope.get("extensions") or {}).get(EXTENSION)
        if extension is not None and waiting is None:
            events: RequestEvents = extension["events"]
            is_complete = await self._receive_ready(events, request, receive)
            if is_complete is None:
                return
            if is_complete:
                with trio.CancelScope() as self._scope:
                    events.tell(self)
                    await self.handle_request(_ScopeOnly(self._scope), request, send_and_note_the_end)
                return
        # As in the base class, but with one task less. A task takes 2 to 3 KiB of every idle stream.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.handle_request, nursery, request, send_and_note_the_end)
            if waiting is not None:
                await waiting.is_wanted.wait()
            await self.handle_messages(nursery, request, receive)

    async def _receive_ready(
        self, events: RequestEvents, request: Request, receive: ASGIReceiveCallable
    ) -> bool | None:
        """Feed the part of the request's body that is here.

        Returns:
            Whether that is all of it, as it usually is. None if the client has left.
        """
        while events.ready:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            if message["type"] == "http.request":
                request.body.append(message.get("body", b""))
                if not message.get("more_body", False):
                    request.body.set_complete()
                    return True
        return False

    def client_left(self) -> None:
        """Cancel the request (`DisconnectListener`)."""
        if self._scope is not None and not self._is_ending:
            self._scope.cancel()

    async def handle_messages(  # type: ignore[override]  # as in the base class
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Feed the request's body until the client leaves, then cancel the request."""
        await ASGIHTTPConnection.handle_messages(self, request, receive)
        if not self._is_ending:
            nursery.cancel_scope.cancel()

    async def handle_request(  # type: ignore[override]  # as in the base class
        self, nursery: trio.Nursery | _ScopeOnly, request: Request, send: ASGISendCallable
    ) -> None:
        """Answer the request, with 400 if its `Host` is not a host name."""
        try:
            await super().handle_request(cast("trio.Nursery", nursery), request, send)
        except BadHost as error:
            await self._send_response(send, http_error_response(error, NATIVE_ERRORS))
            nursery.cancel_scope.cancel()
        except (LogLostError, TooManyReadersError):
            nursery.cancel_scope.cancel()


@final
@dataclass(frozen=True, slots=True)
class _ScopeOnly:
    """The part of a nursery that answering a request uses."""

    cancel_scope: trio.CancelScope


def _is_waiting(request: Request) -> bool:
    """Whether the client sends the body only after `100 Continue`."""
    return request.headers.get("Expect", "").lower() == "100-continue" and request.http_version != "1.0"


@final
class _WaitingBody(TrioBody):
    """The body of a request whose client waits.

    Attributes:
        is_wanted: Set when the route reads the body.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request.content_length, request.max_content_length)
        self.is_wanted = trio.Event()
        request.body = self

    async def __anext__(self) -> bytes:
        self.is_wanted.set()
        return await super().__anext__()

    def __await__(self) -> Generator[Any, None, Any]:
        self.is_wanted.set()
        return super().__await__()
