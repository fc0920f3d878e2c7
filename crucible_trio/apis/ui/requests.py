"""The body of `POST /v1/ui/chat`, as `useChat` sends it, and the options that a page adds to it.

The options have the names that they have in the AI SDK's `streamText`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, final

import msgspec

from crucible_trio.apis.kit.fields import Fields
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.ui.continued import Continued, continue_message
from crucible_trio.apis.ui.messages import read_messages
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, NamedTool, OnDisconnect, Parameters, Request, Tool, ToolChoice, ToolName
from crucible_trio.settings.apis import Effort

NAMES: Final[Mapping[str, str]] = {
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
    "stop": "stopSequences",
    "tool_choice": "toolChoice",
    "top_k": "topK",
    "top_p": "topP",
}
"""The names of a request's fields that differ from those of chat completions."""

_START_INDEX: Final = re.compile(r"-?[0-9]{1,9}")
_PROVIDER_DEFAULT: Final = "provider-default"

ChatId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


@final
class UIRequestBody(msgspec.Struct, rename="camel"):
    """The fields that are understood.

    Attributes:
        id: The chat. None: no page can come back to the stream by its chat.
    """

    messages: Annotated[list[object], msgspec.Meta(min_length=1)]
    id: ChatId | None = None
    model: str | None = None
    system: str | None = None
    reasoning: Effort | Literal["provider-default"] | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop_sequences: list[str] | None = None
    tools: dict[ToolName, dict[str, object]] = {}
    tool_choice: str | dict[str, object] | None = None
    on_disconnect: OnDisconnect | None = None


BODY: Final = Fields(
    UIRequestBody,
    harmless={
        "messageId": "the message that is answered or replaced. The page has changed `messages` already",
        "trigger": "why the page asks. `messages` says what for",
    },
)
"""The fields of a request's body. Others are the application's, and are ignored."""


@final
class _UITool(msgspec.Struct, rename="camel"):
    description: str | None = None
    input_schema: dict[str, object] | None = None
    strict: bool | None = None


@final
class _NamedToolChoice(msgspec.Struct, rename="camel"):
    type: Literal["tool"]
    tool_name: ToolName


_TOOL: Final = Fields(_UITool)
_TOOL_CHOICE: Final = Fields(_NamedToolChoice)


class UIRequest(NamedTuple):
    """A request that has been read.

    Attributes:
        engine_request: What to generate.
        ignored: Fields that are ignored.
        chat_id: The chat. None if the request names none.
        continued: The message that the answer belongs to. None: a new one.
    """

    engine_request: Request
    ignored: tuple[str, ...]
    chat_id: str | None
    continued: Continued | None


def read_request(body: bytes | memoryview, builder: RequestBuilder, *, strict: bool) -> UIRequest:
    """Read a request.

    Args:
        body: The body as received.
        builder: Makes the engine's request.
        strict: Refuse unknown fields.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: A value is invalid.
    """
    unknown: dict[str, object] = {}
    fields = BODY.decode(body, unknown=None if strict else unknown)
    ignored = Ignored()
    ignored.add_all(unknown, "")
    history = read_messages(fields.messages, "messages", builder.capabilities(fields.model))
    instructions = [Message("system", fields.system)] if fields.system else []
    built = builder.build(
        [*instructions, *history.messages],
        model=fields.model,
        effort=None if fields.reasoning == _PROVIDER_DEFAULT else fields.reasoning,
        limit=fields.max_output_tokens,
        sampling={
            "temperature": fields.temperature,
            "top_p": fields.top_p,
            "top_k": fields.top_k,
            "seed": fields.seed,
            "stop": fields.stop_sequences or None,
            "frequency_penalty": fields.frequency_penalty,
            "presence_penalty": fields.presence_penalty,
        },
        parameters=Parameters(
            tools=tuple(_read_tool(name, tool) for name, tool in fields.tools.items()),
            tool_choice=None if fields.tool_choice is None else _read_tool_choice(fields.tool_choice),
        ),
    )
    for name in built.ignored:
        ignored.add(name)
    engine_request = msgspec.structs.replace(built.request, on_disconnect=fields.on_disconnect)
    last = history.continued
    continued = None if last is None else continue_message(last, f"messages[{len(fields.messages) - 1}].parts")
    return UIRequest(engine_request, ignored.names, fields.id, continued)


def _read_tool(name: str, given: Mapping[str, object]) -> Tool:
    tool = _TOOL.read(given, f"tools.{name}", unknown={})
    return Tool(name, tool.description, tool.input_schema, tool.strict)


def _read_tool_choice(choice: str | Mapping[str, object]) -> ToolChoice:
    match choice:
        case "auto" | "none" | "required":
            return choice
        case str():
            message = 'toolChoice is auto, none, required or {"type": "tool", "toolName": ...}'
            raise InvalidRequestError(message, "toolChoice")
    return NamedTool(_TOOL_CHOICE.read(choice, "toolChoice").tool_name)


def read_start_index(text: str | None) -> int | None:
    """Read the parameter `startIndex`: how many chunks a client has, or, below 0, how many of the last ones it wants.

    Raises:
        InvalidRequestError: It is no such number.
    """
    if text is None:
        return None
    if not _START_INDEX.fullmatch(text):
        raise InvalidRequestError("startIndex is an integer", "startIndex")
    return int(text)
