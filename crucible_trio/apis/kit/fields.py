"""The fields of a JSON object in a request. Each is understood, harmless or refused. None is silently ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

import msgspec
import msgspec.inspect

from crucible_trio.apis.kit.errors import UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.errors import InvalidRequestError
from crucible_trio.records import MAX_DEPTH, is_deeper

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

    def decode(self, body: bytes | memoryview, *, unknown: dict[str, object] | None = None) -> Shape:
        """Read a whole body.

        Args:
            body: The body.
            unknown: Takes the fields that are unknown. None: they are refused.

        Raises:
            UnsupportedParameterError, UnknownParameterError: A field is refused, or unknown.
            InvalidRequestError: The body is not a JSON object, or a value is invalid or nested too deeply.
        """
        values = valid(lambda: msgspec.json.decode(body, type=dict[str, object]))
        for name, value in values.items():
            if is_deeper(value):
                message = f"{name} is more than {MAX_DEPTH} levels deep"
                raise InvalidRequestError(message, name)
        return self.read(values, unknown=unknown)

    def read(self, values: Mapping[str, object], at: str = "", *, unknown: dict[str, object] | None = None) -> Shape:
        """Read one object.

        Args:
            values: Its fields.
            at: Its place in the body, as a dotted path. Empty for the body itself.
            unknown: As in `decode`.

        Raises:
            As `decode`.
        """
        known: dict[str, object] = {}
        for name, value in values.items():
            if name in self.shape.__struct_encode_fields__:
                if value is not None:
                    known[name] = value
            elif name in self.refused:
                if value is not None and value not in self.refused[name]:
                    raise UnsupportedParameterError(dotted(at, name))
            elif name not in self.harmless:
                if unknown is None:
                    raise UnknownParameterError(dotted(at, name))
                unknown[name] = value
        try:
            return valid(lambda: msgspec.convert(known, self.shape), at)
        except InvalidRequestError as error:
            name = (error.param or "").removeprefix(f"{at}." if at else "")
            words = _words(self.shape, name)
            if not words or not isinstance(known.get(name), str):
                raise
            raise InvalidRequestError(f"{error.param} is one of: {', '.join(words)}", error.param) from error


def _words(shape: type[msgspec.Struct], name: str) -> list[str]:
    """The words that a field may be. Empty for other fields: msgspec's own message says what these may be."""
    info = msgspec.inspect.type_info(shape)
    assert isinstance(info, msgspec.inspect.StructType)
    for known in info.fields:
        if known.encode_name == name:
            kinds = known.type.types if isinstance(known.type, msgspec.inspect.UnionType) else [known.type]
            literals = [kind for kind in kinds if isinstance(kind, msgspec.inspect.LiteralType)]
            return sorted(str(word) for literal in literals for word in literal.values)
    return []


def dotted(at: str, name: str) -> str:
    """The path of a field, from the path of its object."""
    return f"{at}.{name}" if at else name


def missing(name: str, at: str) -> InvalidRequestError:
    """The error of an object that lacks a field, in msgspec's words.

    Args:
        name: The field.
        at: The place of the object in the body, as a dotted path.
    """
    return InvalidRequestError(f"Object missing required field `{name}`", dotted(at, name))
