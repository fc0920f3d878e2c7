"""The objects of the responses API: the response, what is in it, and its id.

All fields that OpenAI's own SDK requires are there, and what this server does not have (tools, conversations) has the
value that says so. Two fields hold words that OpenAI does not list, because the truth is not among those it lists:
`incomplete_details.reason` (the log's own reasons, and `cancelled`) and `error.code` (the engine's own codes). No SDK
checks them, and one that finds no reason at all in an incomplete response takes it for a whole one.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias, final

import msgspec

from crucible_trio.errors import StreamNotFoundError
from crucible_trio.records import Usage

ResponseStatus: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]

_STREAM_PREFIX = "str_"
_RESPONSE_ID = re.compile(r"resp_(?P<random>[A-Za-z0-9_-]{22})")


def format_response_id(stream_id: str) -> str:
    """The id of a stream in this API: the same random part under OpenAI's prefix."""
    return f"resp_{stream_id.removeprefix(_STREAM_PREFIX)}"


def parse_response_id(text: str) -> str:
    """The id of the stream that a response's id names.

    Raises:
        StreamNotFoundError: No server of this kind can have given it out.
    """
    found = _RESPONSE_ID.fullmatch(text)
    if found is None:
        raise StreamNotFoundError
    return _STREAM_PREFIX + found["random"]


@final
class ReasoningAsked(msgspec.Struct, frozen=True, kw_only=True):
    """What the request said about reasoning; in a response it is only said again."""

    effort: str | None = None
    summary: str | None = None


@final
class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a response says again of its request, and no log holds. It is the same for as long as the stream exists.

    Attributes:
        background: Whether it goes on without readers.
        store: Whether it can be found when it has ended.
    """

    instructions: str | None = None
    metadata: dict[str, str] = {}
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning: ReasoningAsked = ReasoningAsked()
    background: bool = False
    store: bool = True


@final
class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """One segment of the trace."""

    text: str


@final
class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: tuple[str, ...] = ()
    logprobs: tuple[str, ...] = ()


@final
class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """A trace, from where it begins to where it stops or pauses."""

    id: str
    status: ItemStatus
    summary: list[SummaryText]


@final
class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A piece of the answer that no reasoning interrupts; nearly always the whole answer."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


OutputItem: TypeAlias = ReasoningItem | MessageItem


@final
class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed, in the engine's own words."""

    code: str
    message: str


@final
class IncompleteDetails(msgspec.Struct, frozen=True):
    """What ended a response before its end."""

    reason: str


@final
class _InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


@final
class _OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


@final
class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them. Reasoning is part of the output."""

    input_tokens: int
    input_tokens_details: _InputDetails
    output_tokens: int
    output_tokens_details: _OutputDetails
    total_tokens: int


@final
class _TextFormat(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    pass


@final
class _TextConfig(msgspec.Struct, frozen=True):
    format: _TextFormat = _TextFormat()


@final
class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The response object, as it stands at one position of its log."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    background: bool
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    reasoning: ReasoningAsked
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float | None
    text: _TextConfig = _TextConfig()
    tool_choice: Literal["auto"] = "auto"
    tools: tuple[str, ...] = ()
    top_logprobs: int = 0
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None


def usage_of(usage: Usage) -> ResponseUsage | None:
    """Usage in this API's shape; None as a whole where the engine did not count input or output.

    The SDKs' types have no "unknown" for one number: reasoning that was not counted apart is 0.
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    return ResponseUsage(
        usage.input_tokens,
        _InputDetails(),
        usage.output_tokens,
        _OutputDetails(usage.reasoning_tokens or 0),
        usage.input_tokens + usage.output_tokens,
    )
