"""Tools, tool choices and the calls of earlier turns, in OpenAI's forms.

Chat completions wrap what belongs to a function into `function`. Responses have it beside `type`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from crucible_trio.apis.kit.errors import UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import NamedTool, NonEmpty, Tool, ToolCall, ToolChoice

_FUNCTION_FIELDS: Final = frozenset(Tool.__struct_fields__)
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


def read_tool_choice(choice: str | Mapping[str, object], at: str) -> ToolChoice:
    """Read a tool choice: a word, or an object that names a function beside `type` or in `function`.

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
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    return valid(lambda: msgspec.convert({"name": name}, NamedTool), at if function is None else dotted(at, "function"))


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
    call_id = valid(lambda: msgspec.convert(call.get("id"), NonEmpty), dotted(at, "id"))
    return ToolCall(call_id, read.name, read.arguments)


def _function_in(fields: Mapping[str, object], at: str) -> Mapping[str, object]:
    if fields.get("type") not in (None, "function"):  # a tuple: the value need not be hashable
        raise UnsupportedParameterError(dotted(at, "type"))
    return valid(lambda: msgspec.convert(fields.get("function"), dict[str, object]), dotted(at, "function"))
