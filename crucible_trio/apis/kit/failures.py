"""What a failure of an engine means for the client of a foreign API."""

from __future__ import annotations

from typing import Final

from crucible_trio.records import ErrorInfo

# Engine codes that say this model can never answer the request.
CLIENTS_FAULT: Final = frozenset({"prompt_too_long", "unsupported_conversation"})

# Statuses of an upstream that are passed on. Clients repeat some of the others, such as 408, 409 and 425, and LangChain
# JS also repeats 410, 415, 422 and 499.
KEPT_STATUS: Final = frozenset({400, 401, 403, 404, 413})

# Seconds, where the upstream names none.
RETRY_AFTER: Final = 5


def may_be_mended(failure: ErrorInfo) -> bool:
    """Whether a repeat may succeed soon. Gateways report the end of a long generation as 408: not that one."""
    return failure.retryable and (failure.status is None or failure.status == 429 or failure.status >= 500)
