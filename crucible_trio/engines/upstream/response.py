"""Read one response of an upstream server: the stream of a completion, or the reason of a refusal.

What is easy to get wrong:

* An end is not a success. A body that ends without `finish_reason` was cut, however cleanly.
* Nothing is read while the buffer is full, and the upstream's socket fills: a slow client slows the upstream down.
* What was held back of a text comes out before a failure is reported.
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
from crucible_trio.engines.upstream.completion import Completion, Piece, error_of, failure
from crucible_trio.errors import EngineError, EventTooLargeError
from crucible_trio.httpx_bodies import aclose_body
from crucible_trio.output import Output
from crucible_trio.sse import Decoder, ServerSentEvent

logger = logging.getLogger(__name__)

# After `finish_reason` only usage and `[DONE]` are outstanding, after that nothing but the end of the body, which lets
# the connection be used again: a server that is slow with them must not hold back an answer that is complete.
USAGE_TIMEOUT: Final = 5.0
END_TIMEOUT: Final = 0.5

# Characters of one event. A chunk is a token or a few; this is for servers that send a whole answer in one.
MAX_CHUNK_LENGTH: Final = 4 * 1024 * 1024

# Bytes and seconds spent on the body of a refusal, in search of one word.
_MAX_ERROR_BODY = 16 * 1024
_ERROR_BODY_TIMEOUT = 2.0


@final
class Body:
    """The bytes and events of one response, made by `open_body`.

    Attributes:
        is_empty: Whether nothing has come so far.
        has_events: Whether an event has come.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.is_empty = True
        self.has_events = False
        self._response = response
        self._chunks = response.aiter_raw()  # not decoded: we asked for no encoding, and an error there leaves litter
        self._decoder = Decoder(max_event_length=MAX_CHUNK_LENGTH)

    async def read(self) -> bytes | None:
        """The next bytes; None at the end."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return None
        self.is_empty = False
        return chunk

    async def read_events(self) -> list[ServerSentEvent] | None:
        """The events that the next bytes finish, perhaps none; None at the end."""
        chunk = await self.read()
        if chunk is None:
            return None
        events = self._decoder.feed(chunk)
        self.has_events = self.has_events or bool(events)
        return events

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body has not ended."""
        await aclose_body(self._response, self._chunks)


@asynccontextmanager
async def open_body(response: httpx.Response) -> AsyncIterator[Body]:
    """The body of a response that was sent with `stream=True`; it closes with the context."""
    body = Body(response)
    try:
        yield body
    finally:
        await body.aclose()


async def pass_on(body: Body, output: Output) -> Finish:
    """Write the completion that a body streams to `output`, piece by piece as it comes.

    Raises:
        EngineError: `upstream_ended_early`, `upstream_rubbish`, `upstream_error`, `upstream_rejected`.
    """
    completion = Completion()
    try:
        await _read_completion(body, completion, output)
    except EngineError as error:
        logger.warning("%s", error)
        await _write(completion.flush(), output)
        raise
    await _write(completion.flush(), output)
    return Finish(completion.finish_reason or "stop", completion.usage)


async def read_refusal(response: httpx.Response, body: Body) -> EngineError:
    """What an answer with an error status means; its body need not be JSON, nor end."""
    content = b""
    with trio.move_on_after(_ERROR_BODY_TIMEOUT), suppress(httpx.TransportError):
        while len(content) < _MAX_ERROR_BODY and (chunk := await body.read()) is not None:
            content += chunk
    return failure(response.status_code, error_of(content))


async def _read_completion(body: Body, completion: Completion, output: Output) -> None:
    deadline = math.inf
    while True:
        events = None
        try:
            with trio.CancelScope(deadline=deadline):
                events = await body.read_events()
        except (httpx.TransportError, EventTooLargeError) as error:
            if completion.finish_reason is None:
                raise _broken_body(error) from error
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
        raise _no_end(body)


async def _write(pieces: Iterable[Piece], output: Output) -> None:
    for segment, text in pieces:
        if segment is None:
            await output.delta(text)
        else:
            await output.reasoning(text, segment)


def _broken_body(error: httpx.TransportError | EventTooLargeError) -> EngineError:
    if isinstance(error, httpx.TransportError):
        return EngineError("upstream_ended_early", "The upstream server broke off in the middle.", retryable=True)
    return _no_event_stream()


def _no_end(body: Body) -> EngineError:
    if body.is_empty:
        return EngineError("upstream_ended_early", "The upstream server sent an empty answer.", retryable=True)
    if not body.has_events:
        return _no_event_stream()
    return EngineError("upstream_ended_early", "The upstream server stopped in the middle.", retryable=True)


def _no_event_stream() -> EngineError:
    return EngineError("upstream_rubbish", "The upstream server sent something that is no event stream.")
