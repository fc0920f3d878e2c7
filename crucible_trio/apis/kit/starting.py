"""How a route starts or joins a stream, and how it answers with the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
import trio
from quart import Response

from crucible_trio.apis.kit.body import EventStreamBody
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.dialect import Dialect
from crucible_trio.apis.kit.downloads import Download
from crucible_trio.apis.kit.registration import stream_url
from crucible_trio.apis.kit.replies import event_response
from crucible_trio.errors import TooManyReadersError
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import StreamFailed, Terminal
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.stream import Stream

_NO_FACTS: Final[Mapping[str, msgspec.Raw]] = {}


class StartedStream(NamedTuple):
    """The stream of a request that starts one.

    Attributes:
        stream: The stream.
        joined: Whether an earlier request with the same idempotency key started it.
        was_over: Whether it had ended before this request.
    """

    stream: Stream
    joined: bool
    was_over: bool


async def start_or_join(
    pipeline: Pipeline,
    engine_request: Request,
    *,
    owner: str,
    key: str | None,
    on_disconnect: OnDisconnect | None = None,
    starts_with_reader: bool = True,
    may_hold: bool = False,
    client_retries: bool = False,
    facts: Mapping[str, msgspec.Raw] = _NO_FACTS,
    label: str | None = None,
    identity: object = None,
    keeps_input: bool = False,
) -> StartedStream:
    """Start a stream, or join the one that an earlier request with the same idempotency key started.

    Args:
        pipeline: Where the stream runs.
        engine_request: What to generate.
        owner: Who may read and stop the stream.
        key: The idempotency key.
        on_disconnect: The policy while no reader is attached, if the request does not name one. None, for a wire
            without a cursor: with a key the stream pauses, because the client can repeat the request and join. Without
            a key it is cancelled, because the client cannot come back.
        starts_with_reader: Call the engine when a reader has record 1. Otherwise call it immediately.
        may_hold: The route calls `hold` next.
        client_retries: Whether a refusal is answered with a status, so that the client decides about a retry.
        facts: Facts of the stream that the API needs later, under the API's name (`StreamFacts.for_apis`).
        label: As for `Pipeline.start`.
        identity: What a repeated request must have in common with the first. None: `engine_request`.
        keeps_input: Whether the API needs the request's input after the stream has ended.

    A stream that was refused while no client waited is not joined: it is discarded, and another one starts.

    Raises:
        As `Pipeline.start_or_join`.
    """
    while True:
        stream, joined = await pipeline.start_or_join(
            engine_request,
            key,
            owner=owner,
            on_disconnect=on_disconnect or ("cancel" if key is None else "pause"),
            starts_with_reader=starts_with_reader,
            may_hold=may_hold,
            client_retries=client_retries,
            facts=facts,
            label=label,
            identity=identity,
            keeps_input=keeps_input,
        )
        if not joined:
            stream.is_known = False  # until `locate_stream`
        elif not stream.is_known and _was_refused(stream):
            await pipeline.discard(stream, key)
            continue
        return StartedStream(stream, joined, joined and stream.log.finished)


async def join(pipeline: Pipeline, key: str, *, owner: str, identity: object) -> StartedStream | None:
    """Join the stream that an earlier request with the same key started. The arguments are those of `start_or_join`.

    Returns:
        None if there is no such stream.

    Raises:
        As `Pipeline.find_started`.
    """
    stream = await pipeline.find_started(key, owner=owner, identity=identity)
    if stream is None or (not stream.is_known and _was_refused(stream)):
        return None
    return StartedStream(stream, joined=True, was_over=stream.log.finished)


async def hold(started: StartedStream, seconds: float) -> Terminal | None:
    """Wait with the status line until the engine has answered, if it waits for an upstream.

    Args:
        started: What `start_or_join` with `may_hold` returned.
        seconds: The longest time to wait.

    Returns:
        The end of a stream that has already ended without any output. None: answer with the stream.

    Checkpoints: only if it waits. Cancellation: the client has left, and the stream's policy decides.
    """
    stream = started.stream
    if stream.hold is None or started.was_over:
        return None
    if started.joined:
        stream.hold.join()
    await stream.hold.wait(seconds)
    return stream.terminal if not stream.hold.was_accepted and _is_without_output(stream) else None


async def discard_refused(pipeline: Pipeline, started: StartedStream, key: str | None) -> bool:
    """Discard a stream that has failed before any output: no client can find it, and its idempotency key is free.

    Returns:
        Whether it was such a stream. One that had ended before this request is kept.
    """
    stream = started.stream
    if started.was_over or not _was_refused(stream):
        return False
    await pipeline.discard(stream, key)
    return True


def _was_refused(stream: Stream) -> bool:
    """Whether a stream has failed before any output."""
    return _is_without_output(stream) and isinstance(stream.terminal, StreamFailed)


def _is_without_output(stream: Stream) -> bool:
    """Whether a stream has ended with nothing between its first and its terminal record."""
    return stream.log.finished and stream.log.head == 2


def event_stream(
    context: ApiContext,
    stream: Stream,
    dialect: Dialect,
    *,
    window: int | None = None,
    download: Download | None = None,
) -> Response:
    """Answer with the events of a stream.

    Args:
        context: The API's context.
        stream: The stream.
        dialect: How its records look on this wire.
        window: Send at most this many records, then wait for the client to ask again. None: no limit.
        download: Bytes that have been reserved for the first events.

    Raises:
        TooManyReadersError: The stream has no place for another reader, and the wire has no event that says so.
    """
    if dialect.busy() is None:
        check_room(stream)
    return event_response(EventStreamBody(context, stream, dialect, window=window, download=download), stream)


def check_room(stream: Stream) -> None:
    """Refuse a reader while an error status can still be sent. After the status line only a reset is possible.

    Raises:
        TooManyReadersError: The stream has no place for another reader.
    """
    if not stream.takes_readers:
        raise TooManyReadersError(stream.max_readers)


async def read_to_end(stream: Stream) -> Terminal:
    """Read to the terminal record as a reader of the stream, so that the engine runs while the client waits.

    Raises:
        TooManyReadersError: The stream has no place for another reader.

    Checkpoints: always. Cancellation: the reader leaves, as after any disconnect.
    """
    async with stream.attach() as reader:
        async for _ in reader:
            pass
    assert stream.terminal is not None
    return stream.terminal


async def forget(pipeline: Pipeline, stream: Stream) -> None:
    """Forget a stream whose one client has left. Cancellation: it has `flush_seconds` to finish."""
    with trio.move_on_after(pipeline.settings.flush_seconds, shield=True):
        await pipeline.forget(stream)


def locate_stream(response: Response, started: StartedStream) -> Response:
    """Add the stream's native path, and whether the request joined an existing stream."""
    started.stream.is_known = True
    response.headers["Location"] = stream_url(started.stream.id)
    if started.joined:
        response.headers["Crucible-Replayed"] = "true"
    return response
