"""Tools as the client knows them: how a response shows the tools and the choice, and the input of custom tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, final

import msgspec

from crucible_trio.request import NamedTool, Tool, ToolChoice

_INPUT: Final = "input"
CUSTOM_PARAMETERS: Final[dict[str, object]] = {
    "type": "object",
    "properties": {_INPUT: {"type": "string"}},
    "required": [_INPUT],
    "additionalProperties": False,
}
"""The parameters of the function that stands for a custom tool."""


@final
class ToolOrigin(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool as its client knows it, where the model knows it by another name or in another form.

    Attributes:
        name: Its name.
        namespace: The namespace that it is in.
        kind: `custom`: its input is a text, and not arguments in JSON.
        description: The description of a custom tool.
        format: The format of a custom tool's input.
    """

    name: str
    namespace: str | None = None
    kind: Literal["function", "custom"] = "function"
    description: str | None = None
    format: dict[str, object] | None = None


def echo_tools(
    tools: Sequence[Tool], origins: Mapping[str, ToolOrigin], namespaces: Mapping[str, str]
) -> list[dict[str, object]]:
    """The tools as the client knows them, with all fields that OpenAI's form requires."""
    echoed: list[dict[str, object]] = []
    within: dict[str, list[dict[str, object]]] = {}
    for tool in tools:
        origin = origins.get(tool.name) or ToolOrigin(tool.name)
        fields: dict[str, object] = {"type": origin.kind, "name": origin.name}
        if origin.kind == "custom":
            fields |= {"description": origin.description, "format": origin.format or {"type": "text"}}
        else:
            fields |= {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
        if origin.namespace is None:
            echoed.append(fields)
            continue
        name = origin.namespace
        if name not in within:
            within[name] = []
            description = namespaces.get(name, "")
            echoed.append({"type": "namespace", "name": name, "description": description, "tools": within[name]})
        within[name].append(fields)
    return echoed


def echo_choice(choice: ToolChoice | None, origins: Mapping[str, ToolOrigin]) -> str | dict[str, object]:
    """The tool choice as the client knows it."""
    if not isinstance(choice, NamedTool):
        return choice or "auto"
    origin = origins.get(choice.name) or ToolOrigin(choice.name)
    namespace = {} if origin.namespace is None else {"namespace": origin.namespace}
    return {"type": origin.kind, "name": origin.name, **namespace}


def custom_arguments(text: str) -> str:
    """The arguments of the function that stands for a custom tool, from the input of the tool."""
    return msgspec.json.encode({_INPUT: text}).decode()


def custom_input(arguments: str) -> str:
    """The input of a custom tool, from the arguments that the model wrote. Whatever else it wrote is the input too."""
    try:
        given = msgspec.json.decode(arguments, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError):
        return arguments
    text = given.get(_INPUT)
    return text if isinstance(text, str) and len(given) == 1 else arguments
