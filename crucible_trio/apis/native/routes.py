"""The native API: docs/reference/protocol.md, route by route."""

from __future__ import annotations

from typing import Final, final

import msgspec
from quart import Blueprint, Request, Response, request, url_for
from werkzeug.http import parse_accept_header

from crucible_trio import sse
from crucible_trio.dialects import native
from crucible_trio.engine import EngineInfo, OnDisconnect, Trace
from crucible_trio.engine import Request as Ask
from crucible_trio.errors import CursorAheadError, InvalidLastEventIdError, InvalidRequestError
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import Mode, parse_event_id
from crucible_trio.snapshot import Status
from crucible_trio.stream import Stream
from crucible_trio.web.access import Access
from crucible_trio.web.body import EventStreamBody
from crucible_trio.web.intake import check_parameters, idempotency_key, read_body, valid
from crucible_trio.web.responses import event_response, json_response, name_stream, no_content

_TRACES: Final[dict[str, Trace]] = {"segments": "segments", "final": "final", "none": "none"}
_START_PARAMETERS: Final = frozenset({"trace", "done"})
_EVENTS_PARAMETERS: Final = _START_PARAMETERS | {"last_event_id", "token"}
_GENERATE_PARAMETERS: Final = _EVENTS_PARAMETERS | {"prompt", "mode", "idempotency_key"}

_ask_decoder = msgspec.json.Decoder(Ask)


class _Summary(msgspec.Struct):
    id: str
    status: Status
    mode: Mode
    model: str | None
    events_url: str
    cancel_url: str
    created_at: float


@final
class NativeApi:
    """The routes over one pipeline."""

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        self._pipeline = pipeline
        self._access = access

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes. Quart adds HEAD to every GET."""
        add = blueprint.add_url_rule
        add("/v1/streams", view_func=self.start, methods=["POST"])
        add("/v1/streams", view_func=self.list, methods=["GET"])
        add("/v1/streams/<stream_id>", view_func=self.show, methods=["GET"])
        add("/v1/streams/<stream_id>", view_func=self.delete, methods=["DELETE"])
        add("/v1/streams/<stream_id>/events", view_func=self.events, methods=["GET"])
        add("/v1/streams/<stream_id>/cancel", view_func=self.cancel, methods=["POST"])
        add("/v1/generate", view_func=self.generate, methods=["GET"])
        add("/v1/models", view_func=self.models, methods=["GET"])

    async def start(self) -> Response:
        """`POST /v1/streams`: start a stream; with `Last-Event-ID` resume one and start nothing."""
        owner = self._access.owner(request)
        check_parameters(request, _START_PARAMETERS)
        _check_view(request)
        if last_event_id := request.headers.get("Last-Event-ID"):
            stream, after = self._resume(last_event_id, owner)
            return await self._event_stream(stream, after)
        body = await read_body(request, self._pipeline.settings.max_request_bytes)
        ask = valid(lambda: _ask_decoder.decode(body))
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        if _wants_events(request):
            return await self._start_event_stream(ask, key, owner)
        stream, joined = self._pipeline.start_or_join(
            ask, key, owner=owner, on_disconnect="continue", starts_with_reader=False
        )
        response = json_response(self._summary(stream), 200 if joined else 201)
        return name_stream(response, _url(stream), joined=joined)

    async def generate(self) -> Response:
        """`GET /v1/generate`: what a bare `EventSource` can open; starts a stream, or resumes it when it reconnects."""
        owner = self._access.owner(request)
        check_parameters(request, _GENERATE_PARAMETERS)
        _check_view(request)
        if last_event_id := _last_event_id(request):
            stream, after = self._resume(last_event_id, owner)
            return await self._events_or_204(stream, after)
        if request.method == "HEAD":
            return event_response(b"")
        prompt = request.args.get("prompt")
        if prompt is None:
            raise InvalidRequestError("the parameter 'prompt' is missing", "prompt")
        fields = {"input": prompt, "mode": request.args.get("mode", "standard")}
        ask = valid(lambda: msgspec.convert(fields, Ask))
        return await self._start_event_stream(ask, idempotency_key(request.args.get("idempotency_key")), owner)

    async def events(self, stream_id: str) -> Response:
        """`GET /v1/streams/{id}/events`: follow a stream from the position the client names."""
        owner = self._access.events_owner(request, stream_id)
        stream = self._pipeline.get(stream_id, owner=owner)
        check_parameters(request, _EVENTS_PARAMETERS)
        _check_view(request)
        after = 0
        if last_event_id := _last_event_id(request):
            named, after = parse_event_id(last_event_id)
            if named != stream_id:
                raise InvalidLastEventIdError
        _check_cursor(stream, after)
        return await self._events_or_204(stream, after)

    async def list(self) -> Response:
        """`GET /v1/streams`: the caller's own streams, newest first."""
        streams = self._pipeline.streams(owner=self._access.owner(request))
        return json_response({"data": [self._summary(stream) for stream in streams]})

    async def show(self, stream_id: str) -> Response:
        """`GET /v1/streams/{id}`: the stream as it stands."""
        stream = self._own_stream(stream_id)
        snapshot = msgspec.structs.asdict(stream.snapshot())
        return json_response(snapshot | {"events_url": self._events_url(stream), "cancel_url": _cancel_url(stream)})

    async def cancel(self, stream_id: str) -> Response:
        """`POST /v1/streams/{id}/cancel`: stop it; may be repeated."""
        stream = self._own_stream(stream_id)
        stream.cancel("client")
        return json_response(self._summary(stream), 200 if stream.log.finished else 202)

    async def delete(self, stream_id: str) -> Response:
        """`DELETE /v1/streams/{id}`: stop it and forget it."""
        self._pipeline.forget(self._own_stream(stream_id))
        return no_content()

    async def models(self) -> Response:
        """`GET /v1/models`: what a request may name."""
        self._access.owner(request)
        info = self._pipeline.engine.info
        return json_response({"object": "list", "data": [model_entry(info, model) for model in info.models]})

    def _own_stream(self, stream_id: str) -> Stream:
        return self._pipeline.get(stream_id, owner=self._access.owner(request))

    def _resume(self, last_event_id: str, owner: str) -> tuple[Stream, int]:
        stream_id, after = parse_event_id(last_event_id)
        stream = self._pipeline.get(stream_id, owner=owner)
        _check_cursor(stream, after)
        return stream, after

    async def _start_event_stream(self, ask: Ask, key: str | None, owner: str) -> Response:
        # Deep reasoning costs most: it goes on while its client is away.
        on_disconnect: OnDisconnect = "continue" if ask.mode == "deep" else "pause"
        stream, joined = self._pipeline.start_or_join(
            ask, key, owner=owner, on_disconnect=on_disconnect, starts_with_reader=True
        )
        return name_stream(await self._event_stream(stream, 0), _url(stream), joined=joined)

    async def _events_or_204(self, stream: Stream, after: int) -> Response:
        if stream.finished_before(after) and "done" not in request.args:
            return no_content()  # EventSource stops reconnecting, and only then
        return await self._event_stream(stream, after)

    async def _event_stream(self, stream: Stream, after: int) -> Response:
        if stream.finished_before(after):
            after -= 1  # some clients raise on 204: they get the terminal record once more
        if request.method == "HEAD":
            return event_response(b"", stream)
        trace = _TRACES[request.args.get("trace", stream.request.trace)]
        dialect = await native.open_view(trace, stream.log, after)
        return event_response(EventStreamBody(self._pipeline, stream, dialect, after), stream)

    def _summary(self, stream: Stream) -> _Summary:
        return _Summary(
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


def model_entry(info: EngineInfo, model: str) -> dict[str, object]:
    """What is said of a model."""
    return {"id": model, "object": "model", "created": 0, "owned_by": info.name, "sampling": sorted(info.sampling)}


def _url(stream: Stream) -> str:
    return url_for(".show", stream_id=stream.id)


def _cancel_url(stream: Stream) -> str:
    return url_for(".cancel", stream_id=stream.id)


def _check_cursor(stream: Stream, after: int) -> None:
    if after > stream.log.head:
        raise CursorAheadError(after, stream.log.head)


def _wants_events(request: Request) -> bool:
    # `*/*` does not count: a client must name the type to get a body that never seems to end.
    # Not `request.accept_mimetypes`: that is kept with the request, 1 KiB for as long as the stream is open.
    header = parse_accept_header(request.headers.get("Accept"))
    accepted = ((value.partition(";")[0].strip().lower(), quality) for value, quality in header)
    return any(media_type == sse.MEDIA_TYPE and quality > 0 for media_type, quality in accepted)


def _last_event_id(request: Request) -> str | None:
    return request.headers.get("Last-Event-ID") or request.args.get("last_event_id") or None


def _check_view(request: Request) -> None:
    # Before anything is started: a refused request must not leave a stream behind.
    if request.args.get("trace", "segments") not in _TRACES:
        raise InvalidRequestError(f"'trace' is one of {', '.join(_TRACES)}", "trace")
    if request.args.get("done", "event") != "event":
        raise InvalidRequestError("'done' can only be 'event'", "done")
