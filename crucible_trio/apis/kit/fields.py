"""The fields of a JSON object in a request. Each is understood, harmless or refused. None is silently ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

import msgspec

from crucible_trio.apis.kit.errors import UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.parsing import valid

Shape = TypeVar("Shape", bound=msgspec.Struct)


@final
@dataclass(frozen=True, slots=True)
class Fields(Generic[Shape]):
    """The fields that an object may have. A field that is null counts as absent.

    Attributes:
        shape: The fields that are understood.
        harmless: Fields that do not change the answer, each with the reason. They are ignored.
        refused: Fields that this server cannot honour. Each has the values that ask for nothing, which are accepted.
    """

    shape: type[Shape]
    harmless: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    def decode(self, body: bytes | bytearray) -> Shape:
        """Read a whole body.

        Raises:
            UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
            InvalidRequestError: The body is not a JSON object, or a value is invalid.
        """
        return self.read(valid(lambda: msgspec.json.decode(body, type=dict[str, object])))

    def read(self, values: Mapping[str, object], at: str = "") -> Shape:
        """Read one object.

        Args:
            values: Its fields.
            at: Its place in the body, as a dotted path. Empty for the body itself.

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


def dotted(at: str, name: str) -> str:
    """The path of a field, from the path of its object."""
    return f"{at}.{name}" if at else name
