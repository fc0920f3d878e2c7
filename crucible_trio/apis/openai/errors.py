"""OpenAI's shape of an error, for refused requests and for streams that do not end well."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Final, final

import msgspec

from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorRule, UnauthorizedError
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
from crucible_trio.errors import CrucibleError, UpstreamReport
from crucible_trio.records import (
    ErrorInfo,
    IncompleteReason,
    StreamCancelled,
    StreamFailed,
    StreamIncomplete,
    Terminal,
)


@final
class PreviousResponseNotFoundError(CrucibleError):
    """The response that `previous_response_id` names is not there, or not any more."""

    param: Final = "previous_response_id"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"there is no response {response_id[:64]!r}, or it is not kept any more")


@final
class ItemNotFoundError(CrucibleError):
    """The item that an `item_reference` names is not there, or not any more.

    Attributes:
        param: The field, as a dotted path.
    """

    def __init__(self, item_id: str, param: str) -> None:
        super().__init__(f"there is no item {item_id[:64]!r}, or its response is not kept any more")
        self.param = param


OPENAI_RULES: Final[Mapping[type[CrucibleError], ErrorRule]] = {
    UnauthorizedError: ErrorRule(401, "invalid_api_key"),
    PreviousResponseNotFoundError: ErrorRule(404, "previous_response_not_found"),
    ItemNotFoundError: ErrorRule(404, "item_not_found"),
}

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


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
        kind = answer.type or _type_of(answer.status)
        return OpenAIErrorEvent(OpenAIErrorBody(answer.message, kind, answer.param, answer.code))

    def headers(self, answer: ErrorAnswer) -> Mapping[str, str]:
        """Whether a retry is useless (`retry_headers`)."""
        return retry_headers(answer)


OPENAI_ERRORS: Final = OpenAIErrorShape()


def error_of(terminal: Terminal) -> OpenAIErrorBody | None:
    """The error that a client is told instead of a finish reason. None for a stream that ended well.

    Args:
        terminal: The stream's last record.
    """
    match terminal:
        case StreamFailed(error=error):
            return error_of_failure(error)
        case StreamIncomplete(reason=reason) if reason not in CUT_TO_LENGTH:
            return OpenAIErrorBody(DEADLINE_MESSAGES[reason], "server_error", None, reason)
        case StreamCancelled(by=by):
            return OpenAIErrorBody(CANCELLED_MESSAGES[by], "server_error", None, "cancelled")
    return None


def error_of_failure(error: ErrorInfo) -> OpenAIErrorBody:
    """The error of a failed stream, in the upstream's words if it blamed the request."""
    status = 400 if error.code in CLIENTS_FAULT else error.status
    if status is None or not 400 <= status < 500:
        return OpenAIErrorBody(error.message, "server_error", None, error.code)
    said = error.upstream or UpstreamReport()
    code = said.code or (error.code if status in KEPT_STATUS or status == 429 else f"upstream_{status}")
    return OpenAIErrorBody(said.message or error.message, said.type or _type_of(status), said.param, code)


def failure_answer(terminal: Terminal, *, repeatable: bool) -> ErrorAnswer:
    """How to answer a stream that did not end well, while the status line can still be chosen.

    A failure that a repeat cannot mend gets a status that no client repeats. Each repeat would be a whole generation.

    Args:
        terminal: Its last record, for which `error_of` has an error.
        repeatable: Whether the same request would start another stream. With an idempotency key it finds this one.
    """
    match terminal:
        case StreamFailed(error=failure):
            return answer_to_failure(failure, repeatable=repeatable)
        case StreamIncomplete(reason=reason):
            return answer_to_deadline(reason)
        case _:
            assert isinstance(terminal, StreamCancelled)
            message = CANCELLED_MESSAGES[terminal.by]
            if terminal.by == "shutdown":  # a new process knows no idempotency keys, so a repeat starts anew
                return ErrorAnswer(503, "cancelled", message, retry_after=RETRY_AFTER, type="server_error")
            return ErrorAnswer(400, "cancelled", message, type="server_error")


def answer_to_failure(failure: ErrorInfo, *, repeatable: bool) -> ErrorAnswer:
    """How to answer the failure of an engine. `repeatable` is that of `failure_answer`."""
    error = error_of_failure(failure)
    status, retry_after = 400, None
    if failure.status in KEPT_STATUS:
        status = failure.status
    elif failure.code not in CLIENTS_FAULT and repeatable and may_be_mended(failure):
        status = 429 if failure.status == 429 else 503
        retry_after = RETRY_AFTER if failure.retry_after is None else ceil(failure.retry_after)
    return ErrorAnswer(status, error.code or failure.code, error.message, error.param, retry_after, error.type)


def answer_to_deadline(reason: IncompleteReason) -> ErrorAnswer:
    """How to answer when a deadline has passed. A repeat would take as long again."""
    return ErrorAnswer(400, reason, DEADLINE_MESSAGES[reason], type="server_error")


def _type_of(status: int) -> str:
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
