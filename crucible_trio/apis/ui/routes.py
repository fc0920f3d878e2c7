"""The routes of the UI message stream, for `useChat` with its default transport.

A chat is a label of streams (`StreamFacts.label`), so a page finds the newest stream of its chat by the chat's id. In
the paths, a stream's id can stand in place of a chat's: so a page can read a stream that another API has started.
"""

from __future__ import annotations

from types import TracebackType
from typing import ClassVar, Final, Self, final

import msgspec
import trio
from quart import Blueprint, Response, request
from quart.wrappers.response import ResponseBody

from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.bodies import read_body
from crucible_trio.apis.kit.body import EventStreamBody
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.parsing import check_parameters, idempotency_key
from crucible_trio.apis.kit.replies import event_response, name_ignored, no_content
from crucible_trio.apis.ui.continued import Continued
from crucible_trio.apis.ui.errors import UI_ERRORS
from crucible_trio.apis.ui.fold import UIDialect
from crucible_trio.apis.ui.requests import NAMES, read_request, read_start_index
from crucible_trio.errors import StreamExpiredError, StreamNotFoundError
from crucible_trio.records import encode_json
from crucible_trio.stream import Stream

# How much of a log is counted between two checkpoints.
_FOLD_BYTES: Final = 64 * 1024

_STREAM_PARAMETERS: Final = frozenset({"startIndex", "token"})
_STREAM_HEADERS: Final = {"X-Vercel-AI-UI-Message-Stream": "v1"}


@final
class UIApi:
    """The UI message stream over one pipeline (`Api`)."""

    name: ClassVar[str] = "ui"
    error_shape: ClassVar[ErrorShape | None] = UI_ERRORS
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/ui",)
    open_endpoints: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access
        self._builder = context.request_builder(NAMES)

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes. A chat's id may have slashes, which a page sends as `%2F`."""
        add = blueprint.add_url_rule
        add("/v1/ui/chat", view_func=self.create, methods=["POST"])
        add("/v1/ui/chat/<path:chat_id>/stream", view_func=self.follow, methods=["GET"])
        add("/v1/ui/chat/<path:chat_id>/stop", view_func=self.stop, methods=["POST"])

    async def create(self) -> Response:
        """`POST /v1/ui/chat`: start a stream, and stop the one that the chat still has."""
        owner = self._access.owner(request)
        check_parameters(request)
        strict = self._context.settings.strict_fields
        asked = await read_body(request, self._context, lambda body: read_request(body, self._builder, strict=strict))
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        earlier = None if asked.chat_id is None else await self._pipeline.find_labelled(asked.chat_id, owner=owner)
        started = await starting.start_or_join(
            self._pipeline,
            asked.engine_request,
            owner=owner,
            key=key,
            on_disconnect="continue",
            facts={} if asked.continued is None else {self.name: msgspec.Raw(encode_json(asked.continued))},
            label=asked.chat_id,
        )
        if earlier is not None and earlier is not started.stream:
            earlier.cancel("client")  # the engine of the new stream has not been called yet
        response = self._answer(started.stream, with_earlier=False)
        name_ignored(response, asked.ignored)
        return starting.locate_stream(response, started)

    async def follow(self, chat_id: str) -> Response:
        """`GET /v1/ui/chat/{id}/stream`: the newest stream of a chat from its start, or 204 if there is nothing new.

        With `startIndex`, the stream without as many chunks as the client has.
        """
        owner = self._access.events_owner(request, chat_id)
        check_parameters(request, _STREAM_PARAMETERS)
        start_index = read_start_index(request.args.get("startIndex"))
        stream = await self._find(chat_id, owner)
        if stream is None:
            return no_content()
        if start_index is None:
            if stream.id != chat_id and stream.log.finished and not await self._pipeline.owed_ends.is_owed(stream):
                return no_content()  # every page has been sent the end
            return self._answer(stream, with_earlier=True)
        made = await _count_chunks(stream)
        skip = start_index if start_index >= 0 else max(0, made + start_index)
        if stream.log.finished and skip >= made:
            return no_content()
        response = self._answer(stream, skip=skip, with_earlier=False)
        response.headers["X-Workflow-Stream-Tail-Index"] = str(made - 1)
        return response

    async def stop(self, chat_id: str) -> Response:
        """`POST /v1/ui/chat/{id}/stop`: stop the newest stream of a chat. May be repeated."""
        stream = await self._find(chat_id, self._access.owner(request))
        if stream is None:
            raise StreamNotFoundError
        stream.cancel("client")
        return no_content()

    async def _find(self, name: str, owner: str | None) -> Stream | None:
        """The newest stream of a chat, or the stream that has this id. `owner` is None for a stream's token."""
        if owner is not None and (stream := await self._pipeline.find_labelled(name, owner=owner)) is not None:
            return stream
        try:
            return await self._pipeline.find(name, owner=owner)
        except (StreamNotFoundError, StreamExpiredError):
            return None

    def _answer(self, stream: Stream, *, skip: int = 0, with_earlier: bool) -> Response:
        if request.method == "HEAD":
            return event_response(b"", stream)
        starting.check_room(stream)
        facts = stream.facts.for_apis.get(self.name)
        continued = None if facts is None else msgspec.json.decode(facts, type=Continued)
        dialect = UIDialect(
            message_id=None if continued is None else continued.message_id,
            tools={tool.name for tool in stream.request.parameters.tools},
            skip=skip,
            earlier=() if continued is None or not with_earlier else continued.earlier,
        )
        response = event_response(_CountedBody(self._context, stream, dialect), stream)
        response.headers.update(_STREAM_HEADERS)
        response.headers["X-Workflow-Run-Id"] = stream.id
        return response


async def _count_chunks(stream: Stream) -> int:
    """The number of chunks that a stream has so far. Checkpoints: between the parts of a long log."""
    dialect = UIDialect()
    offset = 0
    while frames := stream.log.read(offset, _FOLD_BYTES):
        dialect.feed(frames)
        offset += len(frames)
        await trio.lowlevel.checkpoint()
    return dialect.chunks_made


@final
class _CountedBody(ResponseBody):
    """The events of a chat's stream. The store counts its readers, so that an end that no page was sent is not lost."""

    def __init__(self, context: ApiContext, stream: Stream, dialect: UIDialect) -> None:
        self._body = EventStreamBody(context, stream, dialect)
        self._owed_ends = context.pipeline.owed_ends
        self._doubt_seconds = context.settings.ui_replay_seconds
        self._stream = stream

    async def __aenter__(self) -> Self:
        await self._body.__aenter__()
        try:
            await self._owed_ends.reader_came(self._stream)
        except BaseException as error:
            await self._body.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._body.__aexit__(kind, error, trace)
        finally:
            await self._owed_ends.reader_went(
                self._stream, has_end=self._body.has_sent_end, doubt_seconds=self._doubt_seconds
            )

    def __aiter__(self) -> EventStreamBody:
        return self._body
