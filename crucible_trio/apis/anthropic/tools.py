"""The tools of a messages request, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import NamedTool, NonEmpty, Tool, ToolChoice, ToolName

# Hints that do not change which calls the model can make. `input_examples` would, but models without them manage.
_HINTS: Final = frozenset({"type", "cache_control", "defer_loading", "eager_input_streaming"})


@final
class _CustomTool(msgspec.Struct):
    name: ToolName
    input_schema: dict[str, object]
    description: str | None = None
    strict: bool | None = None


_TOOL_FIELDS: Final = frozenset(_CustomTool.__struct_fields__) | _HINTS


@final
class _Choice(msgspec.Struct):
    type: str
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None


class ReadTools(NamedTuple):
    """The tools of a request.

    Attributes:
        tools: Those that the model is offered.
        hosted: The types of the others. Anthropic's servers run them, or its models know their form.
    """

    tools: tuple[Tool, ...]
    hosted: tuple[str, ...]


def read_tools(given: Sequence[Mapping[str, object]], ignored: Ignored) -> ReadTools:
    """Read the tools of a request.

    Args:
        given: The tools.
        ignored: Takes the names of unknown fields, and of hosted tools.

    Raises:
        InvalidRequestError: A value is invalid.
    """
    tools: list[Tool] = []
    hosted: list[str] = []
    for index, fields in enumerate(given):
        at = f"tools[{index}]"
        kind = valid(lambda: msgspec.convert(fields.get("type") or "custom", NonEmpty), dotted(at, "type"))  # noqa: B023 - called at once
        if kind == "custom":
            known = ignored.known(fields, _TOOL_FIELDS, "tools[]")
            tool = valid(lambda: msgspec.convert(known, _CustomTool), at)  # noqa: B023 - called at once
            tools.append(Tool(tool.name, tool.description, tool.input_schema, tool.strict))
        else:
            hosted.append(kind)
            ignored.add(f"tools.{kind}")
    return ReadTools(tuple(tools), tuple(hosted))


def read_choice(given: Mapping[str, object] | None, tools: Sequence[Tool]) -> tuple[ToolChoice | None, bool | None]:
    """Read `tool_choice`.

    Args:
        given: Its fields. None if the request has none.
        tools: The tools that the model is offered.

    Returns:
        The choice, and whether one turn may have several calls. None leaves it to the model.

    Raises:
        UnsupportedParameterError: It names a tool that the model is not offered.
        InvalidRequestError: It has another type, or no name.
    """
    if given is None:
        return None, None
    at = "tool_choice"
    asked = valid(
        lambda: msgspec.convert({name: given[name] for name in given if given[name] is not None}, _Choice), at
    )
    parallel = None if asked.disable_parallel_tool_use is None else not asked.disable_parallel_tool_use
    match asked.type:
        case "auto" | "none":
            return asked.type, parallel
        case "any":
            return "required", parallel
        case "tool" if asked.name is not None:
            if all(tool.name != asked.name for tool in tools):
                raise UnsupportedParameterError(at)
            return NamedTool(asked.name), parallel
        case "tool":
            raise InvalidRequestError("the tool choice has no name", dotted(at, "name"))
    raise InvalidRequestError("tool_choice.type is auto, any, tool or none", dotted(at, "type"))
