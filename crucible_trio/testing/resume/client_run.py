"""One client's run through one stream: a connection that the kit cuts, and the connections that resume the stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, final

import trio

from crucible_trio.testing.resume.clients import ClientKind, ClientState
from crucible_trio.testing.resume.exchange import Exchange, ServerUnderTest
from crucible_trio.testing.resume.wire import HttpRequest, WireFormat

# A server that ends bodies early or is busy needs several reconnects. A server that makes no progress fails the check.
MAX_RECONNECTS: Final = 8
_PAUSE_SECONDS: Final = 0.05  # before a reconnect that the kit did not cause, instead of the server's `retry`


@final
@dataclass(slots=True)
class ClientRun:
    """All exchanges of one client with one stream, in order.

    Attributes:
        kind: The client.
        exchanges: Its exchanges. The kit has cut the first one.
        skipped: Why the cut could not be checked. Empty if it was.
        gap_cuts: See `ClientState`.
    """

    kind: ClientKind
    exchanges: list[Exchange] = field(default_factory=list)
    skipped: str = ""
    gap_cuts: int = 0


@final
class StreamAddress:
    """The requests that reach one stream, as far as a client knows them.

    Args:
        wire: How the server's streams are started and found.
        start: The request that starts the stream.
        start_streams: Whether the response to the start is the event stream.

    Attributes:
        events: The GET for the stream's events. None if it is not known yet, or if there is none.
    """

    def __init__(self, wire: WireFormat, start: HttpRequest, *, start_streams: bool) -> None:
        self.events: HttpRequest | None = None
        self._wire = wire
        self._start = start
        self._start_streams = start_streams

    def learn(self, exchange: Exchange) -> None:
        """Look for the stream's URL in the response to the start."""
        if self.events is None and exchange.request.target == self._start.target:
            self.events = self._wire.find_events(self._start, exchange.headers, exchange.content)

    def first(self, kind: ClientKind, *, from_log: bool) -> HttpRequest | None:
        """The client's first request.

        Args:
            kind: The client.
            from_log: Whether the stream exists already, so that the request must not start another one.

        Returns:
            None if this client cannot read this server.
        """
        may_start = self._start_streams and (self._wire.is_repeatable or not from_log)
        if kind.only_gets:
            return self.events or (self._start if may_start and self._start.method == "GET" else None)
        return self._start if may_start else self.events

    def again(self, kind: ClientKind, last_id: str) -> HttpRequest | None:
        """The client's next request after a cut.

        Returns:
            None if the request would start another stream.
        """
        request = self._start if kind.repeats_start or self.events is None else self.events
        if request is self._start and not self._start_streams:
            request = self.events or self._start
        if request is self._start and not last_id and not self._wire.is_repeatable:
            return None
        return self._wire.resuming(request, last_id)


def turn_of(cut_at: int) -> int:
    """The number of the first connection of a cut. The same cut always begins at the same server."""
    # Unrelated to the other choices that the byte makes: FIN or RST, and the time of the second reader.
    return cut_at // 8


async def run_client(
    server: ServerUnderTest,
    kind: ClientKind,
    address: StreamAddress,
    first: HttpRequest,
    cut_at: int,
    *,
    turn: int = 0,
    staged: str | None = None,
    on_head: Callable[[Exchange], Awaitable[None]] | None = None,
) -> ClientRun:
    """Read a stream to its end as one kind of client. The first connection is cut after `cut_at` bytes.

    An odd `cut_at` cuts with RST, an even one with FIN. `turn` selects the network of the first connection, and each
    further connection goes to the next one. `staged` and `on_head` are those of `ServerUnderTest.read`, for the first
    exchange.

    Cancellation: closes the connection.
    """
    run = ClientRun(kind)
    client = ClientState(kind, turn=turn)
    exchange = await server.read(first, client, cut_at=cut_at, reset=cut_at % 2 == 1, staged=staged, on_head=on_head)
    if staged is not None and server.stage is not None:
        server.stage.release(staged)
    run.exchanges.append(exchange)
    while not _is_over(run):
        address.learn(exchange)
        request = address.again(kind, client.last_id)
        if request is None:
            run.skipped = "cut before the first id, and sending the start again would start another stream"
            break
        if exchange.end != "cut":
            await trio.sleep(_PAUSE_SECONDS)
        exchange = await server.read(request, client)
        run.exchanges.append(exchange)
    run.gap_cuts = client.gap_cuts
    return run


def _is_over(run: ClientRun) -> bool:
    exchange = run.exchanges[-1]
    if exchange.is_refused or exchange.end == "silent" or len(run.exchanges) > MAX_RECONNECTS:
        return True
    if any(event.is_terminal for each in run.exchanges for event in each.events):
        return not run.kind.reconnects_after_end or len(run.exchanges) > 1
    return exchange.end == "clean" and not (exchange.events and exchange.events[-1].is_control)
