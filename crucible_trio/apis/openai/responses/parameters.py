"""The query parameters of the routes that retrieve a response."""

from __future__ import annotations

from typing import Final

from crucible_trio.errors import InvalidRequestError

_BOOLEANS: Final = {"true": True, "false": False}
# Event numbers are shorter, and `int` raises for texts of thousands of digits.
_MAX_NUMBER_DIGITS: Final = 18


def read_flag(name: str, text: str) -> bool:
    """Read a query parameter that is `true` or `false`.

    Raises:
        InvalidRequestError: It is neither.
    """
    if text not in _BOOLEANS:
        raise InvalidRequestError(f"{name} is true or false", name)
    return _BOOLEANS[text]


def read_event_number(name: str, text: str | None) -> int | None:
    """Read a query parameter that is the `sequence_number` of an event. None if the request does not have it.

    Raises:
        InvalidRequestError: It is not a number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_NUMBER_DIGITS:
        raise InvalidRequestError(f"{name} is the sequence_number of an event", name)
    return int(text)
