"""The client: starts, reads and cancels streams on a server.

Its state is one offset, the `seq` of the last record that it has yielded. After a cut it asks for the records after
that offset. It drops records that it has seen before and never accepts a record that would leave a gap, so the program
gets the same records as without the cut. If a start gets no answer, the client repeats it with the same idempotency
key, which cannot start a second stream. No log line and no error message contains a prompt.

Protocol: docs/reference/protocol.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, final

import msgspec

from crucible_trio import sse
from crucible_trio.client.answers import ClientRequest, ServerLink, send_with_retries
from crucible_trio.client.attempts import MAX_ATTEMPTS, MAX_FIRST_ATTEMPTS, RETRY_SECONDS, Attempts, RetryLimits
from crucible_trio.client.stream import ClientStream, OnReconnect
from crucible_trio.errors import ServerRefusedError
from crucible_trio.http import Connect, open_http_client, parse_url
from crucible_trio.records import format_event_id, parse_event_id
from crucible_trio.request import Request, Trace

# Three heartbeats of the server. A connection without heartbeats is dead, even if TCP has not noticed.
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
    connect: Connect | None = None,
) -> AsyncIterator[Client]:
    """Open a client of one server. Leaving closes all its connections.

    Args:
        base_url: Such as `http://127.0.0.1:8000`. It may have a path, if the API is mounted below one.
        key: Sent as `Authorization: Bearer`.
        silence_seconds: A connection without a byte for this long counts as cut. Heartbeats are bytes too.
        retry_seconds: The first delay after a cut, until the server sets another one. Later delays double.
        max_first_attempts: Failures in a row until the server has answered for the first time.
        max_attempts: Failures in a row without progress, after which a stream is lost.
        connect: Opens a connection in place of TCP, such as `lambda: trio.open_unix_socket("/run/crucible.sock")`.

    Raises:
        ValueError: An argument is invalid.
        ConfigError: The environment names a proxy or certificates that cannot be used.
    """
    try:
        url = parse_url(base_url)
    except ValueError as error:
        message = f"{base_url!r} is not an http or https URL: {error}"
        raise ValueError(message) from error
    if url.user is not None:
        message = "the base URL must not have a user or a password"  # nor must the message
        raise ValueError(message)
    if silence_seconds <= 0:
        message = "silence_seconds must be more than 0"
        raise ValueError(message)
    # A compressor would collect records and send them late.
    headers = {"Accept-Encoding": "identity"}
    if key is not None:
        if not _VISIBLE_ASCII.fullmatch(key):
            message = "the key must be 1 to 255 visible ASCII characters"  # the message must not contain the key
            raise ValueError(message)
        headers["Authorization"] = f"Bearer {key}"
    limits = RetryLimits(retry_seconds=retry_seconds, max_first_attempts=max_first_attempts, max_attempts=max_attempts)
    async with open_http_client(url, headers=headers, connect=connect, connect_timeout=silence_seconds) as http:
        yield Client(ServerLink(http, url, silence_seconds), limits)


@final
class Client:
    """Starts, reads and cancels streams on one server. Made by `open_client`.

    The client retries a request that gets no answer, or 408, 429, 500, 502, 503 or 504, with growing delays. It obeys
    `Retry-After` in seconds. Every request may raise `ServerRefusedError` for another error status,
    `StreamNotFoundError` (404) and `StreamExpiredError` (410) if it names a stream, and `StreamLostError` when the
    client gives up without an answer. Cancellation closes the connection immediately.
    """

    def __init__(self, server: ServerLink, limits: RetryLimits) -> None:
        self._server = server
        self._limits = limits

    def start(
        self,
        request: Request,
        *,
        idempotency_key: str | None = None,
        on_reconnect: OnReconnect | None = None,
        repeats_refused: bool = True,
        max_first_attempts: int | None = None,
    ) -> ClientStream:
        """Start a stream and read it: `async with client.start(request) as stream`.

        Args:
            request: The prompt and its options.
            idempotency_key: 1 to 255 visible ASCII characters. The same key and request never start a second stream.
                By default the client makes a random key.
            on_reconnect: Called with `last_seq` after each reconnect.
            repeats_refused: Whether the client repeats a start that was refused with 408, 429, 500, 502, 503 or 504.
                Otherwise entering raises `ServerRefusedError`. A start without an answer is repeated in any case.
            max_first_attempts: As in `open_client`, for this stream. None: that value.

        Raises:
            ValueError: The key or the number is invalid.
        """
        if idempotency_key is None:
            idempotency_key = secrets.token_urlsafe(16)
        elif not _VISIBLE_ASCII.fullmatch(idempotency_key):
            message = "an idempotency key must be 1 to 255 visible ASCII characters"
            raise ValueError(message)
        headers = {
            "Accept": sse.MEDIA_TYPE,
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key,
        }
        content = msgspec.json.encode(request)
        limits = self._limits
        if max_first_attempts is not None:
            limits = replace(limits, max_first_attempts=max_first_attempts)
        start = ClientRequest(method="POST", path="v1/streams", headers=headers, content=content)
        return ClientStream(
            self._server,
            limits,
            start,
            None,
            after=0,
            trace=request.trace,
            on_reconnect=on_reconnect,
            repeats_refused=repeats_refused,
        )

    def read(
        self, stream_id: str, *, after: int = 0, trace: Trace = "segments", on_reconnect: OnReconnect | None = None
    ) -> ClientStream:
        """Read a stream that was started before: `async with client.read(stream_id) as stream`.

        Args:
            stream_id: Its id.
            after: The offset to resume from: the `seq` of the last record that the program has, or 0.
            trace: How much of the reasoning trace to get. The client always sends this option and ignores the stream's
                default, because only with `segments` does a gap in the numbers mean a lost record.
            on_reconnect: Called with `last_seq` after each reconnect.

        Raises:
            InvalidLastEventIdError: The id or the offset is invalid.
        """
        parse_event_id(format_event_id(stream_id, after))
        return ClientStream(
            self._server, self._limits, None, stream_id, after=after, trace=trace, on_reconnect=on_reconnect
        )

    async def snapshot(self, stream_id: str) -> dict[str, Any]:
        """The state and content of a stream as the server's JSON: status, `last_seq`, answer, trace, usage, error.

        Raises:
            InvalidLastEventIdError: The id is invalid.
        """
        parse_event_id(format_event_id(stream_id, 0))
        return _decode(await self._send("GET", f"v1/streams/{stream_id}", names_stream=True))

    async def cancel(self, stream_id: str) -> None:
        """Stop a stream. Its readers get the terminal record. A stream that has ended does not change.

        Raises:
            InvalidLastEventIdError: The id is invalid.
        """
        parse_event_id(format_event_id(stream_id, 0))
        await self._send("POST", f"v1/streams/{stream_id}/cancel", names_stream=True)

    async def models(self) -> dict[str, Any]:
        """The models that a request may name, as the server's JSON."""
        return _decode(await self._send("GET", "v1/models", names_stream=False))

    async def _send(self, method: str, path: str, *, names_stream: bool) -> bytes:
        return await send_with_retries(self._server, Attempts(self._limits), method, path, names_stream=names_stream)


def _decode(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ServerRefusedError(HTTPStatus.OK, "http_error", "the response is not a JSON object") from error
