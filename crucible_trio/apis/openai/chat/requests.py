"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple, final

import msgspec

from crucible_trio.apis.kit.fields import Fields
from crucible_trio.apis.openai.messages import OpenAIMessage, read_message
from crucible_trio.apis.openai.request_builder import HARMLESS, RequestBuilder
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, Request
from crucible_trio.settings.apis import Effort

TokenLimit = Annotated[int, msgspec.Meta(ge=1)]


@final
class ChatStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: accepted, but no padding is sent


@final
class ChatTemplateKwargs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`chat_template_kwargs`: how clients of vLLM and llama.cpp ask for a trace. Our upstream engine sends it too."""

    enable_thinking: bool = False


@final
class ChatRequestBody(msgspec.Struct):
    """The fields that are understood."""

    messages: Annotated[list[dict[str, object]], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: ChatStreamOptions | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: ChatTemplateKwargs = ChatTemplateKwargs()
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


BODY: Final = Fields(
    ChatRequestBody,
    harmless=HARMLESS
    | {
        "metadata": "labels for a store, which this server does not have",
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
    OpenAIMessage,
    harmless={
        "name": "separates speakers of one role. The models here only know roles",
        "reasoning": "the trace of an earlier answer, sent back. No model here reads it",
        "reasoning_content": "the trace of an earlier answer, sent back. No model here reads it",
    },
    refused={"annotations": ([],), "audio": (), "function_call": (), "refusal": ("",), "tool_calls": ([],)},
)
"""The fields of each message. They accept the message of an earlier answer, sent back unchanged."""

_TEXT_TYPES: Final = frozenset({"text"})


class ChatRequest(NamedTuple):
    """A request that has been read.

    Attributes:
        engine_request: What to generate.
        stream: Whether to answer with events.
        include_usage: Whether the events have a chunk with the usage.
    """

    engine_request: Request
    stream: bool
    include_usage: bool


def read_request(body: bytes | bytearray, builder: RequestBuilder) -> ChatRequest:
    """Read a request.

    Args:
        body: The body as received.
        builder: Makes the engine's request.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: A value is invalid.
    """
    fields = BODY.decode(body)
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError("stream_options goes with stream", "stream_options")
    limit_name, limit = _limit(fields)
    engine_request = builder.build(
        _messages(fields.messages),
        model=fields.model,
        effort=fields.reasoning_effort,
        thinking=fields.chat_template_kwargs.enable_thinking,
        limit=limit,
        limit_name=limit_name,
        sampling={
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "seed": fields.seed,
            "stop": [fields.stop] if isinstance(fields.stop, str) else fields.stop or None,
        },
    )
    include_usage = fields.stream_options is not None and fields.stream_options.include_usage
    return ChatRequest(engine_request, fields.stream, include_usage)


def _messages(given: list[dict[str, object]]) -> list[Message]:
    messages: list[Message] = []
    for index, fields in enumerate(given):
        at = f"messages[{index}]"
        asked = MESSAGE.read(fields, at)
        if (message := read_message(asked.role, asked.content, at, text_types=_TEXT_TYPES)) is not None:
            messages.append(message)
    if not messages:
        raise InvalidRequestError("there is no message", "messages")
    return messages


def _limit(fields: ChatRequestBody) -> tuple[str, int | None]:
    limits: Mapping[str, int | None] = {
        "max_completion_tokens": fields.max_completion_tokens,
        "max_tokens": fields.max_tokens,  # the older name
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if len(set(given.values())) > 1:
        raise InvalidRequestError("max_tokens and max_completion_tokens are one limit and differ", "max_tokens")
    return next(iter(given.items()), ("max_completion_tokens", None))
