"""The chunks and the object of a chat completion."""

from __future__ import annotations

from typing import Any, Literal, final

import msgspec
from msgspec import UNSET, UnsetType

from crucible_trio.apis.kit.ids import with_prefix
from crucible_trio.records import Usage


@final
class CompletionTokenDetails(msgspec.Struct, frozen=True):
    """`completion_tokens_details`."""

    reasoning_tokens: int


@final
class CompletionUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of prompt and completion. The reasoning is part of the completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokenDetails | None = None


@final
class FunctionDelta(msgspec.Struct, frozen=True):
    """The new part of a called function. The name comes once, with the first part."""

    arguments: str
    name: str | UnsetType = UNSET


@final
class ToolCallChunk(msgspec.Struct, frozen=True):
    """The new part of a tool call. `id` and `type` come once, with the first part."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


@final
class TokenLogprobs(msgspec.Struct, frozen=True):
    """The log probabilities of an answer's tokens, as the engine gave them."""

    content: list[object]


@final
class ChunkDelta(msgspec.Struct, frozen=True):
    """The new content of a chunk."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    tool_calls: tuple[ToolCallChunk, ...] | UnsetType = UNSET


@final
class ChunkChoice(msgspec.Struct, frozen=True):
    """The one choice of a chunk."""

    index: int
    delta: ChunkDelta
    finish_reason: str | None = None
    logprobs: TokenLogprobs | UnsetType = UNSET


@final
class CompletionChunk(msgspec.Struct, frozen=True):
    """One event of a streamed completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[ChunkChoice | dict[str, Any], ...]
    usage: CompletionUsage | UnsetType | None = UNSET


@final
class CalledFunction(msgspec.Struct, frozen=True):
    """A called function, with its arguments as the model wrote them."""

    name: str
    arguments: str


@final
class MessageToolCall(msgspec.Struct, frozen=True):
    """A whole tool call."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


@final
class CompletionMessage(msgspec.Struct, frozen=True):
    """The message of a whole completion. `content` is null where the model only refused or called tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


@final
class CompletionChoice(msgspec.Struct, frozen=True):
    """The one choice of a whole completion."""

    index: int
    message: CompletionMessage
    finish_reason: str
    logprobs: TokenLogprobs | None = None


@final
class ChatCompletion(msgspec.Struct, frozen=True):
    """A whole completion in one object. `usage` is left out if the engine did not count."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: CompletionUsage | UnsetType = UNSET


def usage_of(usage: Usage) -> CompletionUsage | None:
    """The usage in OpenAI's form. None if the engine did not count both sides, because clients add them up."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    details = None if usage.reasoning_tokens is None else CompletionTokenDetails(usage.reasoning_tokens)
    return CompletionUsage(usage.input_tokens, usage.output_tokens, usage.input_tokens + usage.output_tokens, details)


def format_id(stream_id: str) -> str:
    """The id of a completion, from the id of its stream."""
    return with_prefix("chatcmpl-", stream_id)
