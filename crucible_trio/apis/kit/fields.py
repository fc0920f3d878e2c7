"""The fields of a body in OpenAI's form: understood, harmless, or refused by name; nothing is ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar, final

import msgspec

from crucible_trio.web.intake import valid
from crucible_trio.web.openai.errors import UnknownParameterError, UnsupportedParameterError

Shape = TypeVar("Shape", bound=msgspec.Struct)


@final
@dataclass(frozen=True, slots=True)
class Fields(Generic[Shape]):
    """What an object of a request may hold. A field that is null counts as absent.

    Attributes:
        shape: The fields that are understood.
        harmless: Fields that change nothing of the answer, and why; they are ignored.
        refused: Fields of OpenAI's that this server cannot honour, and the values that ask for nothing.
    """

    shape: type[Shape]
    harmless: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def decode(self, body: bytes | bytearray) -> Shape:
        """Read a whole body.

        Raises:
            UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
            InvalidRequestError: The body is no JSON object, or a value does not fit.
        """
        return self.read(valid(lambda: msgspec.json.decode(body, type=dict[str, object])))

    def read(self, values: Mapping[str, object], at: str = "") -> Shape:
        """Read one object.

        Args:
            values: Its fields.
            at: Where it stands in the body, as a dotted path; empty for the body itself.

        Raises:
            As `decode`.
        """
        known: dict[str, object] = {}
        for name, value in values.items():
            if name in self.shape.__struct_fields__:
                if value is not None:
                    known[name] = value
            elif name in self.refused:
                if value is not None and value not in self.refused[name]:
                    raise UnsupportedParameterError(dotted(at, name))
            elif name not in self.harmless:
                raise UnknownParameterError(dotted(at, name))
        return valid(lambda: msgspec.convert(known, self.shape), at)


# On both wires.
HARMLESS: Final = {
    "prompt_cache_key": "a hint for a cache",
    "prompt_cache_options": "hints for a cache",
    "prompt_cache_retention": "a hint for a cache",
    "safety_identifier": "names an end user; owners are named by keys",
    "service_tier": "there is one tier",
    "user": "names an end user; owners are named by keys",
}


def dotted(at: str, name: str) -> str:
    """The path of a field of the object that stands at a path."""
    return f"{at}.{name}" if at else name
