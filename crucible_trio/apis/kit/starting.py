"""How a stream is started and answered on OpenAI's wires, the same for all of them."""

from __future__ import annotations

from quart import Response, request, url_for

from crucible_trio.dialects import Dialect
from crucible_trio.engine import OnDisconnect, Request
from crucible_trio.errors import TooManyReadersError
from crucible_trio.pipeline import Pipeline
from crucible_trio.stream import Stream
from crucible_trio.web.body import EventStreamBody
from crucible_trio.web.intake import idempotency_key
from crucible_trio.web.responses import event_response, name_stream


def start_or_join(
    pipeline: Pipeline,
    ask: Request,
    owner: str,
    *,
    on_disconnect: OnDisconnect | None = None,
    starts_with_reader: bool = True,
) -> tuple[Stream, bool]:
    """Start the current request's stream, or find the one that its `Idempotency-Key` has started.

    Args:
        pipeline: Where.
        ask: What to generate.
        owner: Who asks.
        on_disconnect: What happens while nobody reads. None: nobody wants the rest of a stream that its client has
            left, because nobody could come back to it; with a key the client can, and the stream pauses.
        starts_with_reader: Call the engine when a reader has record 1; otherwise at once.

    Returns:
        The stream, and whether it was there before.

    Raises:
        As `Pipeline.start_or_join`.
    """
    key = idempotency_key(request.headers.get("Idempotency-Key"))
    policy = on_disconnect or ("pause" if key is not None else "cancel")
    return pipeline.start_or_join(ask, key, owner=owner, on_disconnect=policy, starts_with_reader=starts_with_reader)


def has_key() -> bool:
    """Whether the current request brings an idempotency key."""
    return "Idempotency-Key" in request.headers


def event_stream(pipeline: Pipeline, stream: Stream, dialect: Dialect, after: int = 0) -> Response:
    """A stream's events.

    Args:
        pipeline: Whose stream.
        stream: The stream.
        dialect: How its records look, fed up to `after`.
        after: The position up to which the client has everything.

    Raises:
        TooManyReadersError: The stream has as many readers as it may have. Once the status line is out, only a reset
            could say so.
    """
    check_room(pipeline, stream)
    return event_response(EventStreamBody(pipeline, stream, dialect, after), stream)


def check_room(pipeline: Pipeline, stream: Stream) -> None:
    """Refuse one reader too many.

    Raises:
        TooManyReadersError: The stream has as many readers as it may have.
    """
    if not stream.takes_readers:
        raise TooManyReadersError(pipeline.settings.max_readers_per_stream)


async def read_to_end(stream: Stream) -> None:
    """Follow a stream until its terminal record is in the log, as its reader: the engine runs while somebody waits.

    Raises:
        TooManyReadersError: The stream has as many readers as it may have.

    Cancellation: the reader leaves, as on any disconnect. Checkpoints: always.
    """
    async with stream.attach() as reader:
        async for _ in reader:
            pass


def named(response: Response, stream: Stream, *, joined: bool) -> Response:
    """Say where the stream can be read natively, at the same time or after a failure."""
    response.headers["Crucible-Stream"] = stream.id
    # These routes are nested in the native API's blueprint, under whatever name that is registered.
    native = (request.blueprint or "").rpartition(".")[0]
    return name_stream(response, url_for(f"{native}.show", stream_id=stream.id), joined=joined)
