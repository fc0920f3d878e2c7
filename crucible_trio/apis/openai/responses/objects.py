"""The objects of the responses API: the response, its parts and its id.

The response has all fields that OpenAI's SDK and Open Responses require. Where these require a number that the request
does not have, it is OpenAI's default. Two fields have values that OpenAI does not list, because none of the listed
values is true: `incomplete_details.reason` (the reasons of the log, `cancelled` and `incomplete_tool_call`) and
`error.code` (the codes of the engine). The SDKs do not check these values. But an SDK that finds no reason in an
incomplete response takes it for a complete one.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, final

import msgspec
from msgspec import UNSET, UnsetType

from crucible_trio.apis.kit.ids import stream_id_in, with_prefix
from crucible_trio.apis.openai.responses.tool_origins import ToolOrigin, echo_choice, echo_tools
from crucible_trio.records import Usage
from crucible_trio.request import JsonSchemaFormat, Parameters, ResponseFormat, TextFormat

ResponseStatus: TypeAlias = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]
Json: TypeAlias = dict[str, object]

_PREFIX: Final = "resp_"


def format_response_id(stream_id: str) -> str:
    """The id of a stream in this API."""
    return with_prefix(_PREFIX, stream_id)


def parse_response_id(text: str) -> str:
    """The id of the stream that a response's id names.

    Raises:
        StreamNotFoundError: This server never makes such an id.
    """
    return stream_id_in(_PREFIX, text)


@final
class EchoedReasoning(msgspec.Struct, frozen=True, kw_only=True):
    """The request's fields about reasoning, repeated in the response."""

    effort: str | None = None
    summary: str | None = None


@final
class EchoedFields(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, weakref=True):
    """Fields of a request that its response repeats. They are not in the log and never change.

    Attributes:
        background: Whether the response continues without readers.
        store: Whether the response can be retrieved.
        has_sealed_traces: Whether its traces are also in `encrypted_content`.
        origins: The tools that the model knows by another name or in another form, by that name.
        namespaces: The description of each namespace.
        tools: The tools. Not stored, because the engine's request has them.
        tool_choice: The tool choice. Not stored either.
        text: The form of the answer. Only its `verbosity` is stored.
    """

    instructions: str | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] = {}
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_logprobs: int = 0
    parallel_tool_calls: bool = True
    reasoning: EchoedReasoning = EchoedReasoning()
    background: bool = False
    store: bool = True
    has_sealed_traces: bool = False
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None
    origins: dict[str, ToolOrigin] = {}
    namespaces: dict[str, str] = {}
    tools: list[Json] = []
    tool_choice: str | Json = "auto"
    text: Json = msgspec.field(default_factory=lambda: {"format": {"type": "text"}})

    def completed_from(self, parameters: Parameters) -> EchoedFields:
        """With the fields that the engine's request has."""
        return msgspec.structs.replace(
            self,
            tools=echo_tools(parameters.tools, self.origins, self.namespaces),
            tool_choice=echo_choice(parameters.tool_choice, self.origins),
            text={**self.text, "format": _echo_format(parameters.response_format)},
        )


def _echo_format(wanted: ResponseFormat | None) -> Json:
    fields: Json = msgspec.to_builtins(TextFormat() if wanted is None else wanted)
    if isinstance(wanted, JsonSchemaFormat):
        return {"description": None, "strict": False} | fields
    return fields


@final
class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """One segment of the trace."""

    text: str


@final
class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: tuple[str, ...] = ()
    logprobs: tuple[object, ...] = ()


@final
class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """The text of a refusal."""

    refusal: str


ContentPart: TypeAlias = OutputText | RefusalPart


@final
class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    """A trace up to the next piece of the answer, or the end."""

    id: str
    status: ItemStatus
    summary: list[SummaryText]
    encrypted_content: str | UnsetType = UNSET


@final
class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A part of the answer without reasoning in between. Nearly always the whole answer."""

    id: str
    status: ItemStatus
    content: list[OutputText] | list[RefusalPart]
    role: Literal["assistant"] = "assistant"


@final
class FunctionCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    """A tool call. `arguments` is the JSON text that the model wrote."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str
    namespace: str | UnsetType = UNSET


@final
class CustomCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call"):
    """A call of a tool whose input is a text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    input: str
    namespace: str | UnsetType = UNSET


OutputItem: TypeAlias = ReasoningItem | MessageItem | FunctionCallItem | CustomCallItem


@final
class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed: the engine's code and message."""

    code: str
    message: str


@final
class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response is not complete."""

    reason: str


@final
class InputTokenDetails(msgspec.Struct, frozen=True):
    """`input_tokens_details`."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


@final
class OutputTokenDetails(msgspec.Struct, frozen=True):
    """`output_tokens_details`."""

    reasoning_tokens: int


@final
class ResponseUsage(msgspec.Struct, frozen=True):
    """Tokens as the engine counted them. Reasoning is part of the output."""

    input_tokens: int
    input_tokens_details: InputTokenDetails
    output_tokens: int
    output_tokens_details: OutputTokenDetails
    total_tokens: int


@final
class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """The response object at one offset of its log."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    background: bool
    error: ResponseError | None = None
    frequency_penalty: float
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: EchoedReasoning
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: Json
    tool_choice: str | Json
    tools: list[Json]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


def usage_of(usage: Usage) -> ResponseUsage | None:
    """Usage in this API's form. None if the engine did not count input or output.

    The SDKs' types cannot say that one number is unknown, so reasoning that was not counted separately is 0.
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    return ResponseUsage(
        usage.input_tokens,
        InputTokenDetails(),
        usage.output_tokens,
        OutputTokenDetails(usage.reasoning_tokens or 0),
        usage.input_tokens + usage.output_tokens,
    )
