"""Do without the fields that this engine adds to a request, where a server refuses them. No trio: nothing here waits.

OpenAI and Mistral answer 400 or 422 to a field that they do not know. The default fields for a model's mode are such
fields there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, final

import msgspec

_REFUSED_STATUS: Final = frozenset({400, 422})

# Names of fields that are also words of an error's sentence or form.
_IN_EVERY_ERROR: Final = frozenset({"model", "messages", "stream", "stop"})

# How servers say that a field is unknown, without naming one: OpenAI, Pydantic (vLLM, Mistral), JSON schemas, serde.
_UNKNOWN_FIELD: Final = re.compile(
    r"(?:unknown|unrecogni[sz]ed|unexpected|unsupported)\W+(?:\w+\W+)?(?:parameter|field|argument|propert|key)"
    r"|extra_forbidden|extra (?:inputs|fields)|additional propert",
    re.IGNORECASE,
)


@final
class AddedFields:
    """Which of the added fields a server refuses, by model. A field counts as refused once a request succeeds without.

    Args:
        names: The fields that may be left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._refused: dict[str, frozenset[str]] = {}

    def refused(self, model: str) -> frozenset[str]:
        """The fields to leave out of a request for a model."""
        return self._refused.get(model, frozenset())

    def remember(self, model: str, left_out: frozenset[str]) -> bool:
        """A request without these fields has succeeded. Returns whether this is new."""
        known = self.refused(model)
        self._refused[model] = known | left_out  # another request may have learnt of fields meanwhile
        return not left_out <= known

    def refused_by(self, status: int, body: bytes, sent: Iterable[str]) -> frozenset[str]:
        """The fields that an error response refuses: those that it names, or all if it names no field.

        Args:
            status: The status of the response.
            body: The beginning of its body.
            sent: The fields of the request.
        """
        fields = frozenset(sent)
        ours = self._names & fields
        if status not in _REFUSED_STATUS or not ours:
            return frozenset()
        # A field that has been left out and is named again refuses no other one.
        named = named_in(body, (fields | self._names) - _IN_EVERY_ERROR)
        if named or not _UNKNOWN_FIELD.search(body.decode("utf-8", "replace")) or _names_a_field(body):
            return named & ours
        return ours


def named_in(body: bytes, names: Iterable[str]) -> frozenset[str]:
    """The names that occur in a response."""
    return frozenset(name for name in names if name.encode() in body)


def _names_a_field(body: bytes) -> bool:
    """Whether an error in OpenAI's form says which field is wrong."""
    try:
        error = msgspec.json.decode(body)["error"]
        return bool(error["param"])
    except (ValueError, RecursionError, TypeError, KeyError):
        return False
