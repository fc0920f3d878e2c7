"""Read the tool calls in one chunk, in any of the forms that servers use. No trio: nothing here waits.

* `tool_calls` is a list of calls or of their pieces, or a single one. `function_call` is the older form of one call.
* `index` may be missing, null or a text. `id` and `name` may be missing, null, empty, or repeated in every piece.
* `arguments` is a piece of JSON text, or the whole value instead of its text.
* `name` and `arguments` may be outside `function`.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, final

import msgspec

from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.output import MAX_CALL_ID_LENGTH
from crucible_trio.records import is_deeper

CALL_FIELDS: Final = ("tool_calls", "function_call")


@final
class CallPiece(msgspec.Struct, frozen=True):
    """A piece of a tool call. Not all of its fields are empty.

    Attributes:
        index: The call's index, if the server says one.
        id: The call's id, or empty.
        name: The tool's name, or empty.
        arguments: The next piece of the arguments, or empty.
        is_value: Whether the server sent the arguments as a value and not as text. A value cannot be a piece.
        is_too_deep: Whether they are nested too deeply to be written.
    """

    index: int | None
    id: str
    name: str
    arguments: str
    is_value: bool = False
    is_too_deep: bool = False


def read_calls(delta: dict[str, Any], path: str, skipped: SkippedFields) -> list[CallPiece]:
    """Read the pieces of tool calls in a delta, or in a message that takes its place.

    Args:
        delta: The delta.
        path: Its name, for `skipped`.
        skipped: Counts the skipped values.
    """
    for name in CALL_FIELDS:
        if value := delta.get(name):
            found: list[CallPiece] = []
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict):
                    _read_call(entry, f"{path}.{name}", found, skipped)
                elif entry:
                    skipped.add(f"{path}.{name}", may_hold_text=True)
            if found:
                return found
    return []


def _read_call(entry: dict[str, Any], path: str, found: list[CallPiece], skipped: SkippedFields) -> None:
    function = entry.get("function")
    if not isinstance(function, dict):
        if function:
            skipped.add(f"{path}.function", may_hold_text=True)
        function = entry
    arguments = function.get("arguments")
    is_value = isinstance(arguments, int | float) or (isinstance(arguments, dict | list) and bool(arguments))
    is_too_deep = is_value and is_deeper(arguments)
    if is_value:
        arguments = "" if is_too_deep else json.dumps(arguments, ensure_ascii=False)
    piece = CallPiece(
        _read_index(entry.get("index")),
        _read_word(entry.get("id"), f"{path}.id", skipped, MAX_CALL_ID_LENGTH),
        _read_word(function.get("name"), f"{path}.name", skipped),
        arguments if isinstance(arguments, str) else "",
        is_value,
        is_too_deep,
    )
    if piece.id or piece.name or piece.arguments or piece.is_value:
        found.append(piece)
    elif entry.keys() - {"index", "id", "type", "function"}:
        skipped.add(path, may_hold_text=True)


def _read_index(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        return int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 10**9:
        return int(value)
    return None


def _read_word(value: object, path: str, skipped: SkippedFields, max_length: float = math.inf) -> str:
    """A text. Some servers number their calls instead."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15:
        return str(value)
    if isinstance(value, str) and len(value) <= max_length:
        return value
    if value:
        skipped.add(path)
    return ""
