"""The body of a request to an upstream server, and the capabilities that it can carry. No trio: nothing here waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, TypeAlias, final

from crucible_trio.engine import Capabilities
from crucible_trio.records import Mode
from crucible_trio.request import (
    AudioPart,
    FilePart,
    ImagePart,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Parameters,
    Part,
    Request,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

LimitField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
ReasoningField: TypeAlias = Literal["reasoning_content", "reasoning"]

UPSTREAM_CAPABILITIES: Final = Capabilities(
    tools=True,
    images=True,
    files=True,
    audio=True,
    structured_output=True,
    logprobs=True,
    sampling=frozenset(
        {
            "temperature",
            "top_p",
            "seed",
            "stop",
            "top_k",
            "min_p",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "verbosity",
        }
    ),
    unknown_fields=True,
)
"""The capabilities of the wire. The server judges whether its model has them."""


def upstream_capabilities(reasoning_field: ReasoningField | None) -> Capabilities:
    """The capabilities of an upstream engine with this field for the reasoning of earlier turns."""
    return replace(UPSTREAM_CAPABILITIES, reasoning_input=reasoning_field is not None)


@final
class RequestBody:
    """Makes the bodies of the requests to one server.

    Args:
        thinking: Per mode, fields that make the server think, or not.
        extra_body: Fields for every request's body.
        limit_field: The field for `max_output_tokens`.
        reasoning_field: The field of a message for the reasoning of an earlier turn. None: it is not sent.
    """

    def __init__(
        self,
        *,
        thinking: Mapping[Mode, Mapping[str, object]],
        extra_body: Mapping[str, object],
        limit_field: LimitField,
        reasoning_field: ReasoningField | None,
    ) -> None:
        self._thinking = thinking
        self._extra_body = extra_body
        self._limit_field = limit_field
        self._reasoning_field = reasoning_field

    def fields(self, request: Request, model: str) -> dict[str, object]:
        """The fields of a request's body.

        The request's own fields win over those for its mode. No client replaces a field that the operator sends with
        every request. If such a field is also one for the mode, the mode decides about it.
        """
        thinking = self._thinking.get(request.mode, {})
        fields: dict[str, object] = {
            **thinking,
            **{name: _merged(thinking.get(name), value) for name, value in request.extra.items()},
            **{name: getattr(request.sampling, name) for name in sorted(request.sampling.given)},
            **_parameters(request.parameters),
        }
        if request.max_output_tokens is not None:
            fields[self._limit_field] = request.max_output_tokens
        for name, value in self._extra_body.items():
            ours = _merged(value, thinking[name]) if name in thinking else value
            fields[name] = _merged(fields.get(name), ours)
        return {
            **fields,
            "model": model,
            "messages": [self._message(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def _message(self, message: Message) -> dict[str, object]:
        fields: dict[str, object] = {"role": message.role, "content": _content(message)}
        if message.reasoning is not None and self._reasoning_field is not None:
            fields[self._reasoning_field] = message.reasoning
        if message.tool_calls:
            fields["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            fields["tool_call_id"] = message.tool_call_id
        return fields


def _merged(weaker: object, stronger: object) -> object:
    """A field that two sides set, such as `chat_template_kwargs`. Two objects are joined."""
    return {**weaker, **stronger} if isinstance(weaker, Mapping) and isinstance(stronger, Mapping) else stronger


def _content(message: Message) -> object:
    if message.content is None:
        return "" if message.role == "tool" else None
    if isinstance(message.content, str) or all(isinstance(part, TextPart) for part in message.content):
        return message.text  # some servers only know texts
    return [_part(part) for part in message.content]


def _part(part: Part) -> dict[str, object]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "image_url", "image_url": {"url": part.url, **detail}}
        case FilePart():
            name = {} if part.name is None else {"filename": part.name}
            return {"type": "file", "file": {"file_data": part.url, **name}}
        case AudioPart():
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}}


def _tool_call(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _parameters(parameters: Parameters) -> dict[str, object]:
    fields: dict[str, object] = {}
    if parameters.tools:
        fields["tools"] = [_tool(tool) for tool in parameters.tools]
        if parameters.tool_choice is not None:
            fields["tool_choice"] = _tool_choice(parameters.tool_choice)
        if parameters.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = parameters.parallel_tool_calls
    if parameters.response_format is not None:
        fields["response_format"] = _response_format(parameters.response_format)
    if parameters.logprobs:
        fields["logprobs"] = True
        if parameters.top_logprobs is not None:
            fields["top_logprobs"] = parameters.top_logprobs
    if parameters.verbosity is not None:
        fields["verbosity"] = parameters.verbosity
    return fields


def _tool(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    for name in ("description", "parameters", "strict"):
        if (value := getattr(tool, name)) is not None:
            function[name] = value
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice) -> object:
    return {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice


def _response_format(wanted: ResponseFormat) -> dict[str, object]:
    kind = wanted.__struct_config__.tag
    if not isinstance(wanted, JsonSchemaFormat):
        return {"type": kind}
    schema: dict[str, object] = {"name": wanted.name, "schema": wanted.schema}
    for name in ("strict", "description"):
        if (value := getattr(wanted, name)) is not None:
            schema[name] = value
    return {"type": kind, "json_schema": schema}
