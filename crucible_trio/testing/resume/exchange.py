"""One request and the response to it, read to its end or to the byte where the kit cuts the connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

import h11
import trio

from crucible_trio import sse
from crucible_trio.errors import EventTooLargeError
from crucible_trio.testing.resume.clients import ClientKind, ClientState
from crucible_trio.testing.resume.network import Network, RawConnection
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import HttpRequest, Reading, WireEvent, WireFormat

ExchangeEnd: TypeAlias = Literal["cut", "clean", "broken", "silent", "no server"]

_OK: Final = 200
_CHUNK_BYTES: Final = 64 * 1024
_MAX_CONTENT_BYTES: Final = 64 * 1024  # kept of a body that is not an event stream
_STAGED_SECONDS: Final = 0.05  # a piece may be buffered without becoming bytes, so ask the engine for the next one


@final
@dataclass(slots=True)
class Exchange:
    """One request and the response, on one connection.

    Attributes:
        request: The request.
        asked: The id after which the request resumes. Empty for none.
        server: The name of the network that the connection used.
        status: The status code, or None if the status line did not arrive.
        headers: Headers of the response, names in lower case.
        events: The events that the client received.
        end: `cut` by the kit, `clean`, `broken` by the server, `silent` (no event within the timeout) or `no server`.
        size: Bytes received, including the head.
        content: Body of a response that is not an event stream.
    """

    request: HttpRequest
    asked: str = ""
    server: str = ""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    events: list[WireEvent] = field(default_factory=list)
    end: ExchangeEnd = "broken"
    size: int = 0
    content: bytes = b""

    @property
    def is_event_stream(self) -> bool:
        """Whether status and content type are those of an event stream."""
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return self.status == _OK and media_type == sse.MEDIA_TYPE

    @property
    def is_refused(self) -> bool:
        """Whether there was a response that is not an event stream."""
        return self.status is not None and not self.is_event_stream


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUnderTest:
    """Sends requests to the server.

    Attributes:
        networks: Connect to the server, each at another address. The connections of a client take turns.
        wire: How its streams are started and read.
        timeout: Seconds without an event after which a response counts as stuck.
        stage: The stage that the server's engine waits at, if any.
    """

    networks: tuple[Network, ...]
    wire: WireFormat
    timeout: float
    stage: Stage | None = None

    async def read(
        self,
        request: HttpRequest,
        client: ClientState,
        *,
        cut_at: int | None = None,
        reset: bool = True,
        staged: str | None = None,
        on_head: Callable[[Exchange], Awaitable[None]] | None = None,
    ) -> Exchange:
        """Send a request and read the response to its end or to the cut.

        Args:
            request: The request.
            client: The client that reads.
            cut_at: Number of bytes after which the kit closes the connection. None reads to the end.
            reset: Whether the kit cuts with RST rather than FIN.
            staged: Key of the stream whose engine may write one more piece whenever no bytes arrive.
            on_head: Called once, when the head of the response has arrived.

        Cancellation: closes the connection.
        """
        network = self.networks[client.turn % len(self.networks)]
        exchange = Exchange(request, request.asked, network.name)
        client.connect()
        try:
            connection = await network.connect()
        except OSError:
            exchange.end = "no server"
            return exchange
        try:
            parser = h11.Connection(h11.CLIENT)
            await connection.send_all(_encode(parser, request, network.host))
            # Measured between events. Heartbeats would make a dead stream look alive.
            deadline = trio.current_time() + self.timeout
            while exchange.size != cut_at:
                wanted = _CHUNK_BYTES if cut_at is None else min(_CHUNK_BYTES, cut_at - exchange.size)
                with trio.fail_at(deadline):
                    data = await self._receive(connection, wanted, staged)
                exchange.size += len(data)
                had_head, had_events = exchange.status is not None, len(exchange.events)
                is_complete = self._parse(parser, data, exchange, client)
                if len(exchange.events) > had_events:
                    deadline = trio.current_time() + self.timeout
                if on_head is not None and not had_head and exchange.status is not None:
                    await on_head(exchange)
                if is_complete:
                    exchange.end = "clean"
                    break
            else:
                exchange.end = "cut"
                exchange.events += self._read(client, client.disconnect())
        except trio.TooSlowError:
            exchange.end = "silent"
        except (trio.BrokenResourceError, h11.RemoteProtocolError, EventTooLargeError):
            exchange.end = "broken"
            exchange.events += self._read(client, client.disconnect())
        finally:
            # RST also after a complete response: thousands of connections in TIME_WAIT would use up the ports.
            connection.close(reset=reset or exchange.end != "cut")
        return exchange

    async def read_whole(
        self,
        request: HttpRequest,
        *,
        turn: int = 0,
        staged: str | None = None,
        on_head: Callable[[Exchange], Awaitable[None]] | None = None,
    ) -> tuple[Exchange, Reading]:
        """Read a stream to its end without a cut, as the uncut reader."""
        client = ClientState(ClientKind(name="uncut"), turn=turn)
        exchange = await self.read(request, client, staged=staged, on_head=on_head)
        reading = Reading()
        for event in exchange.events:
            reading.add(event)
        return exchange, reading

    def _read(self, client: ClientState, events: list[sse.ServerSentEvent]) -> list[WireEvent]:
        read = [self.wire.read(event) for event in events]
        return client.place(read) if self.wire.ids == "replay" else read

    async def _receive(self, connection: RawConnection, wanted: int, staged: str | None) -> bytes:
        while staged is not None and self.stage is not None:
            self.stage.more(staged)
            with trio.move_on_after(_STAGED_SECONDS):
                return await connection.receive_some(wanted)
        return await connection.receive_some(wanted)

    def _parse(self, parser: h11.Connection, data: bytes, exchange: Exchange, client: ClientState) -> bool:
        """Parse the next bytes of the response. Returns whether it is complete."""
        parser.receive_data(data)
        while (event := parser.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Response():
                    exchange.status = event.status_code
                    exchange.headers = {
                        name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers
                    }
                case h11.Data() if exchange.is_event_stream:
                    events = self._read(client, client.feed(bytes(event.data)))
                    exchange.events += events
                    if self.wire.id != "id:":  # the ids in the JSON, which the client's decoder does not see
                        client.last_id = next((each.id for each in reversed(events) if each.id), client.last_id)
                case h11.Data() if len(exchange.content) < _MAX_CONTENT_BYTES:
                    exchange.content += bytes(event.data)
                case h11.EndOfMessage():
                    return True
                case h11.ConnectionClosed():
                    raise trio.BrokenResourceError
        return False


def _encode(parser: h11.Connection, request: HttpRequest, host: str) -> bytes:
    headers = [("Host", host), *request.headers]
    if request.body:
        headers.append(("Content-Length", str(len(request.body))))
    parts = [parser.send(h11.Request(method=request.method, target=request.target, headers=headers))]
    if request.body:
        parts.append(parser.send(h11.Data(data=request.body)))
    parts.append(parser.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)
