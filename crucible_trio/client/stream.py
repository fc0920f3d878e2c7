"""Reads one stream from an offset to the terminal record, over any number of connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from typing import Final, TypeAlias, final, get_args

import msgspec
import trio

from crucible_trio import sse
from crucible_trio.client.answers import (
    MAX_ERROR_BYTES,
    ClientRequest,
    ClientResponse,
    ServerLink,
    raise_error_status,
    send_with_retries,
)
from crucible_trio.client.attempts import Attempts, CutError, RetryLimits
from crucible_trio.errors import EventTooLargeError, InvalidLastEventIdError
from crucible_trio.http import Headers
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

# A connection that still receives bytes after this time works, and ends the row of failures. So a model may think for
# minutes behind a proxy that cuts every minute. A connection that only sends `retry` and ends is a failure.
STEADY_SECONDS: Final = 5.0

OnReconnect: TypeAlias = Callable[[int], None]

_KNOWN_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(AnyRecord | Control))


@final
class _UnknownRecord(msgspec.Struct, frozen=True):
    """A record of a type that only a later version knows. Its offset is in the event id."""

    type: str


_unknown_decoder = msgspec.json.Decoder(_UnknownRecord)


@final
class ClientStream:
    """An async context manager and async iterator of records, made by `Client.start` and `Client.read`. For one task.

    Entering connects, and raises the errors that `Client` lists. The terminal record comes last. Leaving only closes
    the connection: the stream goes on as its `on_disconnect` says. Cancelling a step of the iteration loses nothing,
    because the next step resumes after `last_seq`. Records of a type that this version does not know are skipped.

    Attributes:
        last_seq: The `seq` of the last record that was yielded or skipped.
        reconnects: The number of reconnects so far.
        terminal: The terminal record, or None until it arrives. It stays None if the offset that was asked for was
            already the end of the stream.
    """

    def __init__(
        self,
        server: ServerLink,
        limits: RetryLimits,
        start: ClientRequest | None,
        stream_id: str | None,
        *,
        after: int,
        trace: Trace,
        on_reconnect: OnReconnect | None,
        repeats_refused: bool = True,
    ) -> None:
        self.last_seq = after
        self.reconnects = 0
        self.terminal: Terminal | None = None
        self._server = server
        self._limits = limits
        self._attempts = Attempts(limits)
        self._start = start
        self._id = stream_id
        self._trace = trace
        self._on_reconnect = on_reconnect
        self._repeats_refused = repeats_refused
        self._body: ClientResponse | None = None
        self._decoder = sse.Decoder()
        self._events: deque[sse.ServerSentEvent] = deque()  # received, not processed yet
        self._attached_at = 0.0
        self._is_silent = False  # the connection has not sent anything yet
        self._was_connected = False  # an earlier connection has
        self._ended = False
        self._closed = False

    @property
    def id(self) -> str:
        """The stream's id.

        Raises:
            ValueError: The stream was not entered, so the server has not assigned an id yet.
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
                if cut.refusal is not None and not self._repeats_refused:
                    raise cut.refusal from None
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
        """The next record. Reconnects as often as necessary.

        Waits for the server, and between attempts.

        Raises:
            StopAsyncIteration: The terminal record was the last one.
            StreamLostError: The client could not reconnect, or the server violated the protocol.
            trio.ClosedResourceError: The program has left the `async with`.

        Checkpoints: always. Cancellation: closes the connection immediately. No record is lost.
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
        # Nothing follows the terminal record, so the end of the body is not waited for.
        await self._disconnect()
        raise StopAsyncIteration

    async def cancel(self) -> None:
        """Stop the stream on the server.

        The iteration goes on: it yields the records that were already made, then the terminal record.
        """
        path = f"v1/streams/{self.id}/cancel"
        await send_with_retries(
            self._server, Attempts(self._limits), "POST", path, names_stream=True, last_seq=self.last_seq
        )

    async def _attach(self) -> None:
        body = await self._server.send(self._request())
        response = body.http
        try:
            if response.status == HTTPStatus.OK:
                self._accept(response.headers)
                self._body = body
            elif response.status == HTTPStatus.NO_CONTENT and self._id is not None:
                self._ended = True  # the offset is the terminal record
            else:
                raise_error_status(response, await body.read(MAX_ERROR_BYTES), names_stream=self._id is not None)
        finally:
            if self._body is None:
                await body.aclose()

    def _request(self) -> ClientRequest:
        if self._start is not None and self._id is None:
            return self._start  # may be sent again: with the same key it is the same stream
        return ClientRequest(
            method="GET",
            path=f"v1/streams/{self.id}/events",
            query=f"trace={self._trace}",
            headers={"Accept": sse.MEDIA_TYPE, "Last-Event-ID": format_event_id(self.id, self.last_seq)},
        )

    def _accept(self, headers: Headers) -> None:
        # A captive portal answers every request with 200.
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() != sse.MEDIA_TYPE:
            raise CutError("the response is not an event stream")
        if self._id is None:
            # Only the id is taken from `Location`. The key must not be sent to any other host.
            stream_id = headers.get("Crucible-Stream") or headers.get("Location", "").rpartition("/")[2]
            try:
                parse_event_id(format_event_id(stream_id, 0))
            except InvalidLastEventIdError as error:
                raise CutError("the response does not name its stream") from error
            self._id = stream_id
        self._is_silent = True
        self._attached_at = trio.current_time()
        self._decoder = sse.Decoder()
        self._attempts.mark_reached()

    async def _receive(self, body: ClientResponse) -> None:
        chunk = await body.receive()
        if not chunk:
            # If the stream has ended too, the next request gets 204.
            raise CutError("the response ended before the stream")
        try:
            self._events.extend(self._decoder.feed(chunk))
        except EventTooLargeError as error:
            raise CutError(str(error), broke_protocol=True) from error
        if self._decoder.retry is not None:
            self._attempts.set_retry(self._decoder.retry)
        if trio.current_time() - self._attached_at >= STEADY_SECONDS:
            self._attempts.mark_progress()
        if not self._events:
            self._mark_alive()

    def _take(self, event: sse.ServerSentEvent) -> AnyRecord | None:
        message = _decode(event)
        if isinstance(message, ServerBusy):
            raise CutError("the server is busy", wait=message.reconnect_in_ms / 1000, is_failure=False)
        self._mark_alive()
        if message is None or isinstance(message, ServerDraining):
            return None  # a draining server still sends the terminal record
        seq = self._seq_of(event, message)
        # With `final` and `none` the server leaves records out.
        if seq > self.last_seq + 1 and self._trace == "segments":
            raise CutError(f"record {seq} follows record {self.last_seq}", broke_protocol=True)
        if isinstance(message, TERMINAL):
            # Even if this record was seen before: nothing follows it.
            self.terminal = message
            self._ended = True
        if seq <= self.last_seq:
            return None
        self.last_seq = seq
        self._attempts.mark_progress()
        return None if isinstance(message, _UnknownRecord) else message

    def _seq_of(self, event: sse.ServerSentEvent, message: AnyRecord | _UnknownRecord) -> int:
        seq_in_json = None if isinstance(message, _UnknownRecord) else message.seq
        if event.id is None and seq_in_json is not None:
            return seq_in_json
        try:
            stream_id, seq = parse_event_id(event.id or "")
        except InvalidLastEventIdError as error:
            raise CutError("a record has an invalid id", broke_protocol=True) from error
        if stream_id != self._id or seq_in_json not in {None, seq}:
            raise CutError("a record has the id of another record", broke_protocol=True)
        return seq

    def _mark_alive(self) -> None:
        # Not when the response begins: it may hold nothing but `server.busy`, and that is not a reconnect.
        if not self._is_silent:
            return
        self._is_silent = False
        if self._was_connected:
            self.reconnects += 1
            if self._on_reconnect is not None:
                self._on_reconnect(self.last_seq)
        self._was_connected = True

    async def _disconnect(self) -> None:
        self._events.clear()
        body, self._body = self._body, None
        if body is not None:
            await body.aclose()


def _decode(event: sse.ServerSentEvent) -> AnyRecord | Control | _UnknownRecord | None:
    """Decode one event. None for an event to ignore.

    Raises:
        CutError: A record of a known type is invalid.
    """
    data = event.data or ""
    try:
        return decode_event(data)
    except (msgspec.DecodeError, RecursionError) as error:
        if event.id is None:
            return None  # not a record: an out-of-band event of a later version, or sent by a proxy
        try:
            record = _unknown_decoder.decode(data)
        except (msgspec.DecodeError, RecursionError):
            raise CutError("a record is not valid JSON with a type", broke_protocol=True) from error
        if record.type in _KNOWN_TYPES:
            raise CutError(f"a {record.type} record is invalid", broke_protocol=True) from error
        return record
