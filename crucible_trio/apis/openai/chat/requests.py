"""The body of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields, missing
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.openai.chat.messages import read_messages
from crucible_trio.apis.openai.fields import HARMLESS
from crucible_trio.apis.openai.tools import read_wrapped_choice, read_wrapped_tools
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Parameters, Request, ResponseFormat
from crucible_trio.settings.apis import Effort

TokenLimit = Annotated[int, msgspec.Meta(ge=1)]


@final
class ChatStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against traffic analysis: accepted, but no padding is sent
    continuous_usage_stats: bool = False  # vLLM's: usage in every chunk. Accepted, but the usage comes once


@final
class ChatRequestBody(msgspec.Struct):
    """The fields that are understood."""

    messages: Annotated[list[dict[str, object]], msgspec.Meta(min_length=1)]
    model: str | None = None
    stream: bool = False
    stream_options: ChatStreamOptions | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, object] = {}
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    verbosity: str | None = None
    tools: list[dict[str, object]] = []
    tool_choice: str | dict[str, object] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, object] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None


BODY: Final = Fields(
    ChatRequestBody,
    harmless=HARMLESS
    | {
        "client_metadata": "labels for a store, which this server does not have",
        "metadata": "labels for a store, which this server does not have",
        "prediction": "a guess of the answer, to make it faster",
        "store": "this server has no store",
    },
    refused={
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "web_search_options": (),
    },
)
"""The fields of a request's body. Unknown fields go to the engine, if it takes them."""


# The types of response formats, and the fields of each.
_FORMATS: Final[Mapping[str, frozenset[str]]] = {
    "text": frozenset({"type"}),
    "json_object": frozenset({"type"}),
    "json_schema": frozenset({"type", "json_schema"}),
}


class ChatRequest(NamedTuple):
    """A request that has been read.

    Attributes:
        engine_request: What to generate.
        ignored: Fields that the model does not honour.
        stream: Whether to answer with events.
        include_usage: Whether the events have a chunk with the usage.
    """

    engine_request: Request
    ignored: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_request(body: bytes | memoryview, builder: RequestBuilder) -> ChatRequest:
    """Read a request.

    Args:
        body: The body as received.
        builder: Makes the engine's request.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: A value is invalid.
    """
    extra: dict[str, object] = {}
    fields = BODY.decode(body, unknown=extra)
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError("stream_options goes with stream", "stream_options")
    if fields.top_logprobs and not fields.logprobs:
        raise InvalidRequestError("top_logprobs goes with logprobs: true", "top_logprobs")
    can = builder.capabilities(fields.model)
    if fields.chat_template_kwargs.keys() - {"enable_thinking"}:
        if not can.unknown_fields:
            raise UnsupportedParameterError("chat_template_kwargs")
        extra["chat_template_kwargs"] = fields.chat_template_kwargs
    tools = read_wrapped_tools(fields.tools, "tools")
    choice = None
    if fields.tool_choice is not None:
        choice, tools = read_wrapped_choice(fields.tool_choice, tools, "tool_choice")
    built = builder.build(
        read_messages(fields.messages, "messages", can),
        model=fields.model,
        effort=fields.reasoning_effort,
        thinking=_is_true(fields.chat_template_kwargs, "enable_thinking", "chat_template_kwargs"),
        limit=_limit(fields),
        sampling={
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "top_k": fields.top_k,
            "min_p": fields.min_p,
            "seed": fields.seed,
            "stop": [fields.stop] if isinstance(fields.stop, str) else fields.stop or None,
            "frequency_penalty": fields.frequency_penalty,
            "presence_penalty": fields.presence_penalty,
            "logit_bias": fields.logit_bias,
            "verbosity": fields.verbosity,
        },
        parameters=Parameters(
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=fields.parallel_tool_calls,
            response_format=_response_format(fields.response_format, can, extra),
            logprobs=fields.logprobs,
            top_logprobs=fields.top_logprobs,
        ),
        extra=extra,
    )
    include_usage = fields.stream_options is not None and fields.stream_options.include_usage
    return ChatRequest(built.request, built.ignored, fields.stream, include_usage)


def _is_true(fields: Mapping[str, object], name: str, at: str) -> bool:
    return valid(lambda: msgspec.convert(fields.get(name) or False, bool), f"{at}.{name}")


def _response_format(
    given: Mapping[str, object] | None, can: Capabilities, extra: dict[str, object]
) -> ResponseFormat | None:
    """Read a response format. A server's own one, such as a grammar, goes to `extra`."""
    if given is None:
        return None
    fields = {name: value for name, value in given.items() if value is not None}
    kind = fields.get("type")
    if isinstance(kind, str) and fields.keys() - _FORMATS.get(kind, frozenset()) and can.unknown_fields:
        extra["response_format"] = given
        return None
    at = "response_format"
    if kind == "json_schema":
        at = f"{at}.json_schema"
        if "json_schema" not in fields:
            raise missing("json_schema", "response_format")
        schema = valid(lambda: msgspec.convert(fields["json_schema"], dict[str, object]), at)
        fields = {"schema": {}} | {name: value for name, value in schema.items() if value is not None}
        fields["type"] = "json_schema"
    wanted: ResponseFormat = valid(lambda: msgspec.convert(fields, ResponseFormat), at)
    return wanted


def _limit(fields: ChatRequestBody) -> int | None:
    """The limit of tokens. `max_tokens` is the older name."""
    given = {limit for limit in (fields.max_completion_tokens, fields.max_tokens) if limit is not None}
    if len(given) > 1:
        raise InvalidRequestError("max_tokens and max_completion_tokens are one limit and differ", "max_tokens")
    return next(iter(given), None)
