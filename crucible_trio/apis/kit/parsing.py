"""Checking a request: values of its body, query parameters, idempotency key."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from crucible_trio.errors import InvalidRequestError

if TYPE_CHECKING:  # modules that only parse requests import this one, and must not load Quart
    from quart import Request

T = TypeVar("T")

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# How msgspec names the place: ``... field `x` - at `$.a` ``, and for the name of a field ``... - at `key` in `$.a` ``.
_FIELD = re.compile(
    r"(?:(?:unknown|required|in) field `(?P<name>[^`]*)`)?(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$"
)


def valid(make: Callable[[], T], at: str = "") -> T:
    """Decode or convert a value from a request.

    Args:
        make: Decodes or converts with msgspec.
        at: The place of the value in the request, as a dotted path. Empty for the whole body.

    Raises:
        InvalidRequestError: The value is invalid. `param` names the field.
    """
    try:
        return make()
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        path = found and (found["path"] or "").partition("[...]")[0]  # msgspec's word for an entry of any name
        parts = [part for part in (at, path, found and found["name"]) if part]
        raise InvalidRequestError(str(error), ".".join(parts) or None) from error
    except RecursionError as error:
        raise InvalidRequestError("the body is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        if "surrogate pair" in str(error):
            raise InvalidRequestError(r"the body has half a surrogate pair (\ud800 to \udfff)") from error
        raise InvalidRequestError("the body is not valid JSON in UTF-8") from error


def check_parameters(request: Request, known: frozenset[str] = frozenset()) -> None:
    """Refuse unknown query parameters.

    Raises:
        InvalidRequestError: A parameter is unknown. `param` names it.
    """
    for name in request.args:
        if name not in known:
            raise InvalidRequestError(f"there is no parameter {name!r}", name)


def idempotency_key(key: str | None) -> str | None:
    """Check an idempotency key.

    Args:
        key: The text of the header or parameter. None if the request has none.

    Raises:
        InvalidRequestError: The text is not a valid key.
    """
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequestError("an idempotency key is 1 to 255 visible ASCII characters", "Idempotency-Key")
    return key
