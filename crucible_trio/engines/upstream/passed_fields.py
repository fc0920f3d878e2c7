"""Decide which fields of a server's chunks are passed on without being interpreted. No trio: nothing here waits.

Servers repeat most of them in every chunk, so a field is passed on when its value has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

import msgspec

from crucible_trio.content import MAX_FIELDS_BYTES, FieldsPlace, ServerFields
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.records import is_deeper

# Bytes of JSON in one stream.
MAX_STREAM_BYTES: Final = 64 * 1024

# Interpreted, or made anew for our own chunks. `obfuscation` is padding of random length, different in every chunk.
_CHUNK_FIELDS: Final = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "finish_reason", "error", "obfuscation"}
)
_CHOICE_FIELDS: Final = frozenset({"index", "delta", "message", "text", "finish_reason", "logprobs", "usage", "error"})
_INTERPRETED: Final[Mapping[FieldsPlace, frozenset[str]]] = {
    "chunk": _CHUNK_FIELDS,
    "choice": _CHOICE_FIELDS,
    "delta": frozenset(),  # the reader of the delta knows
}


@final
class PassedFields:
    """Decides which fields of one stream are passed on, over all its requests to the server."""

    def __init__(self) -> None:
        self._passed: dict[FieldsPlace, dict[str, object]] = {"chunk": {}, "choice": {}, "delta": {}}
        self._free_bytes = MAX_STREAM_BYTES

    def changed(self, at: FieldsPlace, fields: Mapping[str, Any], skipped: SkippedFields) -> list[ServerFields]:
        """The fields to pass on, of those in one place of a chunk. An empty value carries nothing.

        Args:
            at: The place.
            fields: All fields there. Of a delta: those that are not interpreted.
            skipped: Counts the fields that are too long, too deep, or beyond the limit of a stream.

        Returns:
            None, or as many pieces as their length needs.
        """
        interpreted = _INTERPRETED[at]
        if interpreted.issuperset(fields):  # nearly every chunk of most servers
            return []
        passed = self._passed[at]
        found: list[ServerFields] = []
        group: dict[str, object] = {}
        free = 0
        for name, value in fields.items():
            if name in interpreted or passed.get(name) == value or _is_empty(value):
                continue
            size = _size(name, value)
            if size is None or size > min(MAX_FIELDS_BYTES, self._free_bytes):
                skipped.add(name if at == "chunk" else f"{at}.{name}")
                continue
            self._free_bytes -= size
            passed[name] = value
            if size > free:
                group = {}
                free = MAX_FIELDS_BYTES
                found.append(ServerFields(at, group))
            group[name] = value
            free -= size
        return found


def _is_empty(value: object) -> bool:
    """Whether a value carries nothing. 0 and False do."""
    return value is None or (not value and isinstance(value, str | list | dict))


def _size(name: str, value: object) -> int | None:
    """The bytes of a field as JSON. None if our own JSON cannot hold it: half a character, or nested too deeply."""
    field = {name: value}
    try:
        size = len(msgspec.json.encode(field))
    except (ValueError, OverflowError, RecursionError):
        return None
    return None if is_deeper(field) else size  # the output measures it with its name, too
