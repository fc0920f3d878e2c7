"""The headers of a response, and of a request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, final

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Tab, and everything from space on but DEL. A line break in a value would forge a header.
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@final
class Headers(Mapping[str, str]):
    """Headers by name in any case. Values of one name are joined with a comma.

    Args:
        pairs: Names and values in the order in which they came.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, str] = {}
        for name, value in pairs:
            key = name.lower()
            self._values[key] = f"{self._values[key]}, {value}" if key in self._values else value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Header lines of a request.

    Raises:
        ValueError: A name or value is not allowed in a header. The message does not quote the value.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            message = f"header {name!a} cannot be sent: its name or value holds a character that HTTP does not allow"
            raise ValueError(message)
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
