"""Anthropic's shape of an error, for refused requests and for streams that do not end well."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final, Literal, final

import msgspec

from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule
from crucible_trio.apis.kit.failures import (
    CANCELLED_MESSAGES,
    CLIENTS_FAULT,
    CUT_TO_LENGTH,
    DEADLINE_MESSAGES,
    KEPT_STATUS,
    RETRY_AFTER,
    may_be_mended,
    retry_headers,
)
from crucible_trio.errors import CrucibleError, DrainingError, OverloadedError, UpstreamReport
from crucible_trio.records import ErrorInfo, StreamCancelled, StreamFailed, StreamIncomplete, Terminal

OVERLOADED: Final = 529
_TIMEOUT: Final = 504
_TOO_MANY: Final = 429


@final
class CannotCountError(CrucibleError):
    """No engine here counts the tokens of a request without generating."""

    def __init__(self) -> None:
        super().__init__("this server does not count tokens before it generates: read usage in the answer")


ANTHROPIC_RULES: Final[Mapping[type[CrucibleError], ErrorRule]] = {
    # Clients of gateways take 404 for "no such route", and estimate.
    CannotCountError: ErrorRule(404, "cannot_count_tokens"),
    OverloadedError: ErrorRule(OVERLOADED, "overloaded", retry_after=RETRY_AFTER),
    DrainingError: ErrorRule(OVERLOADED, "draining", retry_after=RETRY_AFTER),
}

_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    410: "not_found_error",
    413: "request_too_large",
    _TOO_MANY: "rate_limit_error",
    503: "overloaded_error",
    _TIMEOUT: "timeout_error",
    OVERLOADED: "overloaded_error",
}


@final
class AnthropicErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """One error.

    Attributes:
        type: Its coarse kind.
        message: A sentence for people.
        code: Its fine kind, which Anthropic's API does not have.
        param: The field at fault, as a dotted path. Anthropic's API does not have it either.
    """

    type: str
    message: str
    code: str
    param: str | None = None


@final
class AnthropicError(msgspec.Struct, frozen=True):
    """An error as the JSON of a response, or of an event in a stream."""

    error: AnthropicErrorBody
    type: Literal["error"] = "error"


@final
class AnthropicErrorShape:
    """Writes errors for the Messages API (`ErrorShape`)."""

    rules: Final = ANTHROPIC_RULES

    def body(self, answer: ErrorAnswer) -> AnthropicError:
        """The JSON of the response."""
        kind = type_of(answer.status)
        return AnthropicError(AnthropicErrorBody(kind, answer.message, answer.code, answer.param))

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """Whether a retry is useless (`retry_headers`)."""
        return retry_headers(answer)


ANTHROPIC_ERRORS: Final = AnthropicErrorShape()


def failure_answer(terminal: Terminal, *, repeatable: bool) -> ErrorAnswer | None:
    """How to answer a stream that did not end well, while the status line can still be chosen.

    Args:
        terminal: Its last record.
        repeatable: Whether the same request would start another stream. With an idempotency key it finds this one.

    Returns:
        None for a stream that ended well. The answer has `retry_after` only if a repeat may succeed.
    """
    match terminal:
        case StreamFailed(error=failure):
            return _answer_to_failure(failure, repeatable=repeatable)
        case StreamIncomplete(reason=reason) if reason not in CUT_TO_LENGTH:
            return ErrorAnswer(_TIMEOUT, reason, DEADLINE_MESSAGES[reason])
        case StreamCancelled(by=by):
            if by == "shutdown":  # a new process knows no idempotency keys, so a repeat starts anew
                return ErrorAnswer(OVERLOADED, "cancelled", CANCELLED_MESSAGES[by], retry_after=RETRY_AFTER)
            return ErrorAnswer(500, "cancelled", CANCELLED_MESSAGES[by])
    return None


def error_of(terminal: Terminal) -> AnthropicError | None:
    """The error that a client is told in the stream, as its last event. None for a stream that ended well."""
    answer = failure_answer(terminal, repeatable=True)
    return None if answer is None else ANTHROPIC_ERRORS.body(answer)


def type_of(status: int) -> str:
    """Anthropic's type for a status."""
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def _answer_to_failure(failure: ErrorInfo, *, repeatable: bool) -> ErrorAnswer:
    status = 400 if failure.code in CLIENTS_FAULT else failure.status
    is_refusal = status is not None and 400 <= status < 500
    said = (failure.upstream if is_refusal else None) or UpstreamReport()
    retry_after: int | None = None
    if status in KEPT_STATUS:
        pass
    elif repeatable and may_be_mended(failure):
        status = _TOO_MANY if status == _TOO_MANY else OVERLOADED
        retry_after = RETRY_AFTER if failure.retry_after is None else ceil(failure.retry_after)
    else:
        status = 400 if is_refusal and status != _TOO_MANY else 500
    assert status is not None
    code = said.code or failure.code
    return ErrorAnswer(status, code, said.message or failure.message, said.param, retry_after)
