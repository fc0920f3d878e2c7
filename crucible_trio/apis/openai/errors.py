"""OpenAI's form of an error, for everything that its routes refuse or cannot finish."""

from __future__ import annotations

from typing import Final, final

import msgspec
from quart import Response
from werkzeug.exceptions import HTTPException

from crucible_trio.dialects.chat import CLIENTS_FAULT, ErrorBody, error_of
from crucible_trio.errors import CrucibleError, TooManyReadersError
from crucible_trio.records import StreamCancelled, StreamFailed, StreamIncomplete, Terminal
from crucible_trio.web.errors import Answer, UnauthorizedError, answer_to_http_error, copy_headers
from crucible_trio.web.errors import answer_to as native_answer_to
from crucible_trio.web.responses import json_response


@final
class UnsupportedParameterError(CrucibleError):
    """OpenAI knows the field, this server cannot do what it asks for.

    Attributes:
        param: The field, as a dotted path.
    """

    def __init__(self, param: str) -> None:
        super().__init__(f"{param} is not supported here")
        self.param = param


@final
class UnknownParameterError(CrucibleError):
    """There is no such field.

    Attributes:
        param: The field, as a dotted path.
    """

    def __init__(self, param: str) -> None:
        super().__init__(f"there is no parameter {param!r}")
        self.param = param


@final
class ModelNotFoundError(CrucibleError):
    """There is no such model."""

    param: Final = "model"

    def __init__(self, name: str, models: tuple[str, ...]) -> None:
        super().__init__(f"there is no model {name!r}; there is {', '.join(models)}")


# What differs from the native table, or is not in it.
_ANSWERS: Final[dict[type[CrucibleError], Answer]] = {
    UnsupportedParameterError: Answer(400, "unsupported_parameter"),
    UnknownParameterError: Answer(400, "unknown_parameter"),
    UnauthorizedError: Answer(401, "invalid_api_key"),
    ModelNotFoundError: Answer(404, "model_not_found"),
    # Natively this is `server.busy`, which a client of these wires does not know.
    TooManyReadersError: Answer(429, "too_many_readers", retry_after=5),
}

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def answer_to(error: CrucibleError) -> Answer:
    """How an error of ours is answered on these routes; never with 409, which the SDKs repeat."""
    return _ANSWERS.get(type(error)) or native_answer_to(error)


def error_response(error: CrucibleError) -> Response:
    """The answer for an error of ours."""
    return _error(answer_to(error), str(error), getattr(error, "param", None))


async def http_error_response(error: HTTPException) -> Response:
    """The answer for what Quart itself refuses. A coroutine function, as the native one. Checkpoints: never."""
    answer, message = answer_to_http_error(error)
    response = _error(answer, message)
    copy_headers(error, response)
    return response


def failure_response(terminal: Terminal, *, repeatable: bool) -> Response:
    """The answer for a stream that did not end well, where the status line is not out yet.

    Args:
        terminal: Its last record, one that `error_of` has an error for.
        repeatable: Whether the same request would start another stream. With an idempotency key it finds this one.
    """
    body = error_of(terminal)
    assert body is not None
    assert body.code is not None
    match terminal:
        case StreamFailed() if body.code in CLIENTS_FAULT:
            answer = Answer(400, body.code)
        case StreamFailed(error=error):
            answer = _later(body.code) if error.retryable and repeatable else Answer(500, body.code)
        case StreamIncomplete():  # the same request takes as long again
            answer = Answer(504, body.code)
        case StreamCancelled(by="shutdown"):  # after which there is no key either
            answer = _later(body.code)
        case _:
            answer = Answer(499, body.code)  # what proxies log for a client that closed its request
    return _response(answer, body)


def _later(code: str) -> Answer:
    return Answer(503, code, retry_after=5)


def _error(answer: Answer, message: str, param: str | None = None) -> Response:
    kind = _TYPES.get(answer.status) or ("invalid_request_error" if answer.status < 500 else "server_error")
    return _response(answer, ErrorBody(message, kind, param, answer.code))


def _response(answer: Answer, body: ErrorBody) -> Response:
    response = json_response({"error": msgspec.structs.asdict(body)}, answer.status)
    answer.add_headers(response)
    if answer.retry_after is None:
        # The SDKs repeat 408, 429 and 5xx by themselves, and 409; each repeat would be a generation of its own.
        response.headers["X-Should-Retry"] = "false"
    return response
