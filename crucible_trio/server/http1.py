"""hypercorn's HTTP/1.1 protocol without the ways into HTTP/2."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final, final

import h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import H11SendableEvent

_SENT: Final = frozenset({h11.DONE, h11.MUST_CLOSE})  # h11's states after a whole response


@final
class Http1Protocol(H11Protocol):
    """HTTP/1.0 and HTTP/1.1 only.

    Stock hypercorn switches a connection to HTTP/2 when it reads the HTTP/2 preface or `Upgrade: h2c`, also without
    TLS. Its HTTP/2 has no backpressure, and some requests raise exceptions that nothing catches.
    """

    head = b""
    """The head of a response whose body has not begun. ASGI sends both together, and a write costs 30 to 50 us."""

    async def ask_for_body(self) -> None:
        """Send `100 Continue` if the client waits for it: the application wants the body."""
        if self.connection.they_are_waiting_for_100_continue:
            headers = self.config.response_headers("h11")
            await super()._send_h11_event(h11.InformationalResponse(status_code=100, headers=headers))

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send an event. Stock hypercorn sends `100 Continue` before the application has seen the request."""
        if isinstance(event, h11.InformationalResponse) and event.status_code == HTTPStatus.CONTINUE:
            return
        if isinstance(event, h11.EndOfMessage) and self.connection.our_state in _SENT:
            return  # a direct write has sent it
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self.head = data or b""
        else:
            await self.send(RawData(data=self.take_head() + (data or b"")))

    def take_head(self) -> bytes:
        """The bytes to write before the body begins. Empty if they have been taken."""
        head, self.head = self.head, b""
        return head

    async def flush_head(self) -> None:
        """Send the head: the body has begun, with nothing so far."""
        if self.head:
            await self.send(RawData(data=self.take_head()))

    async def stream_send(self, event: StreamEvent) -> None:
        """Send an event of a response. Nothing but an access log needs its headers again: 1 KiB per idle stream."""
        await super().stream_send(event)
        if isinstance(event, Response) and self.config.accesslog is None:
            response = getattr(self.stream, "response", None)  # hypercorn's own errors have none
            if response is not None and isinstance(self.stream, HTTPStream):
                self.stream.response = response | {"headers": ()}

    @property
    def is_mid_response(self) -> bool:
        """Whether the server has read a request and has not sent its complete response."""
        return self.connection.our_state in {h11.SEND_RESPONSE, h11.SEND_BODY}

    @property
    def is_idle(self) -> bool:
        """Whether the server waits for the head of a request."""
        return self.connection.their_state is h11.IDLE and self.connection.our_state is h11.IDLE

    @property
    def answered_early(self) -> bool:
        """Whether the response is complete while the client is still sending its request."""
        return not self.is_mid_response and self.connection.their_state is h11.SEND_BODY

    async def _check_protocol(self, event: h11.Request) -> None:
        """Switch to no other protocol."""

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version in {b"1.0", b"1.1"}:
            await super()._create_stream(request)
        else:
            await self._send_error_response(505)
            await self.send(Closed())
