"""`POST /v1/chat/completions`.

How an end is answered. With `stream` the status line is out before the model begins, so every end is in the events.

| the stream | with `stream` | without |
|---|---|---|
| completed | `finish_reason` of the engine: `stop`, `content_filter` | 200, the same |
| incomplete: `max_output_tokens`, `log_limit` | `finish_reason: length` | 200, the same |
| incomplete: a deadline | an event with an `error` and no `[DONE]`; `code` is the reason | 504 |
| failed | the same; `code` and `message` are the engine's | 503 if it may work later, 400 if it cannot, otherwise 500 |
| cancelled | the same; `code` is `cancelled` | 503 at shutdown, otherwise 499 |

Statuses that mean "try again" have `Retry-After`; all others tell the SDKs not to. With an idempotency key the same
request finds the same end, so then only a shutdown is worth another try. 400 is for the codes that say that the request
is at fault: `CLIENTS_FAULT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, final

import msgspec
from quart import Blueprint, Response, request

from crucible_trio.config import Effort
from crucible_trio.dialects import chat
from crucible_trio.engine import Message, Request
from crucible_trio.errors import InvalidRequestError
from crucible_trio.pipeline import Pipeline
from crucible_trio.stream import Stream
from crucible_trio.web.access import Access
from crucible_trio.web.intake import check_parameters, read_body
from crucible_trio.web.openai import answers
from crucible_trio.web.openai.asks import Asks
from crucible_trio.web.openai.errors import failure_response
from crucible_trio.web.openai.fields import HARMLESS, Fields
from crucible_trio.web.openai.messages import AskedMessage, read_message
from crucible_trio.web.responses import json_response

TokenLimit = Annotated[int, msgspec.Meta(ge=1)]


class _StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False  # padding against people who measure packets; harmless, there is none


class _TemplateKwargs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enable_thinking: bool = False  # how vLLM and llama.cpp are told, and so what our own upstream engine says


class _Body(msgspec.Struct):
    messages: Annotated[list[dict[str, object]], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: _TemplateKwargs = _TemplateKwargs()
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


BODY: Final = Fields(
    _Body,
    harmless=HARMLESS
    | {
        "metadata": "labels for a store that there is not",
    },
    refused={
        "audio": (),
        "frequency_penalty": (0,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "presence_penalty": (0,),
        "response_format": ({"type": "text"},),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
)
"""The fields of a request's body."""

MESSAGE: Final = Fields(
    AskedMessage,
    harmless={
        "name": "tells speakers of one role apart; the models here know roles alone",
        "reasoning": "the trace of an earlier answer, sent back; no model wants it again",
        "reasoning_content": "the trace of an earlier answer, sent back; no model wants it again",
    },
    refused={"annotations": ([],), "audio": (), "function_call": (), "refusal": ("",), "tool_calls": ([],)},
)
"""The fields of each message, so that an answer's message can be sent back as it came."""

_TEXT_TYPES: Final = frozenset({"text"})


@final
class ChatApi:
    """The route over one pipeline."""

    def __init__(self, pipeline: Pipeline, access: Access, asks: Asks) -> None:
        self._pipeline = pipeline
        self._access = access
        self._asks = asks

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the route."""
        blueprint.add_url_rule("/v1/chat/completions", view_func=self.create, methods=["POST"])

    async def create(self) -> Response:
        """`POST /v1/chat/completions`: start a stream, or join the one that the idempotency key has started."""
        owner = self._access.owner(request)
        check_parameters(request, frozenset())
        body = BODY.decode(await read_body(request, self._pipeline.settings.max_request_bytes))
        if body.stream_options is not None and not body.stream:
            raise InvalidRequestError("stream_options goes with stream", "stream_options")
        stream, joined = answers.start_or_join(self._pipeline, self._ask(body), owner)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            response = answers.event_stream(self._pipeline, stream, chat.Chunks(include_usage=include_usage))
        else:
            response = await self._whole(stream)
        return answers.named(response, stream, joined=joined)

    def _ask(self, body: _Body) -> Request:
        limit_name, limit = _limit(body)
        return self._asks.make(
            _messages(body.messages),
            model=body.model,
            effort=body.reasoning_effort,
            thinking=body.chat_template_kwargs.enable_thinking,
            limit=limit,
            limit_name=limit_name,
            sampling={
                "temperature": body.temperature,
                "top_p": body.top_p,
                "seed": body.seed,
                "stop": [body.stop] if isinstance(body.stop, str) else body.stop or None,
            },
        )

    async def _whole(self, stream: Stream) -> Response:
        await answers.read_to_end(stream)
        assert stream.terminal is not None
        if chat.error_of(stream.terminal) is not None:
            return failure_response(stream.terminal, repeatable=not answers.has_key())
        return json_response(chat.completion(stream.snapshot(), stream.terminal))


def _messages(messages: list[dict[str, object]]) -> list[Message]:
    found: list[Message] = []
    for index, fields in enumerate(messages):
        at = f"messages[{index}]"
        message = MESSAGE.read(fields, at)
        if (ours := read_message(message.role, message.content, at, text_types=_TEXT_TYPES)) is not None:
            found.append(ours)
    if not found:
        raise InvalidRequestError("there is no message", "messages")
    return found


def _limit(body: _Body) -> tuple[str, int | None]:
    limits: Mapping[str, int | None] = {
        "max_completion_tokens": body.max_completion_tokens,
        "max_tokens": body.max_tokens,  # the older name
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(set(given.values())) > 1:
        raise InvalidRequestError("max_tokens and max_completion_tokens are one limit and differ", "max_tokens")
    return next(iter(given.items()), ("max_completion_tokens", None))
