"""The routes of the native API. docs/reference/protocol.md describes them one by one."""

from __future__ import annotations

from typing import ClassVar, Final, final

import msgspec
from quart import Blueprint, Request, Response, url_for
from quart.globals import request_ctx
from werkzeug.http import parse_accept_header

from crucible_trio import sse
from crucible_trio.apis.kit.bodies import read_body
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.model_answers import answer_about_models
from crucible_trio.apis.kit.models import ModelsForm
from crucible_trio.apis.kit.parsing import check_parameters, idempotency_key, valid
from crucible_trio.apis.kit.registration import STREAM_BLUEPRINT, STREAM_ENDPOINT
from crucible_trio.apis.kit.replies import event_response, json_response, model_entries, no_content
from crucible_trio.apis.kit.starting import event_stream, locate_stream, start_or_join
from crucible_trio.apis.native import fold
from crucible_trio.apis.native.errors import NATIVE_ERRORS
from crucible_trio.errors import CursorAheadError, InvalidLastEventIdError, InvalidRequestError
from crucible_trio.records import Mode, parse_event_id
from crucible_trio.request import OnDisconnect, Trace
from crucible_trio.request import Request as EngineRequest
from crucible_trio.snapshot import Status
from crucible_trio.stream import Stream

_TRACES: Final[dict[str, Trace]] = {"segments": "segments", "final": "final", "none": "none"}
_START_PARAMETERS: Final = frozenset({"trace", "done", "window"})
_MAX_WINDOW_DIGITS: Final = 9  # no log holds more records
# `lastEventId` is the name that polyfills of EventSource use. `_` keeps caches from answering, and means nothing.
_EVENTS_PARAMETERS: Final = _START_PARAMETERS | {"last_event_id", "lastEventId", "token", "_"}
_GENERATE_PARAMETERS: Final = _EVENTS_PARAMETERS | {"prompt", "mode", "idempotency_key"}

_request_decoder = msgspec.json.Decoder(EngineRequest)


@final
class StreamSummary(msgspec.Struct):
    """A stream in lists and in answers to a start."""

    id: str
    status: Status
    mode: Mode
    model: str | None
    events_url: str
    cancel_url: str
    created_at: float


@final
class NativeApi:
    """The native API over one pipeline (`Api`)."""

    name: ClassVar[str] = STREAM_BLUEPRINT
    error_shape: ClassVar[ErrorShape | None] = NATIVE_ERRORS
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/streams", "/v1/generate")
    open_endpoints: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        add = blueprint.add_url_rule
        add("/v1/streams", view_func=self.start, methods=["POST"])
        add("/v1/streams", view_func=self.list, methods=["GET"])
        add("/v1/streams/<stream_id>", endpoint=STREAM_ENDPOINT, view_func=self.show, methods=["GET"])
        add("/v1/streams/<stream_id>", view_func=self.delete, methods=["DELETE"])
        add("/v1/streams/<stream_id>/events", view_func=self.events, methods=["GET"])
        add("/v1/streams/<stream_id>/cancel", view_func=self.cancel, methods=["POST"])
        add("/v1/generate", view_func=self.generate, methods=["GET"])
        add("/v1/models", view_func=self.models, methods=["GET"])

    async def start(self) -> Response:
        """`POST /v1/streams`: start a stream. With `Last-Event-ID`, resume that stream and start nothing."""
        request = request_ctx.request
        owner = self._access.owner(request)
        check_parameters(request, _START_PARAMETERS)
        _check_view(request)
        if last_event_id := request.headers.get("Last-Event-ID"):
            stream, after = await self._resume(last_event_id, owner)
            return await self._event_stream(stream, after)
        engine_request = await read_body(
            request, self._context, lambda body: valid(lambda: _request_decoder.decode(body))
        )
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        if _accepts_events(request):
            return await self._start_event_stream(engine_request, key, owner)
        started = await start_or_join(
            self._pipeline, engine_request, owner=owner, key=key, on_disconnect="continue", starts_with_reader=False
        )
        response = json_response(self._summary(started.stream), 200 if started.joined else 201)
        return locate_stream(response, started)

    async def generate(self) -> Response:
        """`GET /v1/generate`: start a stream for a bare `EventSource`, or resume the stream when it reconnects."""
        request = request_ctx.request
        owner = self._access.owner(request)
        check_parameters(request, _GENERATE_PARAMETERS)
        _check_view(request)
        if last_event_id := _last_event_id(request):
            stream, after = await self._resume(last_event_id, owner)
            return await self._events_or_204(stream, after)
        if request.method == "HEAD":
            return event_response(b"")
        prompt = request.args.get("prompt")
        if prompt is None:
            raise InvalidRequestError("the parameter 'prompt' is missing", "prompt")
        fields = {"input": prompt, "mode": request.args.get("mode", "standard")}
        engine_request = valid(lambda: msgspec.convert(fields, EngineRequest))
        key = idempotency_key(request.args.get("idempotency_key"))
        return await self._start_event_stream(engine_request, key, owner)

    async def events(self, stream_id: str) -> Response:
        """`GET /v1/streams/{id}/events`: follow a stream after the event that the client names."""
        request = request_ctx.request
        owner = self._access.events_owner(request, stream_id)
        stream = await self._find(stream_id, owner)
        check_parameters(request, _EVENTS_PARAMETERS)
        _check_view(request)
        after = 0
        if last_event_id := _last_event_id(request):
            named, after = parse_event_id(last_event_id)
            if named != stream_id:
                raise InvalidLastEventIdError
        await _check_offset(stream, after)
        return await self._events_or_204(stream, after)

    async def list(self) -> Response:
        """`GET /v1/streams`: the owner's streams, newest first."""
        request = request_ctx.request
        streams = await self._pipeline.list(owner=self._access.owner(request))
        return json_response({"data": [self._summary(stream) for stream in streams]})

    async def show(self, stream_id: str) -> Response:
        """`GET /v1/streams/{id}`: a snapshot of the stream."""
        request = request_ctx.request
        stream = await self._find(stream_id, self._access.owner(request))
        snapshot = msgspec.structs.asdict(stream.snapshot())
        return json_response(snapshot | {"events_url": self._events_url(stream), "cancel_url": _cancel_url(stream)})

    async def cancel(self, stream_id: str) -> Response:
        """`POST /v1/streams/{id}/cancel`: stop the stream. May be repeated."""
        request = request_ctx.request
        stream = await self._find(stream_id, self._access.owner(request))
        stream.cancel("client")
        return json_response(self._summary(stream), 200 if stream.log.finished else 202)

    async def delete(self, stream_id: str) -> Response:
        """`DELETE /v1/streams/{id}`: stop the stream and forget it."""
        request = request_ctx.request
        await self._pipeline.forget(await self._find(stream_id, self._access.owner(request)))
        return no_content()

    async def models(self) -> Response:
        """`GET /v1/models`: the models that a request may name."""
        request = request_ctx.request
        return answer_about_models(request, self._context, self._list_models)

    def _list_models(self, form: ModelsForm | None) -> Response:
        engine = self._pipeline.engine
        if form is not None:
            return json_response(form.all([*engine.info.models, *self._context.settings.openai_models]))
        return json_response({"object": "list", "data": model_entries(engine, engine.info.models)})

    async def _find(self, stream_id: str, owner: str | None) -> Stream:
        return await self._pipeline.find(stream_id, owner=owner)

    async def _resume(self, last_event_id: str, owner: str) -> tuple[Stream, int]:
        stream_id, after = parse_event_id(last_event_id)
        stream = await self._find(stream_id, owner)
        await _check_offset(stream, after)
        return stream, after

    async def _start_event_stream(self, engine_request: EngineRequest, key: str | None, owner: str) -> Response:
        # Deep reasoning costs most, so it goes on while its client is away.
        on_disconnect: OnDisconnect = "continue" if engine_request.mode == "deep" else "pause"
        started = await start_or_join(self._pipeline, engine_request, owner=owner, key=key, on_disconnect=on_disconnect)
        return locate_stream(await self._event_stream(started.stream, 0), started)

    async def _events_or_204(self, stream: Stream, after: int) -> Response:
        request = request_ctx.request
        if stream.finished_before(after) and "done" not in request.args:
            return no_content()  # the only answer after which an EventSource stops reconnecting
        return await self._event_stream(stream, after)

    async def _event_stream(self, stream: Stream, after: int) -> Response:
        request = request_ctx.request
        if stream.finished_before(after):
            after -= 1  # some clients raise on 204, so they get the terminal record once more
        if request.method == "HEAD":
            return event_response(b"", stream)
        trace = _TRACES[request.args.get("trace", stream.request.trace)]
        retry = self._context.settings.retry_milliseconds
        dialect = await fold.open_dialect(trace, stream.log, after, retry_milliseconds=retry)
        return event_stream(self._context, stream, dialect, window=_window(request))

    def _summary(self, stream: Stream) -> StreamSummary:
        return StreamSummary(
            id=stream.id,
            status=stream.status,
            mode=stream.request.mode,
            model=stream.request.model,
            events_url=self._events_url(stream),
            cancel_url=_cancel_url(stream),
            created_at=stream.created_at,
        )

    def _events_url(self, stream: Stream) -> str:
        token = self._access.token(stream.id) if self._access.has_keys else None
        return url_for(".events", stream_id=stream.id, token=token)


def _cancel_url(stream: Stream) -> str:
    return url_for(".cancel", stream_id=stream.id)


async def _check_offset(stream: Stream, after: int) -> None:
    await stream.log.reached(after)
    if after > stream.log.head:
        raise CursorAheadError(after, stream.log.head)


def _accepts_events(request: Request) -> bool:
    # `*/*` does not count: a client must name the type to get a body that may stay open for minutes.
    # Not `request.accept_mimetypes`: Quart would keep it, 1 KiB for as long as the stream is open.
    accept = request.headers.get("Accept", "")
    if accept == sse.MEDIA_TYPE:  # nearly always
        return True
    header = parse_accept_header(accept)
    accepted = ((value.partition(";")[0].strip().lower(), quality) for value, quality in header)
    return any(media_type == sse.MEDIA_TYPE and quality > 0 for media_type, quality in accepted)


def _last_event_id(request: Request) -> str | None:
    # A polyfill adds `lastEventId` to a URL that may already have an older `last_event_id`.
    args = request.args
    return request.headers.get("Last-Event-ID") or args.get("lastEventId") or args.get("last_event_id") or None


def _window(request: Request) -> int | None:
    text = request.args.get("window")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_WINDOW_DIGITS and int(text) > 0):
        raise InvalidRequestError("'window' is a number of records, 1 or more", "window")
    return int(text)


def _check_view(request: Request) -> None:
    # Before anything is started: a refused request must not leave a stream behind.
    if request.args.get("trace", "segments") not in _TRACES:
        raise InvalidRequestError(f"'trace' is one of {', '.join(_TRACES)}", "trace")
    if request.args.get("done", "event") != "event":
        raise InvalidRequestError("'done' can only be 'event'", "done")
    _window(request)
