"""OpenAI's shape of an error, for refused requests and for streams that do not end well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule, UnauthorizedError
from crucible_trio.errors import CrucibleError
from crucible_trio.records import (
    CancelledBy,
    IncompleteReason,
    StreamCancelled,
    StreamFailed,
    StreamIncomplete,
    Terminal,
)

# Engine codes that say this model can never answer the request. `upstream_rejected` is not one of them: the upstream
# may have rejected this server's own key.
CLIENTS_FAULT: Final = frozenset({"prompt_too_long", "unsupported_conversation"})

# The client has set these limits or can know them, so a stream that they end counts as cut to length. A deadline is
# different: an answer that stopped in the middle must not look complete.
_CUT_TO_LENGTH: Final[frozenset[IncompleteReason]] = frozenset({"max_output_tokens", "log_limit"})

_DEADLINES: Final[dict[IncompleteReason, str]] = {
    "first_token_deadline": "The model did not begin in time.",
    "idle_deadline": "The model stopped in the middle.",
    "total_deadline": "The answer was not finished in time.",
}
_CANCELLED: Final[dict[CancelledBy, str]] = {
    "client": "The stream was cancelled.",
    "disconnect": "The stream was cancelled, because its client had left.",
    "shutdown": "The server is shutting down.",
}


@final
class ModelNotFoundError(CrucibleError):
    """No model has this name."""

    param: Final = "model"

    def __init__(self, name: str, models: tuple[str, ...]) -> None:
        super().__init__(f"there is no model {name!r}; there is {', '.join(models)}")


OPENAI_RULES: Final[Mapping[type[CrucibleError], ErrorRule]] = {
    UnauthorizedError: ErrorRule(401, "invalid_api_key"),
    ModelNotFoundError: ErrorRule(404, "model_not_found"),
}

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    499: "server_error",  # a cancelled stream is not the request's fault
}


@final
class OpenAIErrorBody(msgspec.Struct, frozen=True):
    """One error.

    Attributes:
        message: A sentence for people.
        type: Its coarse kind.
        param: The field at fault, as a dotted path.
        code: Its fine kind.
    """

    message: str
    type: str
    param: str | None
    code: str | None


@final
class OpenAIErrorEvent(msgspec.Struct, frozen=True):
    """An error as the JSON of a response, or of an event in a stream."""

    error: OpenAIErrorBody


@final
class OpenAIErrorShape:
    """Writes errors for OpenAI's APIs (`ErrorShape`)."""

    rules: Final = OPENAI_RULES

    def body(self, answer: ErrorAnswer) -> object:
        """The JSON of the response."""
        kind = _TYPES.get(answer.status) or ("invalid_request_error" if answer.status < 500 else "server_error")
        return OpenAIErrorEvent(OpenAIErrorBody(answer.message, kind, answer.param, answer.code))

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """`X-Should-Retry: false`, where a retry is useless.

        The SDKs retry 408, 409, 429 and 5xx without an idempotency key, and each retry would start another stream.
        """
        return {"X-Should-Retry": "false"} if answer.retry_after is None else {}


OPENAI_ERRORS: Final = OpenAIErrorShape()


def error_of(terminal: Terminal) -> OpenAIErrorBody | None:
    """The error that a client is told instead of a finish reason. None for a stream that ended well.

    Args:
        terminal: The stream's last record.
    """
    match terminal:
        case StreamFailed(error=error):
            kind = "invalid_request_error" if error.code in CLIENTS_FAULT else "server_error"
            return OpenAIErrorBody(error.message, kind, None, error.code)
        case StreamIncomplete(reason=reason) if reason not in _CUT_TO_LENGTH:
            return OpenAIErrorBody(_DEADLINES[reason], "server_error", None, reason)
        case StreamCancelled(by=by):
            return OpenAIErrorBody(_CANCELLED[by], "server_error", None, "cancelled")
    return None


def failure_answer(terminal: Terminal, *, repeatable: bool) -> ErrorAnswer:
    """How to answer a stream that did not end well, while the status line can still be chosen.

    Args:
        terminal: Its last record, for which `error_of` has an error.
        repeatable: Whether the same request would start another stream. With an idempotency key it finds this one.
    """
    error = error_of(terminal)
    assert error is not None
    assert error.code is not None
    status, may_retry = 499, False  # the status that proxies log for a client that closed its request
    match terminal:
        case StreamFailed() if error.code in CLIENTS_FAULT:
            status = 400
        case StreamFailed(error=failure):
            may_retry = failure.retryable and repeatable
            status = 503 if may_retry else 500
        case StreamIncomplete():  # a deadline, and the same request would take as long again
            status = 504
        case StreamCancelled(by="shutdown"):  # a new process knows no idempotency keys, so a repeat starts anew
            status, may_retry = 503, True
    return ErrorAnswer(status, error.code, error.message, retry_after=5 if may_retry else None)
