"""What a request says, read and checked: body, parameters, idempotency key."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
import trio
from quart import Request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from crucible_trio.errors import InvalidRequestError
from crucible_trio.web.errors import BodyTooLargeError, UnsupportedMediaTypeError

T = TypeVar("T")

# A client that sends its request this slowly is not going to read a stream.
BODY_SECONDS: Final = 60.0

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# How msgspec says where: ``... field `x` - at `$.a` ``, and of the name of a field ``... - at `key` in `$.a` ``.
_FIELD = re.compile(
    r"(?:(?P<kind>unknown|required) field `(?P<name>[^`]*)`)?(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$"
)


async def read_body(request: Request, limit: int) -> bytearray:
    """Read a body that says it is JSON.

    Args:
        request: Whose body.
        limit: The most it may have, in bytes.

    Raises:
        UnsupportedMediaTypeError: It says it is something else.
        BodyTooLargeError: It is larger.
        RequestTimeout: It took longer than `BODY_SECONDS`.

    Cancellation: safe.
    """
    if request.mimetype != "application/json":
        raise UnsupportedMediaTypeError
    if (request.content_length or 0) > limit:
        raise BodyTooLargeError(limit)
    body = bytearray()
    with trio.move_on_after(BODY_SECONDS) as slow:
        try:
            async for chunk in request.body:
                body += chunk
                if len(body) > limit:
                    raise BodyTooLargeError(limit)
        except RequestEntityTooLarge as error:  # the application's own limit, which may be lower than ours
            raise BodyTooLargeError(request.max_content_length or limit) from error
    if slow.cancelled_caught:
        raise RequestTimeout
    return body


def valid(make: Callable[[], T], at: str = "") -> T:
    """Make a value of what came from outside.

    Args:
        make: Decodes or converts with msgspec.
        at: Where in the request the value stands, as a dotted path; empty for the whole.

    Raises:
        InvalidRequestError: It does not fit; `param` names the field.
    """
    try:
        return make()
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        parts = [part for part in (at, found and found["path"], found and found["name"]) if part]
        raise InvalidRequestError(str(error), ".".join(parts) or None) from error
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise InvalidRequestError("the body is not valid JSON in UTF-8") from error


def check_parameters(request: Request, known: frozenset[str]) -> None:
    """Refuse a query that holds something unknown.

    Raises:
        InvalidRequestError: It does; `param` names it.
    """
    for name in request.args:
        if name not in known:
            raise InvalidRequestError(f"there is no parameter {name!r}", name)


def idempotency_key(key: str | None) -> str | None:
    """The key, if there is one.

    Raises:
        InvalidRequestError: It is no key.
    """
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequestError("an idempotency key is 1 to 255 visible ASCII characters", "Idempotency-Key")
    return key
