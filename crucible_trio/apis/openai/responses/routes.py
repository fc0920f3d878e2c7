"""The routes of the responses API: `POST /v1/responses`, then retrieve, list its input, cancel and delete.

How the end of a stream is answered. With `stream`, every end after the status line is the last event. Without it,
`completed` and `incomplete` are a response with status 200, as OpenAI answers them. A failed or cancelled one is an
HTTP error, as for a chat completion: the SDKs raise for it, while they would return a response that may look like a
short answer. The same holds for a stream that fails in the hold, before its status line. Retrieving such a response is
not an error: it is shown with its status, unless nothing was written.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import ClassVar, Final, Self, final
from weakref import WeakValueDictionary

import msgspec
from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.bodies import read_body
from crucible_trio.apis.kit.body import EventStreamBody
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.downloads import LARGE_BYTES, Download
from crucible_trio.apis.kit.errors import ErrorShape, UnsupportedParameterError
from crucible_trio.apis.kit.parsing import check_parameters, idempotency_key
from crucible_trio.apis.kit.replies import error_response, event_response, json_response, name_ignored, name_stream
from crucible_trio.apis.kit.sealed import Seal, Seals
from crucible_trio.apis.openai.errors import (
    OPENAI_ERRORS,
    ItemNotFoundError,
    PreviousResponseNotFoundError,
    failure_answer,
)
from crucible_trio.apis.openai.responses.earlier import find_earlier, without_instructions
from crucible_trio.apis.openai.responses.input_items import items_of, page_of, read_page_options
from crucible_trio.apis.openai.responses.objects import EchoedFields, parse_response_id
from crucible_trio.apis.openai.responses.replay import open_dialect, response_object
from crucible_trio.apis.openai.responses.requests import (
    ENCRYPTED_REASONING,
    INCLUDE,
    DecodedBody,
    decode_body,
    read_event_number,
    read_flag,
    read_request,
)
from crucible_trio.errors import InvalidRequestError, StreamNotFoundError
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import StreamCancelled, StreamFailed, Terminal
from crucible_trio.stream import Stream

logger = logging.getLogger(__name__)

# How many types of hosted tools are logged. Clients choose the names.
_MAX_HOSTED: Final = 50

_RETRIEVE_PARAMETERS: Final = frozenset({"stream", "starting_after", "include", "include[]", "include_obfuscation"})
_PAGE_PARAMETERS: Final = frozenset({"after", "limit", "order"})
_LIST_PARAMETERS: Final = _PAGE_PARAMETERS | {"include", "include[]"}


@final
class ResponsesApi:
    """The responses API over one pipeline (`Api`)."""

    name: ClassVar[str] = "openai_responses"
    error_shape: ClassVar[ErrorShape | None] = OPENAI_ERRORS
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/responses",)
    open_endpoints: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access
        self._seals = Seals(context.settings.token_secret)
        self._hosted: set[str] = set()
        self._echoed: WeakValueDictionary[str, EchoedFields] = WeakValueDictionary()
        self._builder = context.request_builder()

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        add = blueprint.add_url_rule
        add("/v1/responses", view_func=self.create, methods=["POST"])
        add("/v1/responses/<response_id>", view_func=self.retrieve, methods=["GET"])
        add("/v1/responses/<response_id>", view_func=self.delete, methods=["DELETE"])
        add("/v1/responses/<response_id>/input_items", view_func=self.input_items, methods=["GET"])
        add("/v1/responses/<response_id>/cancel", view_func=self.cancel, methods=["POST"])

    async def create(self) -> Response:
        """`POST /v1/responses`: start a stream, or join the one that the idempotency key started.

        In the background it continues with or without readers. Otherwise it is cancelled when its client leaves. It
        pauses instead if the client sent a key, with which it can come back.
        """
        owner = self._access.owner(request)
        check_parameters(request)
        body = await read_body(request, self._context, self._decode)
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        fields = body.fields
        started = await self._start(body, owner, key)
        # With a key the stream is kept, so that a retry finds it. It still cannot be retrieved, and retention ends it.
        forget = not fields.store and key is None
        whole = not (fields.stream or fields.background)
        end = await self._wait(started, whole=whole, background=fields.background, forget=forget)
        if isinstance(end, StreamFailed | StreamCancelled):
            return await self._refuse(started, end, key, forget=forget)
        if fields.stream:
            response = await self._events(started.stream, None, forget=forget)
        else:
            response = await self._show(started.stream)
        name_ignored(response, body.ignored.names)
        return starting.locate_stream(name_stream(response, started.stream), started)

    async def _start(self, body: DecodedBody, owner: str, key: str | None) -> starting.StartedStream:
        """Start the stream of a request, or join the one that its idempotency key started."""
        fields = body.fields
        try:
            earlier = await find_earlier(fields.previous_response_id, body.items, self)
        except (PreviousResponseNotFoundError, ItemNotFoundError):
            # They were there when the first request with this key came.
            joined = None
            if key is not None:
                joined = await starting.join(self._pipeline, key, owner=owner, identity=body.identity)
            if joined is None:
                raise
            return joined
        asked = read_request(body, earlier, self._builder, self._seals.of(owner))
        self._pipeline.metrics.unverified_traces += asked.unverified
        self._log_hosted(asked.hosted)
        may_hold = fields.stream and not fields.background and self._context.settings.hold_seconds > 0
        return await starting.start_or_join(
            self._pipeline,
            asked.engine_request,
            owner=owner,
            key=key,
            on_disconnect="continue" if fields.background else None,
            starts_with_reader=fields.stream or not fields.background,
            may_hold=may_hold,
            client_retries=may_hold or not (fields.stream or fields.background),
            facts={self.name: msgspec.Raw(msgspec.json.encode(asked.echoed))},
            identity=body.identity,
            keeps_input=fields.store,
        )

    async def retrieve(self, response_id: str) -> Response:
        """`GET /v1/responses/{id}`: the response so far. With `stream=true` its events, from any number on."""
        stream, _ = await self.find(response_id)
        check_parameters(request, _RETRIEVE_PARAMETERS)
        included = {*request.args.getlist("include"), *request.args.getlist("include[]")}
        if not included <= INCLUDE | {""}:
            raise UnsupportedParameterError("include")
        starting_after = read_event_number("starting_after", request.args.get("starting_after"))
        if read_flag("stream", request.args.get("stream", "false")):
            return await self._events(stream, starting_after, forget=False)  # every replay is the same bytes
        if starting_after is not None:
            raise InvalidRequestError("starting_after goes with stream=true", "starting_after")
        return await self._show(stream, sealed=ENCRYPTED_REASONING in included)

    async def cancel(self, response_id: str) -> Response:
        """`POST /v1/responses/{id}/cancel`: stop the response and show it. May be repeated.

        OpenAI cancels only responses in the background. This server cancels any that runs.
        """
        stream, _ = await self.find(response_id)
        stream.cancel("client")
        await stream.log.wait_finished()  # the end is recorded in the next pass, even if the engine takes long to stop
        return await self._show(stream)

    async def delete(self, response_id: str) -> Response:
        """`DELETE /v1/responses/{id}`: stop the response and forget it."""
        stream, _ = await self.find(response_id)
        await self._pipeline.forget(stream)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    def _decode(self, body: memoryview) -> DecodedBody:
        return decode_body(body, strict_fields=self._context.settings.strict_fields)

    def _log_hosted(self, types: Sequence[str]) -> None:
        """Log each type of hosted tool once, because some agents offer the same ones in every request."""
        for kind in types:
            if kind not in self._hosted and len(self._hosted) < _MAX_HOSTED:
                self._hosted.add(kind)
                logger.info("the hosted tool %.64a does not exist here and is not offered to models", kind)

    async def input_items(self, response_id: str) -> Response:
        """`GET /v1/responses/{id}/input_items`: the conversation that the model got, without the instructions."""
        stream, echoed = await self.find(response_id)
        check_parameters(request, _LIST_PARAMETERS)
        options = read_page_options({name: request.args[name] for name in _PAGE_PARAMETERS & request.args.keys()})
        if not stream.facts.keeps_input:
            raise StreamNotFoundError
        suffix = response_id.removeprefix("resp_")
        items = items_of(without_instructions(stream, echoed), suffix, echoed.origins)
        return json_response(page_of(items, options))

    async def find(self, response_id: str) -> tuple[Stream, EchoedFields]:
        """Find a stored response of the client whose request is being answered (`StoredResponses`)."""
        owner = self._access.owner(request)
        stream = await self._pipeline.find(parse_response_id(response_id), owner=owner)
        echoed = self._echoed_of(stream)
        if not echoed.store:
            raise StreamNotFoundError
        return stream, echoed

    async def _show(self, stream: Stream, *, sealed: bool = False) -> Response:
        echoed = self._echoed_of(stream)
        seal = self._seal_of(stream, echoed, sealed=sealed)
        return json_response(await response_object(stream.log, echoed, seal))

    def _seal_of(self, stream: Stream, echoed: EchoedFields, *, sealed: bool = False) -> Seal | None:
        return self._seals.of(stream.owner) if sealed or echoed.has_sealed_traces else None

    async def _events(self, stream: Stream, starting_after: int | None, *, forget: bool) -> Response:
        starting.check_room(stream)
        echoed = self._echoed_of(stream)
        seal = self._seal_of(stream, echoed)
        download = self._reserve_for(stream) if request.method == "GET" else None
        dialect = await open_dialect(stream.log, echoed, starting_after, seal)
        if request.method == "HEAD" or stream.finished_before(dialect.resume_offset):
            return event_response(b"", stream)
        if forget:
            body = EventStreamBody(self._context, stream, dialect)
            return event_response(_ForgettingBody(body, self._pipeline, stream), stream)
        return starting.event_stream(self._context, stream, dialect, download=download)

    def _reserve_for(self, stream: Stream) -> Download | None:
        """Reserve bytes for the first two events, which both have the fields of the request.

        Raises:
            OverloadedError: All answers together would pass the limit.
        """
        stored = stream.facts.for_apis.get(ResponsesApi.name)
        size = 0 if stored is None else 2 * memoryview(stored).nbytes
        return self._context.downloads.reserve(size) if size > LARGE_BYTES else None

    def _echoed_of(self, stream: Stream) -> EchoedFields:
        """The fields that a response repeats. All readers of a stream share them, because they may be large."""
        echoed = self._echoed.get(stream.id)
        if echoed is None:
            echoed = self._echoed[stream.id] = _echoed_of(stream)
        return echoed

    async def _wait(
        self, started: starting.StartedStream, *, whole: bool, background: bool, forget: bool
    ) -> Terminal | None:
        """Wait before the status line: for the end, or with `stream` in the hold. Returns the end if it came."""
        must_forget = forget
        end: Terminal | None = None
        try:
            if whole:
                end = await starting.read_to_end(started.stream)
            elif not background:
                end = await starting.hold(started, self._context.settings.hold_seconds)
            must_forget = forget and whole
        finally:
            if must_forget:
                await starting.forget(self._pipeline, started.stream)
        return end

    async def _refuse(
        self, started: starting.StartedStream, end: StreamFailed | StreamCancelled, key: str | None, *, forget: bool
    ) -> Response:
        is_discarded = await starting.discard_refused(self._pipeline, started, key)
        if forget:
            await starting.forget(self._pipeline, started.stream)
        response = error_response(failure_answer(end, repeatable=key is None or is_discarded), OPENAI_ERRORS)
        if is_discarded:
            return response
        return starting.locate_stream(name_stream(response, started.stream), started)


def _echoed_of(stream: Stream) -> EchoedFields:
    """The fields that a response repeats. They come from the request if another API started the stream."""
    stored = stream.facts.for_apis.get(ResponsesApi.name)
    asked, parameters = stream.request, stream.request.parameters
    if stored is not None:
        return msgspec.json.decode(stored, type=EchoedFields).completed_from(parameters)
    return EchoedFields(
        max_output_tokens=asked.max_output_tokens,
        temperature=asked.sampling.temperature,
        top_p=asked.sampling.top_p,
        presence_penalty=asked.sampling.presence_penalty,
        frequency_penalty=asked.sampling.frequency_penalty,
        top_logprobs=parameters.top_logprobs or 0,
        parallel_tool_calls=parameters.parallel_tool_calls is not False,
        background=stream.on_disconnect == "continue",
        text={} if parameters.verbosity is None else {"verbosity": parameters.verbosity},
    ).completed_from(parameters)


@final
class _ForgettingBody(ResponseBody):
    """The events of a response that is not stored: the stream is forgotten when its one client has left."""

    def __init__(self, body: EventStreamBody, pipeline: Pipeline, stream: Stream) -> None:
        self._body = body
        self._pipeline = pipeline
        self._stream = stream

    async def __aenter__(self) -> Self:
        await self._body.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._body.__aexit__(kind, error, trace)
        finally:
            await starting.forget(self._pipeline, self._stream)

    def __aiter__(self) -> EventStreamBody:
        return self._body
