"""The routes of the Messages API.

`POST /v1/messages` starts a stream. Every event of its answer has an id, `msg_X.n`, where n counts the events of this
API from 0. `POST /v1/messages` or `GET /v1/messages/msg_X/events` with such a `Last-Event-ID` sends the events after
it, byte by byte the same.

How the end of a stream is answered. With `stream`, the status line waits for an upstream's answer, at most
`hold_seconds`. A stream that ends badly before its status line is answered as without `stream`.

| the stream | after the status line | before it |
|---|---|---|
| completed | `message_delta` with a `stop_reason`, `message_stop` | 200, the same `stop_reason` |
| incomplete: `max_output_tokens`, `log_limit` | the same, `max_tokens` | 200, `max_tokens` |
| incomplete: a deadline | `error` of type `timeout_error` | 504 |
| failed | `error`, `overloaded_error` if a repeat may succeed | `failure_answer` |
| cancelled | `error`, `overloaded_error` at shutdown, otherwise `api_error` | 529 at shutdown, otherwise 500 |
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar, Final, final

import msgspec
from quart import Blueprint, Response, request

from crucible_trio.apis.anthropic.errors import ANTHROPIC_ERRORS, CannotCountError, failure_answer
from crucible_trio.apis.anthropic.events import format_message_id, parse_message_event_id, parse_message_id
from crucible_trio.apis.anthropic.fold import MessageFold, whole_message
from crucible_trio.apis.anthropic.models import AnthropicModels
from crucible_trio.apis.anthropic.requests import NAMES, MessageFacts, MessagesRequest, read_request
from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.bodies import read_body
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorShape
from crucible_trio.apis.kit.models import ModelsForm
from crucible_trio.apis.kit.parsing import check_parameters, idempotency_key
from crucible_trio.apis.kit.replay import open_after
from crucible_trio.apis.kit.replies import (
    error_response,
    event_response,
    json_response,
    name_ignored,
    name_stream,
    no_content,
)
from crucible_trio.apis.kit.sealed import Seals
from crucible_trio.errors import InvalidLastEventIdError
from crucible_trio.records import Terminal
from crucible_trio.stream import Stream

logger = logging.getLogger(__name__)

# How many types of hosted tools are logged. Clients choose the names.
_MAX_HOSTED: Final = 50

_PARAMETERS: Final = frozenset({"beta"})  # the SDKs add `?beta=true`


@final
class MessagesApi:
    """The Messages API over one pipeline (`Api`)."""

    name: ClassVar[str] = "anthropic_messages"
    error_shape: ClassVar[ErrorShape | None] = ANTHROPIC_ERRORS
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/messages",)
    open_endpoints: ClassVar[frozenset[str]] = frozenset()
    models_form: ClassVar[ModelsForm] = AnthropicModels()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access
        self._seals = Seals(context.settings.token_secret)
        self._hosted: set[str] = set()
        self._builder = context.request_builder(NAMES)

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        add = blueprint.add_url_rule
        add("/v1/messages", view_func=self.create, methods=["POST"])
        add("/v1/messages/count_tokens", view_func=self.count_tokens, methods=["POST"])
        add("/v1/messages/<message_id>/events", view_func=self.events, methods=["GET"])

    async def create(self) -> Response:
        """`POST /v1/messages`: start a stream, or join the one that the idempotency key started.

        With `Last-Event-ID` the body is ignored, that stream is resumed, and nothing is started.
        """
        owner = self._access.owner(request)
        check_parameters(request, _PARAMETERS)
        if last_event_id := request.headers.get("Last-Event-ID"):
            stream_id, after = parse_message_event_id(last_event_id)
            return await self._events(await self._pipeline.find(stream_id, owner=owner), after)
        seal = self._seals.of(owner)
        asked = await read_body(request, self._context, lambda body: read_request(body, self._builder, seal))
        self._pipeline.metrics.unverified_traces += asked.unverified
        self._log_hosted(asked.hosted)
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        hold_seconds = self._context.settings.hold_seconds
        started = await starting.start_or_join(
            self._pipeline,
            asked.engine_request,
            owner=owner,
            key=key,
            on_disconnect=self._context.settings.messages_on_disconnect if asked.stream else None,
            may_hold=asked.stream and hold_seconds > 0,
            client_retries=hold_seconds > 0 or not asked.stream,
            facts={self.name: msgspec.Raw(msgspec.json.encode(asked.facts))},
        )
        end: Terminal | None
        if asked.stream:
            end = await starting.hold(started, hold_seconds)
        else:
            end = await starting.read_to_end(started.stream)
        if end is not None and failure_answer(end, repeatable=False) is not None:
            return await self._refuse(started, end, key)
        response = await self._answer(started.stream, asked)
        return starting.locate_stream(response, started)

    async def events(self, message_id: str) -> Response:
        """`GET /v1/messages/{id}/events`: the events of a message, after the one that the client names."""
        owner = self._access.owner(request)
        stream_id = parse_message_id(message_id)
        stream = await self._pipeline.find(stream_id, owner=owner)
        check_parameters(request)
        after: int | None = None
        if last_event_id := request.headers.get("Last-Event-ID"):
            named, after = parse_message_event_id(last_event_id)
            if named != stream_id:
                raise InvalidLastEventIdError
        return await self._events(stream, after, ends_with_204=True)

    async def count_tokens(self) -> Response:
        """`POST /v1/messages/count_tokens`: refused. The body is not read."""
        self._access.owner(request)
        raise CannotCountError

    async def _answer(self, stream: Stream, asked: MessagesRequest) -> Response:
        if asked.stream:
            response = await self._events(stream, None)
        else:
            response = _named(json_response(whole_message(stream.log.read(0), self._fold(stream))), stream)
        betas = ["anthropic-beta"] if "anthropic-beta" in request.headers else []
        name_ignored(response, [*asked.ignored, *betas])
        return response

    async def _events(self, stream: Stream, after: int | None, *, ends_with_204: bool = False) -> Response:
        dialect = await open_after(stream.log, self._fold(stream), after)
        if stream.finished_before(dialect.resume_offset):
            if ends_with_204:
                return no_content()  # the only answer after which an EventSource stops reconnecting
            assert after is not None
            # The SDKs raise on 204, so the client gets the last event once more.
            dialect = await open_after(stream.log, self._fold(stream), after - 1)
        if request.method == "HEAD":
            return _named(event_response(b"", stream), stream)
        return _named(starting.event_stream(self._context, stream, dialect), stream)

    def _fold(self, stream: Stream) -> MessageFold:
        stored = stream.facts.for_apis.get(self.name)
        facts = MessageFacts() if stored is None else msgspec.json.decode(stored, type=MessageFacts)
        return MessageFold(facts.view, self._seals.of(stream.owner))

    async def _refuse(self, started: starting.StartedStream, end: Terminal, key: str | None) -> Response:
        is_discarded = await starting.discard_refused(self._pipeline, started, key)
        answer = failure_answer(end, repeatable=key is None or is_discarded)
        assert isinstance(answer, ErrorAnswer)
        response = error_response(answer, ANTHROPIC_ERRORS)
        if is_discarded:
            return response
        return starting.locate_stream(_named(name_stream(response, started.stream), started.stream), started)

    def _log_hosted(self, types: Sequence[str]) -> None:
        """Log each type of hosted tool once, because some agents offer the same ones in every request."""
        for kind in types:
            if kind not in self._hosted and len(self._hosted) < _MAX_HOSTED:
                self._hosted.add(kind)
                logger.info("the hosted tool %.64a does not exist here and is not offered to models", kind)


def _named(response: Response, stream: Stream) -> Response:
    """Add the header that the SDKs show as `request_id`: the id of the message, by which it can be resumed."""
    name_stream(response, stream)
    response.headers["request-id"] = format_message_id(stream.id)
    return response
