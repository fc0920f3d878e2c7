"""The events of the responses API that this server sends, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, final

import msgspec

from crucible_trio.apis.openai.errors import OpenAIErrorBody
from crucible_trio.apis.openai.responses.objects import ContentPart, OutputItem, ResponseObject, SummaryText
from crucible_trio.records import encode_json


class ResponsesEvent(msgspec.Struct, tag_field="type", kw_only=True):
    """One event. `sequence_number` counts from 0 without gaps. The fold sets it."""

    sequence_number: int = 0


class _ResponseStateEvent(ResponsesEvent, kw_only=True):
    response: ResponseObject


@final
class ResponseCreated(_ResponseStateEvent, tag="response.created", kw_only=True):
    """Always event 0."""


@final
class ResponseInProgress(_ResponseStateEvent, tag="response.in_progress", kw_only=True):
    """Always event 1."""


@final
class ResponseCompleted(_ResponseStateEvent, tag="response.completed", kw_only=True):
    """The last event: the response is complete."""


@final
class ResponseIncomplete(_ResponseStateEvent, tag="response.incomplete", kw_only=True):
    """The last event: the response was cut short or cancelled.

    The SDKs know no event for a cancelled response, so only its `status` tells.
    """


@final
class ResponseFailed(_ResponseStateEvent, tag="response.failed", kw_only=True):
    """The last event: the engine failed."""


@final
class ErrorEvent(ResponsesEvent, tag="error", kw_only=True):
    """Comes before `response.failed`, as in OpenAI's streams.

    OpenAI's SDKs raise `error`. Without this event, most clients built on them end with half a text and no error.
    """

    code: str | None
    message: str
    param: str | None
    error: OpenAIErrorBody


TerminalEvent: TypeAlias = ResponseCompleted | ResponseIncomplete | ResponseFailed


class _ItemEvent(ResponsesEvent, kw_only=True):
    output_index: int
    item: OutputItem


@final
class OutputItemAdded(_ItemEvent, tag="response.output_item.added", kw_only=True):
    """An item begins. It is empty."""


@final
class OutputItemDone(_ItemEvent, tag="response.output_item.done", kw_only=True):
    """An item is finished. It is whole."""


class _InItem(ResponsesEvent, kw_only=True):
    item_id: str
    output_index: int


class _InSummary(_InItem, kw_only=True):
    summary_index: int


@final
class SummaryPartAdded(_InSummary, tag="response.reasoning_summary_part.added", kw_only=True):
    """A segment begins. Its text is empty."""

    part: SummaryText


@final
class SummaryTextDelta(_InSummary, tag="response.reasoning_summary_text.delta", kw_only=True):
    """A piece of a segment."""

    delta: str


@final
class SummaryTextDone(_InSummary, tag="response.reasoning_summary_text.done", kw_only=True):
    """A segment's whole text."""

    text: str


@final
class SummaryPartDone(_InSummary, tag="response.reasoning_summary_part.done", kw_only=True):
    """A segment is finished."""

    part: SummaryText


class _InContent(_InItem, kw_only=True):
    content_index: Literal[0] = 0


@final
class ContentPartAdded(_InContent, tag="response.content_part.added", kw_only=True):
    """A message's one part begins. Its text is empty."""

    part: ContentPart


@final
class OutputTextDelta(_InContent, tag="response.output_text.delta", kw_only=True):
    """A piece of the answer."""

    delta: str
    logprobs: Sequence[object] = ()


@final
class OutputTextDone(_InContent, tag="response.output_text.done", kw_only=True):
    """A message's whole text."""

    text: str
    logprobs: Sequence[object] = ()


@final
class ContentPartDone(_InContent, tag="response.content_part.done", kw_only=True):
    """A message's one part is finished."""

    part: ContentPart


@final
class RefusalTextDelta(_InContent, tag="response.refusal.delta", kw_only=True):
    """A piece of a refusal."""

    delta: str


@final
class RefusalTextDone(_InContent, tag="response.refusal.done", kw_only=True):
    """A refusal's whole text."""

    refusal: str


@final
class FunctionCallArgumentsDelta(_InItem, tag="response.function_call_arguments.delta", kw_only=True):
    """A piece of a tool call's arguments."""

    delta: str


@final
class FunctionCallArgumentsDone(_InItem, tag="response.function_call_arguments.done", kw_only=True):
    """A tool call's whole arguments."""

    arguments: str


@final
class CustomToolCallInputDelta(_InItem, tag="response.custom_tool_call_input.delta", kw_only=True):
    """The input of a custom tool, in one piece."""

    delta: str


@final
class CustomToolCallInputDone(_InItem, tag="response.custom_tool_call_input.done", kw_only=True):
    """The whole input of a custom tool."""

    input: str


def encode_event(event: ResponsesEvent) -> bytes:
    """The bytes of an event: its type, then its JSON on one `data` line. No `id` line: the SDKs do not read it here."""
    return b"event: %b\ndata: %b\n\n" % (_type_of(event).encode(), encode_json(event))


def _type_of(event: ResponsesEvent) -> str:
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
