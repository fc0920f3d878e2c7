"""The fields of a request that were ignored, for the header that names them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, final

from crucible_trio.apis.kit.errors import UnknownParameterError
from crucible_trio.apis.kit.fields import dotted

# The names go into a header, and clients choose them.
_MAX_NAMES: Final = 20
_NAME: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,80}")


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
        """The names that can be in a header."""
        return tuple(self._names)

    def add(self, name: str) -> None:
        """Add a name."""
        if len(self._names) < _MAX_NAMES and _NAME.fullmatch(name):
            self._names[name] = None

    def add_all(self, fields: Mapping[str, object], at: str) -> None:
        """Add the fields of an object that are unknown and not null.

        Args:
            fields: The unknown fields.
            at: The place of the object in the body, as a dotted path without numbers.

        Raises:
            UnknownParameterError: Unknown fields are refused.
        """
        for name, value in fields.items():
            if value is not None:
                if self._refuses_unknown:
                    raise UnknownParameterError(dotted(at, name))
                self.add(dotted(at, name))

    def known(self, fields: Mapping[str, object], names: Collection[str], at: str) -> dict[str, object]:
        """The fields of an object that are known and not null. The others are ignored.

        Args:
            fields: All fields of the object.
            names: The names of the known ones.
            at: The place of the object in the body, as a dotted path without numbers.

        Raises:
            As `add_all`.
        """
        self.add_all({name: value for name, value in fields.items() if name not in names}, at)
        return {name: value for name, value in fields.items() if name in names and value is not None}
