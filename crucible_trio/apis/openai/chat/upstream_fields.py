"""Fields of an upstream server that are not interpreted, in the chunks and the object of a completion.

They never replace a field of ours. In the object, each has its last value: there is no rule to join the values that
holds for the fields of all servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

import msgspec

from crucible_trio.content import FieldsPlace
from crucible_trio.records import encode_json

# The fields of our chunks and objects. SDKs raise for an `error`.
_OWN_FIELDS: Final[Mapping[FieldsPlace, frozenset[str]]] = {
    "chunk": frozenset({"id", "object", "created", "model", "choices", "usage", "error"}),
    "choice": frozenset({"index", "delta", "message", "finish_reason", "logprobs", "error"}),
    "delta": frozenset({"role", "content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call"}),
}

# OpenAI repeats them in every chunk, and its SDK takes them from the last one.
_REPEATED_FIELDS: Final = ("service_tier", "system_fingerprint")


@final
class RepeatedFields:
    """The fields that all later chunks of a stream repeat.

    Attributes:
        members: The fields as members of a JSON object, each with a comma before it.
    """

    def __init__(self) -> None:
        self.members = b""
        self._fields: dict[str, object] = {}

    def take(self, fields: dict[str, object]) -> None:
        """Move the repeated ones out of the fields of a chunk."""
        if found := [name for name in _REPEATED_FIELDS if name in fields]:
            self._fields.update((name, fields.pop(name)) for name in found)
            self.members = json_members(self._fields)


@final
class _Fields(msgspec.Struct, frozen=True):
    fields: Mapping[str, object]


def json_members(fields: Mapping[str, object]) -> bytes:
    """Fields, not none, as members of a JSON object, each with a comma before it."""
    return b"," + encode_json(_Fields(fields))[len(b'{"fields":{') : -len(b"}}")]


def foreign_fields(at: FieldsPlace, fields: Mapping[str, object]) -> dict[str, object]:
    """The fields of an upstream that have no name of ours."""
    return {name: value for name, value in fields.items() if name not in _OWN_FIELDS[at]}


def add_to_completion(
    completion: msgspec.Struct, found: Mapping[FieldsPlace, Mapping[str, object]]
) -> msgspec.Struct | dict[str, Any]:
    """A completion in one object, with the fields of the upstream.

    Args:
        completion: The completion, with one choice and its message.
        found: The last values by place, as in a `Snapshot`.
    """
    if not found:
        return completion
    whole: dict[str, Any] = msgspec.to_builtins(completion)
    choice: dict[str, Any] = whole["choices"][0]
    choice["message"] |= foreign_fields("delta", found.get("delta", {}))
    whole["choices"] = [choice | foreign_fields("choice", found.get("choice", {}))]
    return whole | foreign_fields("chunk", found.get("chunk", {}))
