"""The route of the chat completions API.

How the end of a stream is answered. With `stream`, the status line waits for an upstream's answer, at most
`hold_seconds`. A stream that ends badly before its status line is answered as without `stream`.

| the stream | after the status line | before it |
|---|---|---|
| completed | `finish_reason`: `content_filter`, `length` if a call was cut, `tool_calls`, `stop` | 200, the same |
| incomplete: `max_output_tokens`, `log_limit` | `finish_reason: length` | 200, the same |
| incomplete: a deadline | an event with an `error` and no `[DONE]`, `code` is the reason | 400 |
| failed | the same, `code` and `message` are the engine's or the upstream's | `failure_answer` |
| cancelled | the same, `code` is `cancelled` | 503 at shutdown, otherwise 400 |

An answer has `Retry-After` if a retry may help. All other errors have a status that no client repeats. With an
idempotency key the same request finds the same end, so then a retry helps only after a shutdown, or if nothing was
written: that stream is discarded together with its key.
"""

from __future__ import annotations

from typing import ClassVar, final

from quart import Blueprint, Response, request

from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.bodies import read_body
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.parsing import check_parameters, idempotency_key
from crucible_trio.apis.kit.replies import error_response, json_response, name_ignored, name_stream
from crucible_trio.apis.openai.chat.fold import ChatDialect, chat_completion, logprobs_in
from crucible_trio.apis.openai.chat.requests import read_request
from crucible_trio.apis.openai.chat.upstream_fields import add_to_completion
from crucible_trio.apis.openai.errors import OPENAI_ERRORS, error_of, failure_answer
from crucible_trio.records import Terminal


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
        self._builder = context.request_builder()

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the route."""
        blueprint.add_url_rule("/v1/chat/completions", view_func=self.create, methods=["POST"])

    async def create(self) -> Response:
        """`POST /v1/chat/completions`: start a stream, or join the one that the idempotency key started."""
        owner = self._access.owner(request)
        check_parameters(request)
        asked = await read_body(request, self._context, lambda body: read_request(body, self._builder))
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        hold_seconds = self._context.settings.hold_seconds
        started = await starting.start_or_join(
            self._pipeline,
            asked.engine_request,
            owner=owner,
            key=key,
            may_hold=asked.stream and hold_seconds > 0,
            client_retries=hold_seconds > 0 or not asked.stream,
        )
        stream = started.stream
        end: Terminal | None
        if asked.stream:
            end = await starting.hold(started, hold_seconds)
        else:
            end = await starting.read_to_end(stream)
        if end is not None and error_of(end) is not None:
            return await self._refuse(started, end, key)
        trace_field = self._context.settings.openai_trace_field
        if asked.stream:
            dialect = ChatDialect(include_usage=asked.include_usage, trace_field=trace_field)
            response = starting.event_stream(self._context, stream, dialect)
        else:
            assert end is not None
            logprobs = logprobs_in(stream.log.read(0))
            snapshot = stream.snapshot()
            completion = chat_completion(snapshot, end, logprobs, trace_field=trace_field)
            response = name_stream(json_response(add_to_completion(completion, snapshot.upstream_fields)), stream)
        name_ignored(response, asked.ignored)
        return starting.locate_stream(response, started)

    async def _refuse(self, started: starting.StartedStream, end: Terminal, key: str | None) -> Response:
        is_discarded = await starting.discard_refused(self._pipeline, started, key)
        answer = failure_answer(end, repeatable=key is None or is_discarded)
        response = error_response(answer, OPENAI_ERRORS)
        if is_discarded:
            return response
        return starting.locate_stream(name_stream(response, started.stream), started)
