"""One client's way through one stream: a connection that is cut, and the ones that resume it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

import h11
import trio

from crucible_trio import sse
from crucible_trio.errors import EventTooLargeError
from crucible_trio.testing.resume.clients import ClientKind, Follower
from crucible_trio.testing.resume.network import Connection, Network
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import HttpRequest, Piece, Reading, Wire

End: TypeAlias = Literal["cut", "clean", "broken", "silent", "no server"]

# After the kit's own cut. A server that ends bodies early, or is busy, needs some; one that never gets on is found out.
MAX_RECONNECTS: Final = 8
_PAUSE_SECONDS: Final = 0.05  # before a reconnect that the kit did not cause; the server's `retry` is for real clients

_OK: Final = 200
_NO_CONTENT: Final = 204
_PIECE_BYTES: Final = 64 * 1024
_MAX_CONTENT_BYTES: Final = 64 * 1024  # of a body that is no event stream
_STAGED_SECONDS: Final = 0.05  # a piece of text need not become bytes at once: then the next one is wanted


@final
@dataclass(slots=True)
class Leg:
    """One connection.

    Attributes:
        request: What was asked.
        asked: The `Last-Event-ID` in it; empty for none.
        status: None when the status line did not come.
        headers: Of the response, names in lower case.
        pieces: The events that the client's user got.
        end: `cut` by the kit; `clean`; `broken` by the server; `silent`, no event for too long; `no server` at all.
        size: Bytes that came, from the status line on.
        content: Of a body that is no event stream.
    """

    request: HttpRequest
    asked: str = ""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    end: End = "broken"
    size: int = 0
    content: bytes = b""

    @property
    def is_event_stream(self) -> bool:
        """Whether what came is one, by its head."""
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return self.status == _OK and media_type == sse.MEDIA_TYPE

    @property
    def is_refused(self) -> bool:
        """Whether there was an answer, and it is none that a client could go on with."""
        return self.status is not None and not self.is_event_stream


@final
@dataclass(slots=True)
class Trip:
    """All connections of one client, in order.

    Attributes:
        kind: The client.
        legs: Its connections.
        skipped: Why the cut could not be checked; empty if it was.
        favoured: See `Follower`.
    """

    kind: ClientKind
    legs: list[Leg] = field(default_factory=list)
    skipped: str = ""
    favoured: int = 0


@final
class StreamAddress:
    """Where one stream is, as far as a client knows.

    Args:
        wire: The server's ways.
        start: The request that starts the stream.
        answers_with_events: Whether the answer to the start is the event stream.

    Attributes:
        events: The request for the events of the started stream; None while it is not known, or if there is none.
    """

    def __init__(self, wire: Wire, start: HttpRequest, *, answers_with_events: bool) -> None:
        self.events: HttpRequest | None = None
        self._wire = wire
        self._start = start
        self._answers_with_events = answers_with_events

    def learn(self, leg: Leg) -> None:
        """Look for the stream's own URL in the head of an answer."""
        if self.events is None and leg.request.target == self._start.target:
            self.events = self._wire.find_events(self._start, leg.headers, leg.content)

    def first(self, kind: ClientKind, *, from_log: bool) -> HttpRequest | None:
        """The client's first request.

        Args:
            kind: The client.
            from_log: Whether the stream exists, and must not be started a second time.

        Returns:
            None where this client cannot read this server.
        """
        may_start = self._answers_with_events and (self._wire.is_repeatable or not from_log)
        if kind.only_gets:
            return self.events or (self._start if may_start and self._start.method == "GET" else None)
        return self._start if may_start else self.events

    def again(self, kind: ClientKind, last_id: str) -> HttpRequest | None:
        """The client's next request after a cut.

        Returns:
            None when it could only start another stream.
        """
        request = self._start if kind.repeats_start or self.events is None else self.events
        if request is self._start and not self._answers_with_events:
            request = self.events or self._start
        if request is self._start and not last_id and not self._wire.is_repeatable:
            return None
        return request.resuming(last_id)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Road:
    """What all trips to one server have in common.

    Attributes:
        network: The way to it.
        wire: Its ways.
        timeout: Seconds without an event after which it counts as stuck.
        stage: What holds its engine back, if anything does.
    """

    network: Network
    wire: Wire
    timeout: float
    stage: Stage | None = None

    async def read(
        self,
        request: HttpRequest,
        follower: Follower,
        *,
        cut_at: int | None = None,
        reset: bool = True,
        staged: str | None = None,
        on_head: Callable[[Leg], Awaitable[None]] | None = None,
    ) -> Leg:
        """Send a request and read the answer, to its end or to the cut.

        Args:
            request: What to ask.
            follower: The client that reads.
            cut_at: Bytes after which the kit closes the connection; None reads on.
            reset: Whether it closes with RST rather than FIN.
            staged: The stream whose engine is asked for more until the cut.
            on_head: Called once, when the answer's head is there.
        """
        asked = dict(request.headers).get("Last-Event-ID", "")
        leg = Leg(request, asked)
        follower.connect()
        try:
            connection = await self.network.connect()
        except OSError:
            leg.end = "no server"
            return leg
        try:
            parser = h11.Connection(h11.CLIENT)
            await connection.send_all(_encode(parser, request, self.network.host))
            # Counted from event to event: heartbeats keep a stream that has died looking alive.
            deadline = trio.current_time() + self.timeout
            while leg.size != cut_at:
                wanted = _PIECE_BYTES if cut_at is None else min(_PIECE_BYTES, cut_at - leg.size)
                with trio.fail_at(deadline):
                    data = await self._receive(connection, wanted, staged)
                leg.size += len(data)
                had_head, had_pieces = leg.status is not None, len(leg.pieces)
                is_over = self._parse(parser, data, leg, follower)
                if len(leg.pieces) > had_pieces:
                    deadline = trio.current_time() + self.timeout
                if on_head is not None and not had_head and leg.status is not None:
                    await on_head(leg)
                if is_over:
                    leg.end = "clean"
                    break
            else:
                leg.end = "cut"
                leg.pieces += map(self.wire.read, follower.lose())
        except trio.TooSlowError:
            leg.end = "silent"
        except (trio.BrokenResourceError, h11.RemoteProtocolError, EventTooLargeError):
            leg.end = "broken"
            leg.pieces += map(self.wire.read, follower.lose())
        finally:
            # A whole response is closed with RST too: thousands of connections in TIME_WAIT use up the ports.
            connection.close(reset=reset or leg.end != "cut")
        return leg

    async def _receive(self, connection: Connection, wanted: int, staged: str | None) -> bytes:
        while staged is not None and self.stage is not None:
            self.stage.more(staged)
            with trio.move_on_after(_STAGED_SECONDS):
                return await connection.receive_some(wanted)
        return await connection.receive_some(wanted)

    async def read_whole(
        self,
        request: HttpRequest,
        *,
        staged: str | None = None,
        on_head: Callable[[Leg], Awaitable[None]] | None = None,
    ) -> tuple[Leg, Reading]:
        """Read as the uncut reader does."""
        leg = await self.read(request, Follower(ClientKind(name="uncut")), staged=staged, on_head=on_head)
        reading = Reading()
        for piece in leg.pieces:
            reading.add(piece)
        return leg, reading

    async def travel(
        self,
        kind: ClientKind,
        address: StreamAddress,
        first: HttpRequest,
        cut_at: int,
        *,
        staged: str | None = None,
        on_head: Callable[[Leg], Awaitable[None]] | None = None,
    ) -> Trip:
        """Read a stream to its end as this client, over a connection that is cut after so many bytes.

        Every other cut is a RST, the ones between a FIN.
        """
        trip = Trip(kind)
        follower = Follower(kind)
        leg = await self.read(first, follower, cut_at=cut_at, reset=cut_at % 2 == 1, staged=staged, on_head=on_head)
        if staged is not None and self.stage is not None:
            self.stage.release(staged)
        trip.legs.append(leg)
        while not self._is_over(trip):
            address.learn(leg)
            request = address.again(kind, follower.last_id)
            if request is None:
                trip.skipped = "before the first id, where sending the start again starts another stream"
                break
            if leg.end != "cut":
                await trio.sleep(_PAUSE_SECONDS)
            leg = await self.read(request, follower)
            trip.legs.append(leg)
        trip.favoured = follower.favoured
        return trip

    def _is_over(self, trip: Trip) -> bool:
        leg = trip.legs[-1]
        if leg.is_refused or leg.end == "silent" or len(trip.legs) > MAX_RECONNECTS:
            return True
        if any(piece.is_terminal for one in trip.legs for piece in one.pieces):
            return not trip.kind.outlives_the_end or len(trip.legs) > 1
        return leg.end == "clean" and not (leg.pieces and leg.pieces[-1].is_control)

    def _parse(self, parser: h11.Connection, data: bytes, leg: Leg, follower: Follower) -> bool:
        """Take the next bytes of an answer. Returns whether it is whole."""
        parser.receive_data(data)
        while (event := parser.next_event()) is not h11.NEED_DATA:
            match event:
                case h11.Response():
                    leg.status = event.status_code
                    leg.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                case h11.Data() if leg.is_event_stream:
                    leg.pieces += map(self.wire.read, follower.feed(bytes(event.data)))
                case h11.Data() if len(leg.content) < _MAX_CONTENT_BYTES:
                    leg.content += bytes(event.data)
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
