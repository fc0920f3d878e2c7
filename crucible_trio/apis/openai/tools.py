"""Tools, tool choices and the calls of earlier turns, in OpenAI's forms.

Chat completions wrap what belongs to a function into `function`. Responses have it beside `type`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

import msgspec

from crucible_trio.apis.kit.errors import UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted, missing
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import NamedTool, NonEmpty, Tool, ToolCall, ToolChoice

_FUNCTION_FIELDS: Final = frozenset(Tool.__struct_fields__)
ALLOWED_TOOLS: Final = "allowed_tools"
"""The type of a tool choice that lists the tools that may be called. The others are then not offered to the model."""

# Hints that do not change which calls the model can make.
_HARMLESS: Final = frozenset({"type", "cache_control", "defer_loading"})


def read_tool(function: Mapping[str, object], at: str) -> Tool:
    """Read the function of a tool.

    Args:
        function: Its fields.
        at: Their place in the body, as a dotted path.

    Raises:
        UnknownParameterError: A field is unknown.
        InvalidRequestError: A value is invalid.
    """
    given = {name: value for name, value in function.items() if value is not None}
    for name in given.keys() - _FUNCTION_FIELDS - _HARMLESS:
        raise UnknownParameterError(dotted(at, name))
    return valid(lambda: msgspec.convert({name: given[name] for name in _FUNCTION_FIELDS & given.keys()}, Tool), at)


def read_wrapped_tools(tools: Sequence[Mapping[str, object]], at: str) -> tuple[Tool, ...]:
    """Read tools in the form of chat completions.

    Raises:
        UnsupportedParameterError: A tool is not a function.
        UnknownParameterError: A field is unknown.
        InvalidRequestError: A value is invalid.
    """
    read: list[Tool] = []
    for index, tool in enumerate(tools):
        place = f"{at}[{index}]"
        for name in tool.keys() - {"function"} - _HARMLESS:
            if tool[name] is not None:
                raise UnknownParameterError(dotted(place, name))
        read.append(read_tool(_function_in(tool, place), dotted(place, "function")))
    return tuple(read)


def read_tool_choice(choice: str | Mapping[str, object], at: str, *, wrapped: bool = False) -> ToolChoice:
    """Read a tool choice: a word, or an object that names a function beside `type` or in `function`.

    `wrapped` is that of `read_named_tool`.

    Raises:
        UnsupportedParameterError: It names a tool that is not a function.
        InvalidRequestError: It is another word, or has no name.
    """
    kind = choice if isinstance(choice, str) else choice.get("type", "function")
    match kind:
        case "auto" | "none" | "required":
            return kind
        case "any":  # Mistral's word
            return "required"
    if isinstance(choice, str):
        raise InvalidRequestError(f"{at} is auto, none, required or a function", at)
    if kind != "function":
        raise UnsupportedParameterError(dotted(at, "type"))
    return read_named_tool(choice, at, wrapped=wrapped)


def read_named_tool(choice: Mapping[str, object], at: str, *, wrapped: bool = False) -> NamedTool:
    """Read the name of a function: beside `type`, or in `function`.

    Args:
        choice: Has the name.
        at: Its place in the body, as a dotted path.
        wrapped: Whether the API has names in `function`. It decides the `param` of a name that is missing.

    Raises:
        InvalidRequestError: It has none.
    """
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    if function is not None or (wrapped and name is None):
        at = dotted(at, "function")
    given = {} if name is None else {"name": name}
    return valid(lambda: msgspec.convert(given, NamedTool), at)


def read_wrapped_choice(
    choice: str | Mapping[str, object], tools: tuple[Tool, ...], at: str
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """Read a tool choice in the form of chat completions.

    Args:
        choice: As for `read_tool_choice`, or a list of allowed tools.
        tools: The tools of the request.
        at: The place of the choice in the body.

    Returns:
        The choice, and the tools that may be called.

    Raises:
        As `read_tool_choice`, and InvalidRequestError: an allowed tool is not one of the tools.
    """
    if isinstance(choice, str) or choice.get("type") != ALLOWED_TOOLS:
        return read_tool_choice(choice, at, wrapped=True), tools
    at = dotted(at, ALLOWED_TOOLS)
    fields = valid(lambda: msgspec.convert(choice.get(ALLOWED_TOOLS), dict[str, object]), at)
    names: list[str] = []
    for place, tool in allowed_entries(fields, at):
        names.append(read_named_tool(_function_in(tool, place), dotted(place, "function")).name)
    return read_allowed_mode(fields, at), only_allowed(tools, names, at)


def allowed_entries(fields: Mapping[str, object], at: str) -> list[tuple[str, Mapping[str, object]]]:
    """The entries of a list of allowed tools, each with its place in the body.

    Raises:
        InvalidRequestError: It is not a list of objects.
    """
    place = dotted(at, "tools")
    entries = valid(lambda: msgspec.convert(fields.get("tools"), list[dict[str, object]]), place)
    return [(f"{place}[{index}]", entry) for index, entry in enumerate(entries)]


def read_allowed_mode(fields: Mapping[str, object], at: str) -> Literal["auto", "required"]:
    """Whether one of the allowed tools must be called.

    Raises:
        InvalidRequestError: The mode is another word.
    """
    mode: Literal["auto", "required"] = valid(
        lambda: msgspec.convert(fields.get("mode", "auto"), Literal["auto", "required"]), dotted(at, "mode")
    )
    return mode


def only_allowed(tools: Sequence[Tool], names: Collection[str], at: str) -> tuple[Tool, ...]:
    """The tools with these names.

    Raises:
        InvalidRequestError: A name is no tool's.
    """
    for name in names:
        if all(tool.name != name for tool in tools):
            message = f"{dotted(at, 'tools')} allows {name!r}, which is not in tools"
            raise InvalidRequestError(message, dotted(at, "tools"))
    return tuple(tool for tool in tools if tool.name in names)


def read_wrapped_call(call: Mapping[str, object], at: str) -> ToolCall:
    """Read a tool call of an earlier turn in the form of chat completions. Unknown fields are ignored.

    Raises:
        UnsupportedParameterError: It is not a call of a function.
        InvalidRequestError: A value is invalid.
    """
    function = _function_in(call, at)
    arguments = function.get("arguments")
    if isinstance(arguments, (dict, list)):  # some programs send the value in place of its text
        arguments = msgspec.json.encode(arguments).decode()
    given = {"id": "-", "name": function.get("name"), "arguments": "" if arguments is None else arguments}
    read = valid(lambda: msgspec.convert(given, ToolCall), dotted(at, "function"))
    if call.get("id") is None:
        raise missing("id", at)
    call_id = valid(lambda: msgspec.convert(call.get("id"), NonEmpty), dotted(at, "id"))
    return ToolCall(call_id, read.name, read.arguments)


def _function_in(fields: Mapping[str, object], at: str) -> Mapping[str, object]:
    if fields.get("type") not in (None, "function"):  # a tuple: the value need not be hashable
        raise UnsupportedParameterError(dotted(at, "type"))
    if fields.get("function") is None:
        raise missing("function", at)
    return valid(lambda: msgspec.convert(fields["function"], dict[str, object]), dotted(at, "function"))
