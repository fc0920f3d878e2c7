"""The fields of a request that were ignored, for the header that names them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import islice
from typing import Final, TypeVar, final
from urllib.parse import quote

import msgspec

from crucible_trio.apis.kit.errors import UnknownParameterError
from crucible_trio.apis.kit.fields import Fields, dotted

_Shape = TypeVar("_Shape", bound=msgspec.Struct)

# The names go into a header, and clients choose them.
_MAX_NAMES: Final = 20
_MAX_NAME: Final = 80
_UNENCODED: Final = "[]"  # besides letters, digits and `_.-~`
_NUMBER: Final = re.compile(r"\[[0-9]+\]")
_CUT_CODE: Final = re.compile(r"%.?$")


@final
class Ignored:
    """Collects the names of ignored fields, each once and in order.

    Args:
        refuses_unknown: Refuse unknown fields in place of ignoring them (`ApiSettings.strict_fields`).
    """

    def __init__(self, *, refuses_unknown: bool = False) -> None:
        self._refuses_unknown = refuses_unknown
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The first names as a header can have them, and a note that counts the others."""
        names = tuple(_for_header(name) for name in islice(self._names, _MAX_NAMES))
        more = len(self._names) - len(names)
        return (*names, f"and {more} more") if more else names

    def add(self, name: str) -> None:
        """Add a name."""
        self._names[name] = None

    def add_unknown(self, name: str, param: str) -> None:
        """Add the name of something unknown.

        Args:
            name: The name.
            param: The field at fault, as a dotted path.

        Raises:
            UnknownParameterError: Unknown fields are refused.
        """
        if self._refuses_unknown:
            raise UnknownParameterError(param)
        self.add(name)

    def add_all(self, fields: Mapping[str, object], at: str) -> None:
        """Add the fields of an object that are unknown and not null. Their names are without the numbers of `at`.

        Args:
            fields: The unknown fields.
            at: The place of the object in the body, as a dotted path.

        Raises:
            UnknownParameterError: Unknown fields are refused.
        """
        place = _NUMBER.sub("[]", at) if fields else at
        for name, value in fields.items():
            if value is not None:
                self.add_unknown(dotted(place, name), dotted(at, name))

    def decode(self, shape: Fields[_Shape], body: bytes | memoryview) -> _Shape:
        """Read a whole body. Its unknown fields are ignored. The errors are those of `Fields.decode` and `add_all`."""
        unknown: dict[str, object] = {}
        read = shape.decode(body, unknown=unknown)
        self.add_all(unknown, "")
        return read

    def read(self, shape: Fields[_Shape], values: Mapping[str, object], at: str) -> _Shape:
        """Read one object. Its unknown fields are ignored. The errors are those of `Fields.read` and `add_all`."""
        unknown: dict[str, object] = {}
        read = shape.read(values, at, unknown=unknown)
        self.add_all(unknown, at)
        return read

    def known(self, fields: Mapping[str, object], names: Collection[str], at: str) -> dict[str, object]:
        """The fields of an object that are known and not null. The others are ignored.

        Args:
            fields: All fields of the object.
            names: The names of the known ones.
            at: The place of the object in the body, as a dotted path.

        Raises:
            As `add_all`.
        """
        self.add_all({name: value for name, value in fields.items() if name not in names}, at)
        return {name: value for name, value in fields.items() if name in names and value is not None}


def _for_header(name: str) -> str:
    """A name with its other characters percent-encoded, and cut to a length."""
    encoded = quote(name[: _MAX_NAME + 1], safe=_UNENCODED) or '""'
    if len(encoded) <= _MAX_NAME:
        return encoded
    return f"{_CUT_CODE.sub('', encoded[:_MAX_NAME])}..."
