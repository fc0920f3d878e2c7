"""The tools of a responses request, and the names under which the model knows them.

The model knows functions. So a function in a namespace gets a name of at most 64 characters that holds both, and a
custom tool becomes a function with one text. Their calls leave as the client knows these tools. Hosted tools, such as
`web_search`, would have to run in this server. They are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.openai.responses.tool_origins import CUSTOM_PARAMETERS, ToolOrigin
from crucible_trio.apis.openai.tools import (
    ALLOWED_TOOLS,
    allowed_entries,
    only_allowed,
    read_allowed_mode,
    read_named_tool,
    read_tool,
    read_tool_choice,
)
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import NamedTool, NonEmpty, Tool, ToolChoice, ToolName

# OpenAI's limits for the name of a function. Servers of chat completions have the same.
_NAME_LENGTH: Final = 64
_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9_-]")

_FUNCTION_FIELDS: Final = frozenset({"type", *Tool.__struct_fields__})
_CUSTOM_FIELDS: Final = frozenset({"type", "name", "description", "format"})
_NAMESPACE_FIELDS: Final = frozenset({"type", "name", "description", "tools"})

# The tools that OpenAI runs, without the dates of their versions. Agents send them to every server.
_HOSTED: Final = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use",
        "computer_use_preview",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_preview",
    }
)
_VERSION: Final = re.compile(r"_[0-9]{4}_[0-9]{2}_[0-9]{2}\Z")


@final
class _CustomTool(msgspec.Struct):
    name: ToolName
    description: str | None = None
    format: dict[str, object] | None = None


@final
class _Namespace(msgspec.Struct):
    name: NonEmpty
    description: str = ""
    tools: list[dict[str, object]] = []


@final
class DeclaredTools:
    """The tools of a request.

    Args:
        names: Names that the model will know without a change.

    Attributes:
        tools: As the model knows them.
        origins: As the client knows them, by the names that the model knows. Without those that are the same.
        namespaces: The description of each namespace.
        hosted: The types of the hosted tools. The model does not know them.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.tools: list[Tool] = []
        self.origins: dict[str, ToolOrigin] = {}
        self.namespaces: dict[str, str] = {}
        self.hosted: list[str] = []
        self._taken = set(names)
        self._model_names: dict[tuple[str | None, str], str] = {}

    def model_name(self, name: str, namespace: str | None) -> str:
        """The name by which the model knows a tool of this request, or knew one of an earlier turn."""
        if namespace is None:
            return name
        return self._model_names.get((namespace, name)) or _joined(namespace, name)

    def claim(self, origin: ToolOrigin, at: str) -> str:
        """Find a name for a tool whose calls are translated back. It can be no other tool's name.

        Raises:
            InvalidRequestError: There is no such name.
        """
        names = [origin.name]
        if origin.namespace is not None:
            names = [_joined(origin.namespace, origin.name), _hashed(origin.namespace, origin.name)]
        for name in names:
            if name not in self._taken:
                self._taken.add(name)
                self.origins[name] = origin
                self._model_names[origin.namespace, origin.name] = name
                return name
        message = f"two tools have the name {origin.name!r}"
        raise InvalidRequestError(message, dotted(at, "name"))


def read_tools(given: Sequence[tuple[str, Mapping[str, object]]], ignored: Ignored) -> DeclaredTools:
    """Read the tools of a request.

    Args:
        given: The tools, each with its place in the body.
        ignored: Takes the names of unknown fields, and of hosted tools.

    Raises:
        UnsupportedParameterError: A namespace holds something else than tools.
        UnknownParameterError: Unknown fields are refused, and a tool has one or is of an unknown type.
        InvalidRequestError: A value is invalid, or two tools would have the same name for the model.
    """
    names = (fields.get("name") for _, fields in given if fields.get("type") == "function")
    declared = DeclaredTools(name for name in names if isinstance(name, str))
    for at, fields in given:
        match _kind_of(fields, at):
            case "function":
                declared.tools.append(_read_function(fields, at, ignored))
            case "custom":
                declared.tools.append(_read_custom(fields, at, None, declared, ignored))
            case "namespace":
                _read_namespace(fields, at, declared, ignored)
            case hosted:
                _leave_out(hosted, "tools", at, ignored)
                declared.hosted.append(hosted)
    return declared


def read_choice(choice: str | Mapping[str, object], declared: DeclaredTools, ignored: Ignored) -> ToolChoice:
    """Read `tool_choice`.

    Args:
        choice: The choice. If it lists the allowed tools, the other ones are not offered to the model.
        declared: The tools of the request.
        ignored: Takes the names of allowed tools that are hosted.

    Raises:
        UnsupportedParameterError: It names a hosted tool, or allows a namespace.
        UnknownParameterError: Unknown fields are refused, and it allows a tool of an unknown type.
        InvalidRequestError: It is another word, has no name, or allows what is not a tool.
    """
    at = "tool_choice"
    if not isinstance(choice, str) and choice.get("type") == ALLOWED_TOOLS:
        declared.tools = list(only_allowed(declared.tools, _allowed_names(choice, at, declared, ignored), at))
        return read_allowed_mode(choice, at)
    if isinstance(choice, str) or choice.get("type") not in ("function", "custom"):
        return read_tool_choice(choice, at)
    return NamedTool(_chosen_name(choice, at, declared))


def _allowed_names(choice: Mapping[str, object], at: str, declared: DeclaredTools, ignored: Ignored) -> list[str]:
    names: list[str] = []
    for place, entry in allowed_entries(choice, at):
        match _kind_of(entry, place):
            case "function" | "custom":
                names.append(_chosen_name(entry, place, declared))
            case "namespace":
                raise UnsupportedParameterError(dotted(place, "type"))
            case hosted:
                _leave_out(hosted, "tool_choice", place, ignored)
    return names


def _chosen_name(choice: Mapping[str, object], at: str, declared: DeclaredTools) -> str:
    """The name by which the model knows a tool that a choice names."""
    read = read_named_tool(choice, at)
    namespace = valid(lambda: msgspec.convert(choice.get("namespace"), str | None), dotted(at, "namespace"))
    return declared.model_name(read.name, namespace)


def _kind_of(fields: Mapping[str, object], at: str) -> str:
    return valid(lambda: msgspec.convert(fields.get("type"), NonEmpty), dotted(at, "type"))


def _leave_out(kind: str, field: str, at: str, ignored: Ignored) -> None:
    """Name a tool that the model does not get. One of an unknown type may be a misspelt function."""
    name = f"{field}.{kind}"
    if _VERSION.sub("", kind) in _HOSTED:
        ignored.add(name)
    else:
        ignored.add_unknown(name, dotted(at, "type"))


def _read_function(fields: Mapping[str, object], at: str, ignored: Ignored) -> Tool:
    return read_tool(ignored.known(fields, _FUNCTION_FIELDS, at), at)


def _read_custom(
    fields: Mapping[str, object], at: str, namespace: str | None, declared: DeclaredTools, ignored: Ignored
) -> Tool:
    known = ignored.known(fields, _CUSTOM_FIELDS, at)
    tool = valid(lambda: msgspec.convert(known, _CustomTool), at)
    origin = ToolOrigin(tool.name, namespace, "custom", tool.description, tool.format)
    return Tool(declared.claim(origin, at), _described(tool), CUSTOM_PARAMETERS)


def _read_namespace(fields: Mapping[str, object], at: str, declared: DeclaredTools, ignored: Ignored) -> None:
    namespace = valid(lambda: msgspec.convert(ignored.known(fields, _NAMESPACE_FIELDS, at), _Namespace), at)
    declared.namespaces[namespace.name] = namespace.description
    for index, inner in enumerate(namespace.tools):
        place = f"{at}.tools[{index}]"
        match _kind_of(inner, place):
            case "function":
                tool = _read_function(inner, place, ignored)
                name = declared.claim(ToolOrigin(tool.name, namespace.name), place)
                declared.tools.append(msgspec.structs.replace(tool, name=name))
            case "custom":
                declared.tools.append(_read_custom(inner, place, namespace.name, declared, ignored))
            case _:
                raise UnsupportedParameterError(dotted(place, "type"))


def _joined(namespace: str, name: str) -> str:
    joined = f"{namespace}__{name}"
    if len(joined) > _NAME_LENGTH or _FORBIDDEN.search(joined):
        return _hashed(namespace, name)
    return joined


def _hashed(namespace: str, name: str) -> str:
    digest = hashlib.sha256(f"{namespace}\0{name}".encode()).hexdigest()[:8]
    return f"{_FORBIDDEN.sub('_', f'{namespace}__{name}')[: _NAME_LENGTH - 9]}_{digest}"


def _described(tool: _CustomTool) -> str | None:
    """The description for the model. A grammar is part of it, because a function has no other place for one."""
    if not tool.format or tool.format.get("type") in (None, "text"):
        return tool.description
    form = msgspec.json.encode(tool.format).decode()
    return f"{tool.description or ''}\n\nThe input must have this form: {form}".strip()
