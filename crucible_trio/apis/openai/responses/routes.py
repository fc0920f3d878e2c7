"""The responses API: `POST /v1/responses` and what can be done with a response afterwards.

How an end is answered. With `stream` every end is the last event. Without it, `completed` and `incomplete` are a
response with status 200, as OpenAI answers them; a failed or cancelled one is an HTTP error, as for a chat completion,
so that the SDKs raise instead of returning what may look like a short answer. Retrieving never fails for that: it shows
the response as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final, Self, final
from weakref import WeakKeyDictionary

from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from crucible_trio.dialects.responses import (
    Asked,
    open_view,
    parse_response_id,
    snapshot,
)
from crucible_trio.engine import Request
from crucible_trio.errors import IdempotencyConflictError, InvalidRequestError, StreamNotFoundError
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import StreamCancelled, StreamFailed
from crucible_trio.stream import Stream
from crucible_trio.web import intake
from crucible_trio.web.access import Access
from crucible_trio.web.body import EventStreamBody
from crucible_trio.web.openai import answers
from crucible_trio.web.openai.asks import Asks
from crucible_trio.web.openai.errors import UnsupportedParameterError, failure_response
from crucible_trio.web.openai.response_body import ENCRYPTED_REASONING, read_body
from crucible_trio.web.responses import event_response, json_response

_BOOLEANS: Final = {"true": True, "false": False}
_RETRIEVE_PARAMETERS: Final = frozenset({"stream", "starting_after", "include", "include[]", "include_obfuscation"})
# Events have few digits; and `int` refuses thousands of them with an error of its own.
_MAX_NUMBER_DIGITS: Final = 18


@final
class ResponsesApi:
    """The routes over one pipeline."""

    def __init__(self, pipeline: Pipeline, access: Access, asks: Asks) -> None:
        self._pipeline = pipeline
        self._access = access
        self._asks = asks
        # For as long as the pipeline knows the stream. A stream that was started otherwise is not in it.
        self._asked: WeakKeyDictionary[Stream, Asked] = WeakKeyDictionary()

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes, under names that no other API of this blueprint has. Quart adds HEAD to every GET."""
        add = blueprint.add_url_rule
        add("/v1/responses", endpoint="create_response", view_func=self.create, methods=["POST"])
        add("/v1/responses/<response_id>", endpoint="retrieve_response", view_func=self.retrieve, methods=["GET"])
        add("/v1/responses/<response_id>", endpoint="delete_response", view_func=self.delete, methods=["DELETE"])
        add("/v1/responses/<response_id>/cancel", endpoint="cancel_response", view_func=self.cancel, methods=["POST"])

    async def create(self) -> Response:
        """`POST /v1/responses`: start a stream, or join the one that the idempotency key has started.

        In the background it goes on whoever reads it; otherwise it is cancelled when its client leaves, or pauses if
        the client brought a key, with which it can come back.
        """
        owner = self._access.owner(request)
        intake.check_parameters(request, frozenset())
        body = await intake.read_body(request, self._pipeline.settings.max_request_bytes)
        fields, ask, asked = read_body(body, self._asks)
        stream, joined = answers.start_or_join(
            self._pipeline,
            ask,
            owner,
            on_disconnect="continue" if asked.background else None,
            starts_with_reader=fields.stream or not asked.background,
        )
        if not joined:
            self._asked[stream] = asked
        elif self._asked.get(stream) != asked:  # what the pipeline's own comparison does not see
            raise IdempotencyConflictError
        if fields.stream:
            response = await self._events(stream, None)
        elif asked.background:
            response = await self._show(stream)
        else:
            response = await self._whole(stream)
        return answers.named(response, stream, joined=joined)

    async def retrieve(self, response_id: str) -> Response:
        """`GET /v1/responses/{id}`: the response as it stands; with `stream=true` its events from any number on."""
        stream = self._own_stream(response_id)
        intake.check_parameters(request, _RETRIEVE_PARAMETERS)
        included = {*request.args.getlist("include"), *request.args.getlist("include[]")}
        if not included <= {"", ENCRYPTED_REASONING}:
            raise UnsupportedParameterError("include")
        starting_after = _number("starting_after")
        if _flag("stream"):
            return await self._events(stream, starting_after)
        if starting_after is not None:
            raise InvalidRequestError("starting_after goes with stream=true", "starting_after")
        return await self._show(stream)

    async def cancel(self, response_id: str) -> Response:
        """`POST /v1/responses/{id}/cancel`: stop it, and answer what it has become; may be repeated.

        OpenAI cancels those in the background alone; here any that runs.
        """
        stream = self._own_stream(response_id)
        stream.cancel("client")
        stream.record()  # the end is written now, however long the engine takes to let go
        return await self._show(stream)

    async def delete(self, response_id: str) -> Response:
        """`DELETE /v1/responses/{id}`: stop it and forget it."""
        self._pipeline.forget(self._own_stream(response_id))
        return json_response({"id": response_id, "object": "response", "deleted": True})

    def _own_stream(self, response_id: str) -> Stream:
        owner = self._access.owner(request)
        stream = self._pipeline.get(parse_response_id(response_id), owner=owner)
        if not self._asked_of(stream).store:
            raise StreamNotFoundError
        return stream

    def _asked_of(self, stream: Stream) -> Asked:
        return self._asked.get(stream) or _asked_natively(stream.request, background=stream.on_disconnect == "continue")

    async def _show(self, stream: Stream) -> Response:
        return json_response(await snapshot(stream.log, self._asked_of(stream)))

    async def _events(self, stream: Stream, starting_after: int | None) -> Response:
        answers.check_room(self._pipeline, stream)
        view, after = await open_view(stream.log, self._asked_of(stream), starting_after)
        if request.method == "HEAD" or stream.finished_before(after):
            return event_response(b"", stream)
        body = EventStreamBody(self._pipeline, stream, view, after)
        if self._is_not_to_be_found(stream):
            return event_response(_ForgettingBody(body, lambda: self._pipeline.forget(stream)), stream)
        return event_response(body, stream)

    async def _whole(self, stream: Stream) -> Response:
        try:
            await answers.read_to_end(stream)
        finally:
            if self._is_not_to_be_found(stream):
                self._pipeline.forget(stream)
        assert stream.terminal is not None
        if isinstance(stream.terminal, StreamFailed | StreamCancelled):
            return failure_response(stream.terminal, repeatable=not answers.has_key())
        return await self._show(stream)

    def _is_not_to_be_found(self, stream: Stream) -> bool:
        # Not with a key: a retry is to find the stream. Nobody can retrieve it all the same, and its retention ends it.
        return not self._asked_of(stream).store and not answers.has_key()


@final
class _ForgettingBody(ResponseBody):
    """The events of a response that is not stored: when its one client has left, it is forgotten."""

    def __init__(self, body: EventStreamBody, forget: Callable[[], None]) -> None:
        self._body = body
        self._forget = forget

    async def __aenter__(self) -> Self:
        await self._body.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._body.__aexit__(kind, error, trace)
        finally:
            self._forget()

    def __aiter__(self) -> EventStreamBody:
        return self._body


def _asked_natively(ask: Request, background: bool) -> Asked:
    return Asked(
        max_output_tokens=ask.max_output_tokens,
        temperature=ask.sampling.temperature,
        top_p=ask.sampling.top_p,
        background=background,
    )


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in _BOOLEANS:
        raise InvalidRequestError(f"{name} is true or false", name)
    return _BOOLEANS[value]


def _number(name: str) -> int | None:
    value = request.args.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > _MAX_NUMBER_DIGITS:
        raise InvalidRequestError(f"{name} is the sequence_number of an event", name)
    return int(value)
