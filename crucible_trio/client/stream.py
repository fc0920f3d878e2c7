"""One stream as a client reads it: from a position to the terminal record, over any number of connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, TypeAlias, final, get_args

import httpx
import msgspec
import trio

from crucible_trio import sse
from crucible_trio.client.answers import MAX_ERROR_BYTES, Body, ask, refuse, transport_cut
from crucible_trio.client.attempts import Attempts, CutError, Patience
from crucible_trio.errors import EventTooLargeError, InvalidLastEventIdError
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    Control,
    ServerBusy,
    ServerDraining,
    Terminal,
    decode_event,
    format_event_id,
    parse_event_id,
)
from crucible_trio.request import Trace

# Bytes this long after an answer began show that the connection works, so a model that thinks for minutes behind a
# proxy that cuts every minute is no failure. A connection that only ever says `retry` is one.
STEADY_SECONDS: Final = 5.0

OnReconnect: TypeAlias = Callable[[int], None]

_KNOWN_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(AnyRecord | Control))


@final
class _Unknown(msgspec.Struct, frozen=True):
    """An event of a type that only a later version knows."""

    type: str
    seq: int | None = None


_unknown_decoder = msgspec.json.Decoder(_Unknown)


@final
class ClientStream:
    """An async context manager and async iterator of records, made by `Client.start` and `Client.read`; for one task.

    Entering connects, and raises what `Client` says when that cannot be done. The terminal record comes last. Leaving
    closes the connection and nothing else: the stream goes on by its `on_disconnect` rule. Cancelling a step of the
    iteration loses nothing; the next one goes on after `last_seq`.

    Attributes:
        last_seq: The `seq` of the last record that was handed out, or passed over because its type is unknown.
        reconnects: How often a connection has been replaced.
        terminal: The terminal record, once it has come. None at the end if there was nothing to read after the position
            that was asked for.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        patience: Patience,
        start: httpx.Request | None,
        stream_id: str | None,
        *,
        after: int,
        trace: Trace,
        on_reconnect: OnReconnect | None,
    ) -> None:
        self.last_seq = after
        self.reconnects = 0
        self.terminal: Terminal | None = None
        self._http = http
        self._patience = patience
        self._attempts = Attempts(patience)
        self._start = start
        self._id = stream_id
        self._trace = trace
        self._on_reconnect = on_reconnect
        self._body: Body | None = None
        self._decoder = sse.Decoder()
        self._events: deque[sse.ServerSentEvent] = deque()  # that have arrived and were not looked at yet
        self._attached_at = 0.0
        self._is_new = False  # the connection, until it has said something
        self._was_heard = False  # any connection
        self._ended = False
        self._closed = False

    @property
    def id(self) -> str:
        """The stream's id.

        Raises:
            ValueError: The stream was not entered, so the server has not named it.
        """
        if self._id is None:
            message = "the stream has no id before it is entered"
            raise ValueError(message)
        return self._id

    async def __aenter__(self) -> ClientStream:
        while self._body is None and not self._ended:
            try:
                await self._attach()
            except CutError as cut:
                await self._attempts.wait(cut, self.last_seq)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        await self._disconnect()

    def __aiter__(self) -> ClientStream:
        return self

    async def __anext__(self) -> AnyRecord:
        """The next record, however many connections it takes.

        Waits for the server, and between attempts. Checkpoints: always. Cancellation: closes the connection at once; no
        record is lost.

        Raises:
            StopAsyncIteration: The terminal record has been handed out.
            StreamLostError: The stream could not be reached again.
            trio.ClosedResourceError: The `async with` has been left.
        """
        if self._closed:
            raise trio.ClosedResourceError
        try:
            await trio.lowlevel.checkpoint()
            while not self._ended:
                try:
                    if self._events:
                        record = self._take(self._events.popleft())
                        if record is not None:
                            return record
                    elif self._body is None:
                        await self._attach()
                    else:
                        await self._receive(self._body)
                except CutError as cut:
                    await self._disconnect()
                    await self._attempts.wait(cut, self.last_seq)
        except BaseException:
            await self._disconnect()
            raise
        # With the terminal record everything has been said; the body's own end is not waited for.
        await self._disconnect()
        raise StopAsyncIteration

    async def cancel(self) -> None:
        """Stop the stream on the server. Go on reading for what had been made until then and the terminal record."""
        path = f"/v1/streams/{self.id}/cancel"
        await ask(self._http, Attempts(self._patience), "POST", path, names_stream=True, last_seq=self.last_seq)

    async def _attach(self) -> None:
        try:
            response = await self._http.send(self._request(), stream=True)
        except httpx.RequestError as error:
            raise transport_cut(error) from error
        body = Body(response)
        try:
            if response.status_code == httpx.codes.OK:
                self._accept(response)
                self._body = body
            elif response.status_code == httpx.codes.NO_CONTENT and self._id is not None:
                self._ended = True  # the position is the terminal record
            else:
                refuse(response, await body.read(MAX_ERROR_BYTES), names_stream=self._id is not None)
        finally:
            if self._body is None:
                await body.aclose()

    def _request(self) -> httpx.Request:
        if self._start is not None and self._id is None:
            return self._start  # again, if need be: its key makes it the same stream
        return self._http.build_request(
            "GET",
            f"/v1/streams/{self.id}/events",
            params={"trace": self._trace},
            headers={"Accept": sse.MEDIA_TYPE, "Last-Event-ID": format_event_id(self.id, self.last_seq)},
        )

    def _accept(self, response: httpx.Response) -> None:
        # A captive portal answers 200 to everything.
        if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() != sse.MEDIA_TYPE:
            raise CutError("the answer is no event stream")
        if self._id is None:
            # Only the id is taken from `Location`: the key goes to no other place than the one that was given.
            stream_id = (
                response.headers.get("Crucible-Stream") or response.headers.get("Location", "").rpartition("/")[2]
            )
            try:
                parse_event_id(format_event_id(stream_id, 0))
            except InvalidLastEventIdError as error:
                raise CutError("the answer does not say which stream it is") from error
            self._id = stream_id
        self._is_new = True
        self._attached_at = trio.current_time()
        self._decoder = sse.Decoder()
        self._attempts.reached()

    async def _receive(self, body: Body) -> None:
        chunk = await body.receive()
        if chunk is None:
            # Whether this was all is what the next request asks: its answer is 204 then.
            raise CutError("the answer ended before the stream")
        try:
            self._events.extend(self._decoder.feed(chunk))
        except EventTooLargeError as error:
            raise CutError(str(error), broke_protocol=True) from error
        if self._decoder.retry is not None:
            self._attempts.set_retry(self._decoder.retry)
        if trio.current_time() - self._attached_at >= STEADY_SECONDS:
            self._attempts.progressed()
        if not self._events:
            self._hear()

    def _take(self, event: sse.ServerSentEvent) -> AnyRecord | None:
        message = _decode(event)
        if isinstance(message, ServerBusy):
            raise CutError("the server is busy", wait=message.reconnect_in_ms / 1000, counts=False)
        self._hear()
        if message is None or isinstance(message, ServerDraining):
            return None  # draining announces; the body still ends with the terminal record
        seq = self._position(event, message)
        if seq is None:
            return None
        # The other views leave records out.
        if seq > self.last_seq + 1 and self._trace == "segments":
            raise CutError(f"record {seq} follows record {self.last_seq}", broke_protocol=True)
        if isinstance(message, TERMINAL):
            # Also when its position was passed before: nothing comes after it.
            self.terminal = message
            self._ended = True
        if seq <= self.last_seq:
            return None
        self.last_seq = seq
        self._attempts.progressed()
        return None if isinstance(message, _Unknown) else message

    def _position(self, event: sse.ServerSentEvent, message: AnyRecord | _Unknown) -> int | None:
        if event.id is None:
            return message.seq
        try:
            stream_id, seq = parse_event_id(event.id)
        except InvalidLastEventIdError as error:
            raise CutError("a record has an impossible id", broke_protocol=True) from error
        if stream_id != self._id or message.seq not in {None, seq}:
            raise CutError("a record has the id of another", broke_protocol=True)
        return seq

    def _hear(self) -> None:
        # Not as soon as there is an answer: it may say `server.busy`, and then nothing has been replaced.
        if not self._is_new:
            return
        self._is_new = False
        if self._was_heard:
            self.reconnects += 1
            if self._on_reconnect is not None:
                self._on_reconnect(self.last_seq)
        self._was_heard = True

    async def _disconnect(self) -> None:
        self._events.clear()
        body, self._body = self._body, None
        if body is not None:
            await body.aclose()


def _decode(event: sse.ServerSentEvent) -> AnyRecord | Control | _Unknown | None:
    data = event.data or ""
    try:
        return decode_event(data)
    except (msgspec.DecodeError, RecursionError) as error:
        try:
            unknown = _unknown_decoder.decode(data)
        except (msgspec.DecodeError, RecursionError):
            if event.id is None:
                return None  # not this server's; a proxy's perhaps
            raise CutError("a record is not readable", broke_protocol=True) from error
        if unknown.type in _KNOWN_TYPES:
            raise CutError(f"a {unknown.type} is not readable", broke_protocol=True) from error
        return unknown
