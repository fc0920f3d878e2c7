"""Read one response of an upstream server: the stream of a completion, or an error.

Easy to get wrong:

* The end of the body does not mean success. A body without `finish_reason` was cut, however cleanly it ended.
* Backpressure: while the buffer is full, nothing is read and the upstream's socket fills. So a slow client slows the
  upstream down.
* Text held back must come out before a failure is reported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final, final

import httpx
import trio

from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.completion import UpstreamCompletion, UpstreamPiece, find_error, to_engine_error
from crucible_trio.errors import EngineError, EventTooLargeError
from crucible_trio.httpx_bodies import aclose_body
from crucible_trio.output import Output
from crucible_trio.sse import Decoder, ServerSentEvent

logger = logging.getLogger(__name__)

# Seconds. After `finish_reason` only usage and `[DONE]` are missing. After `[DONE]` only the end of the body is
# missing, which makes the connection reusable. A server that is slow with these must not delay a complete answer.
USAGE_TIMEOUT: Final = 5.0
END_TIMEOUT: Final = 0.5

# Characters of one event. A chunk usually has a few tokens, but some servers send a whole answer in one.
MAX_CHUNK_LENGTH: Final = 4 * 1024 * 1024

# Bytes and seconds spent on the body of an error response, to find its identifier.
_MAX_ERROR_BODY = 16 * 1024
_ERROR_BODY_TIMEOUT = 2.0


@final
class UpstreamBody:
    """The bytes and events of one response, made by `open_upstream_body`.

    Attributes:
        is_empty: Whether no bytes have come so far.
        has_events: Whether an event has come.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.is_empty = True
        self.has_events = False
        self._response = response
        # Raw: the request accepts no encoding, and a decoding error inside httpx would leave async generators open.
        self._chunks = response.aiter_raw()
        self._decoder = Decoder(max_event_length=MAX_CHUNK_LENGTH)

    async def read(self) -> bytes | None:
        """Read the next bytes, or None at the end. Cancellation: the body must be closed then."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return None
        self.is_empty = False
        return chunk

    async def read_events(self) -> list[ServerSentEvent] | None:
        """Read the events, perhaps none, that the next bytes complete, or None at the end. Cancellation: as `read`."""
        chunk = await self.read()
        if chunk is None:
            return None
        events = self._decoder.feed(chunk)
        self.has_events = self.has_events or bool(events)
        return events

    async def aclose(self) -> None:
        """Return the connection to the pool. Close it if the body has not ended."""
        await aclose_body(self._response, self._chunks)


@asynccontextmanager
async def open_upstream_body(response: httpx.Response) -> AsyncIterator[UpstreamBody]:
    """Open the body of a response that was sent with `stream=True`. It closes with the context."""
    body = UpstreamBody(response)
    try:
        yield body
    finally:
        await body.aclose()


async def relay_completion(body: UpstreamBody, output: Output) -> Finish:
    """Write the completion in a body to `output`, each piece as it arrives.

    Cancellation: text held back is not written.

    Raises:
        EngineError: `upstream_ended_early`, `upstream_invalid_response`, `upstream_error`, `upstream_rejected`.
    """
    completion = UpstreamCompletion()
    try:
        await _read_completion(body, completion, output)
    except EngineError as error:
        logger.warning("%s", error)
        await _write(completion.flush(), output)
        raise
    await _write(completion.flush(), output)
    return Finish(completion.finish_reason or "stop", completion.usage)


async def read_error_response(response: httpx.Response, body: UpstreamBody) -> EngineError:
    """Translate a response with an error status. Its body need not be JSON and need not end."""
    content = b""
    with trio.move_on_after(_ERROR_BODY_TIMEOUT), suppress(httpx.TransportError):
        while len(content) < _MAX_ERROR_BODY and (chunk := await body.read()) is not None:
            content += chunk
    return to_engine_error(response.status_code, find_error(content))


async def _read_completion(body: UpstreamBody, completion: UpstreamCompletion, output: Output) -> None:
    deadline = math.inf
    while True:
        events = None
        try:
            with trio.CancelScope(deadline=deadline):
                events = await body.read_events()
        except (httpx.TransportError, EventTooLargeError) as error:
            if completion.finish_reason is None:
                raise _unreadable_body(error) from error
        if events is None:
            break
        for event in events:
            await _write(completion.feed(event), output)
        if completion.finish_reason is not None:
            patience = END_TIMEOUT if completion.done else USAGE_TIMEOUT
            deadline = min(deadline, trio.current_time() + patience)
        elif completion.done:
            break
    if completion.finish_reason is None:
        raise _no_finish_reason(body)


async def _write(pieces: Iterable[UpstreamPiece], output: Output) -> None:
    for segment, text in pieces:
        if segment is None:
            await output.delta(text)
        else:
            await output.reasoning(text, segment)


def _unreadable_body(error: httpx.TransportError | EventTooLargeError) -> EngineError:
    if isinstance(error, httpx.TransportError):
        message = "The connection to the upstream server was lost before the completion ended."
        return EngineError("upstream_ended_early", message, retryable=True)
    return _not_an_event_stream()


def _no_finish_reason(body: UpstreamBody) -> EngineError:
    if body.is_empty:
        return EngineError("upstream_ended_early", "The upstream server sent an empty response.", retryable=True)
    if not body.has_events:
        return _not_an_event_stream()
    message = "The upstream server's response ended without a finish_reason."
    return EngineError("upstream_ended_early", message, retryable=True)


def _not_an_event_stream() -> EngineError:
    return EngineError("upstream_invalid_response", "The upstream server's response is not an event stream.")
