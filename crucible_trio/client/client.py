"""A client for trio that reads a stream to its end over any number of cuts.

It keeps one position, the `seq` of the last record it has handed out. After a cut it asks for what follows that
position, drops what it has seen before and takes no record that would leave a hole, so the records of a cut reading are
those of one that was never cut. A start that gets no answer is repeated under the same idempotency key: it cannot start
a second stream. Prompts are never logged and stand in no message.

PROTOCOL: docs/reference/protocol.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, final

import httpx
import msgspec

from crucible_trio import sse
from crucible_trio.client.answers import ask
from crucible_trio.client.attempts import MAX_ATTEMPTS, MAX_FIRST_ATTEMPTS, RETRY_SECONDS, Attempts, Patience
from crucible_trio.client.stream import ClientStream, OnReconnect
from crucible_trio.errors import ServerRefusedError
from crucible_trio.httpx_bodies import Content
from crucible_trio.records import format_event_id, parse_event_id
from crucible_trio.request import Request, Trace

# Three heartbeats of the server: a connection that carries not even those is dead, whatever TCP believes.
SILENCE_SECONDS: Final = 30.0

_VISIBLE_ASCII = re.compile(r"[!-~]{1,255}")


@asynccontextmanager
async def open_client(
    base_url: str,
    *,
    key: str | None = None,
    silence_seconds: float = SILENCE_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
    max_first_attempts: int = MAX_FIRST_ATTEMPTS,
    max_attempts: int = MAX_ATTEMPTS,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Client]:
    """Open a client of one server; leaving closes all its connections.

    Args:
        base_url: Such as `http://127.0.0.1:8000`; it may have a path, if the server is mounted below one.
        key: Sent as `Authorization: Bearer`.
        silence_seconds: A connection without a byte for this long counts as cut; a heartbeat is bytes.
        retry_seconds: The first delay after a cut, until the server names one; later ones double.
        max_first_attempts: Failures in a row before the server has answered for the first time.
        max_attempts: Failures in a row, without progress between them, after which a stream is lost.
        transport: Instead of httpx's own; for a Unix socket, or a test.

    Raises:
        ValueError: An argument cannot be meant.
    """
    url = httpx.URL(base_url)
    if url.scheme not in {"http", "https"} or not url.host:
        message = f"{base_url!r} is no http or https URL"
        raise ValueError(message)
    if silence_seconds <= 0:
        message = "silence_seconds must be more than 0"
        raise ValueError(message)
    # A compressed event stream arrives in the portions of the compressor, not in those of the model.
    headers = {"Accept-Encoding": "identity"}
    if key is not None:
        if not _VISIBLE_ASCII.fullmatch(key):
            message = "the key must be 1 to 255 visible ASCII characters"  # never quotes it
            raise ValueError(message)
        headers["Authorization"] = f"Bearer {key}"
    patience = Patience(retry_seconds=retry_seconds, max_first_attempts=max_first_attempts, max_attempts=max_attempts)
    async with httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=silence_seconds,  # for each read, also between two chunks of a body
        # The default of 100 connections would let the 101st stream wait for the end of another.
        limits=httpx.Limits(max_connections=None),
        transport=transport,
    ) as http:
        yield Client(http, patience)


@final
class Client:
    """One server as a program sees it; made by `open_client`.

    A request that gets no answer, or 408, 429, 500, 502, 503 or 504, is repeated with growing delays; `Retry-After` in
    seconds is honoured. Every request raises `ServerRefusedError` for other error statuses, `StreamNotFoundError` (404)
    and `StreamExpiredError` (410) where it names a stream, and `StreamLostError` when it gives up without an answer.
    Cancellation closes the connection at once.
    """

    def __init__(self, http: httpx.AsyncClient, patience: Patience) -> None:
        self._http = http
        self._patience = patience

    def start(
        self, request: Request, *, idempotency_key: str | None = None, on_reconnect: OnReconnect | None = None
    ) -> ClientStream:
        """Start a stream and read it: `async with client.start(request) as stream`.

        Args:
            request: What to ask for.
            idempotency_key: 1 to 255 visible ASCII characters; the same key and request never start a second stream.
                None is a random one.
            on_reconnect: Called with `last_seq` each time a connection has been replaced.

        Raises:
            ValueError: The key is not valid.
        """
        if idempotency_key is None:
            idempotency_key = secrets.token_urlsafe(16)
        elif not _VISIBLE_ASCII.fullmatch(idempotency_key):
            message = "an idempotency key is 1 to 255 visible ASCII characters"
            raise ValueError(message)
        headers = {
            "Accept": sse.MEDIA_TYPE,
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key,
        }
        content = msgspec.json.encode(request)
        start = self._http.build_request("POST", "/v1/streams", headers=headers, content=content)
        start.stream = Content(content)
        return ClientStream(
            self._http, self._patience, start, None, after=0, trace=request.trace, on_reconnect=on_reconnect
        )

    def read(
        self, stream_id: str, *, after: int = 0, trace: Trace = "segments", on_reconnect: OnReconnect | None = None
    ) -> ClientStream:
        """Read a stream that was started before: `async with client.read(stream_id) as stream`.

        Args:
            stream_id: Its id.
            after: The `seq` of the last record that you have; 0 for none.
            trace: How much of the reasoning trace to get. Named in the request, not left to the stream's own default:
                without knowing the view, a hole in the numbers could not be told from a loss.
            on_reconnect: Called with `last_seq` each time a connection has been replaced.

        Raises:
            InvalidLastEventIdError: No stream can have this id or position.
        """
        parse_event_id(format_event_id(stream_id, after))
        return ClientStream(
            self._http, self._patience, None, stream_id, after=after, trace=trace, on_reconnect=on_reconnect
        )

    async def snapshot(self, stream_id: str) -> dict[str, Any]:
        """What a stream is and has so far, as the server's JSON: its status, `last_seq`, answer, trace, usage, error.

        Raises:
            InvalidLastEventIdError: No stream can have this id.
        """
        parse_event_id(format_event_id(stream_id, 0))
        return _decode(await self._ask("GET", f"/v1/streams/{stream_id}", names_stream=True))

    async def cancel(self, stream_id: str) -> None:
        """Stop a stream; one that has ended stays as it is. Its readers get the terminal record.

        Raises:
            InvalidLastEventIdError: No stream can have this id.
        """
        parse_event_id(format_event_id(stream_id, 0))
        await self._ask("POST", f"/v1/streams/{stream_id}/cancel", names_stream=True)

    async def models(self) -> dict[str, Any]:
        """The models that a request may name, as the server's JSON."""
        return _decode(await self._ask("GET", "/v1/models", names_stream=False))

    async def _ask(self, method: str, path: str, *, names_stream: bool) -> bytes:
        return await ask(self._http, Attempts(self._patience), method, path, names_stream=names_stream)


def _decode(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ServerRefusedError(httpx.codes.OK, "http_error", "the answer is not one of this server") from error
