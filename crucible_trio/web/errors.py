"""Errors on the wire: one table from class to status, and one JSON shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException

from crucible_trio.errors import (
    CrucibleError,
    CursorAheadError,
    DrainingError,
    IdempotencyConflictError,
    InvalidLastEventIdError,
    InvalidRequestError,
    OverloadedError,
    OwnerLimitError,
    StreamExpiredError,
    StreamNotFoundError,
)
from crucible_trio.web.responses import json_response


@final
class UnauthorizedError(CrucibleError):
    """No key, or none that is configured."""

    def __init__(self) -> None:
        super().__init__("a valid key is needed: Authorization: Bearer ...")


@final
class ForbiddenError(CrucibleError):
    """The request comes from a page, or names a host, that may not call this server."""


@final
class UnsupportedMediaTypeError(CrucibleError):
    """The body is not JSON."""

    def __init__(self) -> None:
        super().__init__("the body must be application/json")


@final
class BodyTooLargeError(CrucibleError):
    """The body is larger than the server takes.

    Attributes:
        limit: The most it takes, in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")
        self.limit = limit


@final
@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    retry_after: int | None = None


# Never 409: client SDKs retry it, and would start a second stream.
_ANSWERS: Final[dict[type[CrucibleError], _Answer]] = {
    InvalidRequestError: _Answer(400, "invalid_request"),
    InvalidLastEventIdError: _Answer(400, "invalid_last_event_id"),
    CursorAheadError: _Answer(400, "cursor_ahead"),
    UnauthorizedError: _Answer(401, "unauthorized"),
    ForbiddenError: _Answer(403, "forbidden"),
    StreamNotFoundError: _Answer(404, "stream_not_found"),
    StreamExpiredError: _Answer(410, "stream_expired"),
    BodyTooLargeError: _Answer(413, "body_too_large"),
    UnsupportedMediaTypeError: _Answer(415, "unsupported_media_type"),
    IdempotencyConflictError: _Answer(422, "idempotency_conflict"),
    OwnerLimitError: _Answer(429, "too_many_streams", retry_after=5),
    OverloadedError: _Answer(503, "overloaded", retry_after=5),
    DrainingError: _Answer(503, "draining", retry_after=5),
}


class _Body(msgspec.Struct, omit_defaults=True):
    code: str
    message: str
    param: str | None = None


def code_of(error: CrucibleError) -> str:
    """The `code` that clients and metrics see for an error."""
    return _ANSWERS[type(error)].code


def error_response(error: CrucibleError) -> Response:
    """The answer for an error of ours."""
    answer = _ANSWERS[type(error)]
    response = _error(answer.status, answer.code, str(error), getattr(error, "param", None))
    if answer.retry_after is not None:
        response.headers["Retry-After"] = str(answer.retry_after)
    if answer.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def http_error_response(error: HTTPException) -> Response:
    """The answer for what Quart itself refuses (404, 405, 408 and so on), and for an error nobody expected (500).

    A coroutine function, because Quart would run a plain one in a thread. Checkpoints: never.
    """
    status = error.code or 500
    message = {404: "there is no such path", 405: "the path has no such method"}.get(status, error.name)
    response = _error(status, error.name.lower().replace(" ", "_"), message)
    for name, value in error.get_headers():
        if name.lower() != "content-type":  # Allow, for one
            response.headers[name] = value
    return response


def _error(status: int, code: str, message: str, param: str | None = None) -> Response:
    return json_response({"error": _Body(code, message, param)}, status)
