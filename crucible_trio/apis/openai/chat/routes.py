"""The route of the chat completions API.

How the end of a stream is answered. With `stream`, the status line is sent before the model begins, so every end is in
the events.

| the stream | with `stream` | without |
|---|---|---|
| completed | `finish_reason` of the engine: `stop`, `content_filter` | 200, the same |
| incomplete: `max_output_tokens`, `log_limit` | `finish_reason: length` | 200, the same |
| incomplete: a deadline | an event with an `error` and no `[DONE]`, `code` is the reason | 504 |
| failed | the same, `code` and `message` are the engine's | 503 if retryable, 400 for `CLIENTS_FAULT`, else 500 |
| cancelled | the same, `code` is `cancelled` | 503 at shutdown, otherwise 499 |

An answer has `Retry-After` if a retry may help. All other errors tell the SDKs not to retry. With an idempotency key
the same request finds the same end, so then a retry helps only after a shutdown.
"""

from __future__ import annotations

from typing import ClassVar, final

from quart import Blueprint, Response, request

from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.parsing import check_parameters, idempotency_key, read_body
from crucible_trio.apis.kit.replies import error_response, json_response, name_ignored, name_stream
from crucible_trio.apis.openai.chat.fold import ChatDialect, chat_completion, logprobs_in
from crucible_trio.apis.openai.chat.requests import read_request
from crucible_trio.apis.openai.errors import OPENAI_ERRORS, error_of, failure_answer
from crucible_trio.apis.openai.request_builder import RequestBuilder
from crucible_trio.stream import Stream


@final
class ChatApi:
    """The chat completions API over one pipeline (`Api`)."""

    name: ClassVar[str] = "openai_chat"
    error_shape: ClassVar[ErrorShape | None] = OPENAI_ERRORS
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/chat",)
    open_endpoints: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access
        self._builder = RequestBuilder(
            context.pipeline.engine, context.settings, context.pipeline.settings.max_output_tokens
        )

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the route."""
        blueprint.add_url_rule("/v1/chat/completions", view_func=self.create, methods=["POST"])

    async def create(self) -> Response:
        """`POST /v1/chat/completions`: start a stream, or join the one that the idempotency key started."""
        owner = self._access.owner(request)
        check_parameters(request)
        body = await read_body(request, self._context.settings.max_request_bytes)
        asked = read_request(body, self._builder)
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        started = await starting.start_or_join(self._pipeline, asked.engine_request, owner=owner, key=key)
        if asked.stream:
            dialect = ChatDialect(include_usage=asked.include_usage)
            response = starting.event_stream(self._context, started.stream, dialect)
        else:
            response = name_stream(await self._whole(started.stream, has_key=key is not None), started.stream)
        name_ignored(response, asked.ignored)
        return starting.locate_stream(response, started)

    async def _whole(self, stream: Stream, *, has_key: bool) -> Response:
        await starting.read_to_end(stream)
        assert stream.terminal is not None
        if error_of(stream.terminal) is not None:
            return error_response(failure_answer(stream.terminal, repeatable=not has_key), OPENAI_ERRORS)
        logprobs = logprobs_in(stream.log.read(0))
        return json_response(chat_completion(stream.snapshot(), stream.terminal, logprobs))
