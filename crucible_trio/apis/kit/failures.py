"""Streams that did not end well: what foreign APIs tell their clients about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crucible_trio.apis.kit.errors import ErrorAnswer
from crucible_trio.records import CancelledBy, ErrorInfo, IncompleteReason

# Engine codes that say this model can never answer the request.
CLIENTS_FAULT: Final = frozenset({"prompt_too_long", "unsupported_conversation"})

# The client has set these limits or can know them, so a stream that they end counts as cut to length. A deadline is
# different: an answer that stopped in the middle must not look complete.
CUT_TO_LENGTH: Final[frozenset[IncompleteReason]] = frozenset({"max_output_tokens", "log_limit"})

DEADLINE_MESSAGES: Final[dict[IncompleteReason, str]] = {
    "first_token_deadline": "The model did not begin in time.",
    "idle_deadline": "The model stopped in the middle.",
    "total_deadline": "The answer was not finished in time.",
}
CANCELLED_MESSAGES: Final[dict[CancelledBy, str]] = {
    "client": "The stream was cancelled.",
    "disconnect": "The stream was cancelled, because its client had left.",
    "shutdown": "The server is shutting down.",
}

# Statuses of an upstream that are passed on. Clients repeat some of the others, such as 408, 409 and 425, and LangChain
# JS also repeats 410, 415, 422 and 499.
KEPT_STATUS: Final = frozenset({400, 401, 403, 404, 413})

# Seconds, where the upstream names none.
RETRY_AFTER: Final = 5


def may_be_mended(failure: ErrorInfo) -> bool:
    """Whether a repeat may succeed soon. Gateways report the end of a long generation as 408: not that one."""
    return failure.retryable and (failure.status is None or failure.status == 429 or failure.status >= 500)


def retry_headers(answer: ErrorAnswer) -> Mapping[str, str]:
    """`X-Should-Retry: false`, where a retry is useless, for the SDKs of OpenAI and Anthropic.

    They retry 408, 409, 429 and 5xx without an idempotency key, and each retry would start another stream.
    """
    return {"X-Should-Retry": "false"} if answer.retry_after is None else {}
