"""Errors as data: the status and code of each error class, and the contract of an API's error shape.

Nothing here imports Quart, so that modules which only parse requests can raise these errors. `replies` makes the
responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, final

from werkzeug.exceptions import HTTPException

from crucible_trio.errors import (
    CrucibleError,
    CursorAheadError,
    DrainingError,
    IdempotencyConflictError,
    InvalidLastEventIdError,
    InvalidRequestError,
    LogLostError,
    LogUnavailableError,
    OverloadedError,
    OwnerLimitError,
    StreamExpiredError,
    StreamNotFoundError,
    TooManyReadersError,
)


@final
class UnauthorizedError(CrucibleError):
    """The request has no key, or one that is not configured."""

    def __init__(self) -> None:
        super().__init__("a valid key is needed: Authorization: Bearer ...")


@final
class ForbiddenError(CrucibleError):
    """The request comes from a page, or names a host, that may not call this server."""


@final
class UnsupportedMediaTypeError(CrucibleError):
    """The body is not JSON, or has an encoding that the server does not read.

    Attributes:
        encoding: The value of `Content-Encoding`. None if the type is at fault.
    """

    def __init__(self, encoding: str | None = None) -> None:
        message = "the body must be application/json"
        if encoding is not None:
            message = f"the body has the content encoding {encoding[:64]!a}: send it without one"
        super().__init__(message)
        self.encoding = encoding


@final
class BodyTooLargeError(CrucibleError):
    """The body is larger than the server accepts.

    Attributes:
        limit: The largest accepted body, in bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")
        self.limit = limit


@final
class UnsupportedParameterError(CrucibleError):
    """The API has this field, but this server or model does not support its value.

    Attributes:
        param: The field, as a dotted path.
        why: The reason, if the field does not say it. Part of the message.
    """

    def __init__(self, param: str, why: str = "") -> None:
        super().__init__(f"{param} is not supported here" + (f": {why}" if why else ""))
        self.param = param
        self.why = why


@final
class UnknownParameterError(CrucibleError):
    """The API has no such field.

    Attributes:
        param: The field, as a dotted path.
    """

    def __init__(self, param: str) -> None:
        super().__init__(f"there is no parameter {param!r}")
        self.param = param


@final
class ModelNotFoundError(CrucibleError):
    """No model has this name."""

    param: Final = "model"

    def __init__(self, name: str, models: tuple[str, ...]) -> None:
        super().__init__(f"there is no model {name!r}; there is {', '.join(models)}")


@final
@dataclass(frozen=True, slots=True)
class ErrorRule:
    """How errors of one class are answered.

    Attributes:
        status: The HTTP status.
        code: The error code for programs. Metrics count by it.
        retry_after: When to try again, in seconds. None where trying again does not help.
    """

    status: int
    code: str
    retry_after: int | None = None


# 409 must not appear here: client SDKs retry it, and would start a second stream.
ERROR_RULES: Final[Mapping[type[CrucibleError], ErrorRule]] = {
    InvalidRequestError: ErrorRule(400, "invalid_request"),
    InvalidLastEventIdError: ErrorRule(400, "invalid_last_event_id"),
    CursorAheadError: ErrorRule(400, "cursor_ahead"),
    UnsupportedParameterError: ErrorRule(400, "unsupported_parameter"),
    UnknownParameterError: ErrorRule(400, "unknown_parameter"),
    UnauthorizedError: ErrorRule(401, "unauthorized"),
    ForbiddenError: ErrorRule(403, "forbidden"),
    ModelNotFoundError: ErrorRule(404, "model_not_found"),
    StreamNotFoundError: ErrorRule(404, "stream_not_found"),
    StreamExpiredError: ErrorRule(410, "stream_expired"),
    BodyTooLargeError: ErrorRule(413, "body_too_large"),
    UnsupportedMediaTypeError: ErrorRule(415, "unsupported_media_type"),
    IdempotencyConflictError: ErrorRule(422, "idempotency_conflict"),
    OwnerLimitError: ErrorRule(429, "too_many_streams", retry_after=5),
    TooManyReadersError: ErrorRule(429, "too_many_readers", retry_after=5),
    OverloadedError: ErrorRule(503, "overloaded", retry_after=5),
    LogUnavailableError: ErrorRule(503, "log_unavailable", retry_after=5),
    LogLostError: ErrorRule(503, "log_lost", retry_after=5),
    DrainingError: ErrorRule(503, "draining", retry_after=5),
}


@final
@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """One error, ready to be written in the shape of an API.

    Attributes:
        status: The HTTP status.
        code: The error code for programs.
        message: A sentence for people.
        param: The field at fault, as a dotted path. None if it is the request as a whole.
        retry_after: When to try again, in seconds. None where trying again does not help.
        type: The coarse kind for APIs that have one. None: the status decides.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None
    type: str | None = None


class ErrorShape(Protocol):
    """How one API writes errors."""

    @property
    def rules(self) -> Mapping[type[CrucibleError], ErrorRule]:
        """The rules that differ from `ERROR_RULES`, and those for errors that only this API raises."""

    def body(self, answer: ErrorAnswer) -> object:
        """The JSON of the response. A text is sent as plain text."""

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """Headers of this API. `Retry-After` and `WWW-Authenticate` are added for every API."""


def answer_to(error: CrucibleError, shape: ErrorShape) -> ErrorAnswer:
    """How to answer an error that this package raised."""
    rule = shape.rules.get(type(error)) or ERROR_RULES[type(error)]
    return ErrorAnswer(rule.status, rule.code, str(error), getattr(error, "param", None), rule.retry_after)


def answer_to_http_error(error: HTTPException) -> ErrorAnswer:
    """How to answer an error that Quart raised (404, 405, 408 and so on). An unexpected exception is 500."""
    status = error.code or 500
    message = {404: "there is no such path", 405: "the path has no such method"}.get(status, error.name)
    return ErrorAnswer(status, error.name.lower().replace(" ", "_"), message)
