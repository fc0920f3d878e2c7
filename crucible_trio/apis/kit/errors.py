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
class Answer:
    """How an error is answered, whatever an API's body looks like.

    Attributes:
        status: The HTTP status.
        code: For programs; metrics count by it.
        retry_after: When to try again, in seconds; None where trying again does not help.
    """

    status: int
    code: str
    retry_after: int | None = None

    def add_headers(self, response: Response) -> None:
        """Add what belongs to the status."""
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"


# Never 409: client SDKs retry it, and would start a second stream.
_ANSWERS: Final[dict[type[CrucibleError], Answer]] = {
    InvalidRequestError: Answer(400, "invalid_request"),
    InvalidLastEventIdError: Answer(400, "invalid_last_event_id"),
    CursorAheadError: Answer(400, "cursor_ahead"),
    UnauthorizedError: Answer(401, "unauthorized"),
    ForbiddenError: Answer(403, "forbidden"),
    StreamNotFoundError: Answer(404, "stream_not_found"),
    StreamExpiredError: Answer(410, "stream_expired"),
    BodyTooLargeError: Answer(413, "body_too_large"),
    UnsupportedMediaTypeError: Answer(415, "unsupported_media_type"),
    IdempotencyConflictError: Answer(422, "idempotency_conflict"),
    OwnerLimitError: Answer(429, "too_many_streams", retry_after=5),
    OverloadedError: Answer(503, "overloaded", retry_after=5),
    DrainingError: Answer(503, "draining", retry_after=5),
}


class _Body(msgspec.Struct, omit_defaults=True):
    code: str
    message: str
    param: str | None = None


def answer_to(error: CrucibleError) -> Answer:
    """How an error of ours is answered."""
    return _ANSWERS[type(error)]


def error_response(error: CrucibleError) -> Response:
    """The native answer for an error of ours."""
    answer = answer_to(error)
    response = _error(answer, str(error), getattr(error, "param", None))
    answer.add_headers(response)
    return response


async def http_error_response(error: HTTPException) -> Response:
    """The native answer for what Quart itself refuses.

    A coroutine function, because Quart would run a plain one in a thread. Checkpoints: never.
    """
    answer, message = answer_to_http_error(error)
    response = _error(answer, message)
    copy_headers(error, response)
    return response


def answer_to_http_error(error: HTTPException) -> tuple[Answer, str]:
    """How to answer what Quart itself refuses (404, 405, 408 and so on), and an error nobody expected (500).

    Returns:
        The answer, and the sentence for people.
    """
    status = error.code or 500
    message = {404: "there is no such path", 405: "the path has no such method"}.get(status, error.name)
    return Answer(status, error.name.lower().replace(" ", "_")), message


def copy_headers(error: HTTPException, response: Response) -> None:
    """Give the response the headers that Quart's own would have: `Allow`, for one."""
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers[name] = value


def _error(answer: Answer, message: str, param: str | None = None) -> Response:
    return json_response({"error": _Body(answer.code, message, param)}, answer.status)
