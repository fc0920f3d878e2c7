"""The error of a failed response, with the codes by which clients of responses decide whether to repeat it.

After the status line a client has no status and no `Retry-After`. Codex reads `error.code` instead, and the seconds
from the message. It repeats a response that failed with a code that it does not know, up to five times.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Final

import msgspec

from crucible_trio.apis.openai.errors import OpenAIErrorBody, error_of_failure
from crucible_trio.records import ErrorInfo

RATE_LIMITED: Final = "rate_limit_exceeded"
TOO_LONG: Final = "context_length_exceeded"
NO_QUOTA: Final = "insufficient_quota"

# By other names: that of llama.cpp, and that of the local engine. vLLM has only a sentence.
_CODES: Final = {
    **{code: code for code in (RATE_LIMITED, TOO_LONG, NO_QUOTA)},
    "exceed_context_size_error": TOO_LONG,
    "prompt_too_long": TOO_LONG,
}
_SAYS_TOO_LONG: Final = re.compile(r"maximum context length|maximum model length", re.IGNORECASE)
_SAYS_WHEN: Final = re.compile(r"try again in\s*\d", re.IGNORECASE)


def late_error(failure: ErrorInfo) -> OpenAIErrorBody:
    """The error of a failed stream as `response.failed` tells it."""
    error = error_of_failure(failure)
    code = _code(failure, error)
    message = error.message
    if code == RATE_LIMITED and failure.retry_after is not None and not _SAYS_WHEN.search(message):
        message = f"{message} Please try again in {ceil(failure.retry_after)} s."
    return msgspec.structs.replace(error, code=code, message=message)


def _code(failure: ErrorInfo, error: OpenAIErrorBody) -> str | None:
    for word in (error.code, error.type):
        if word in _CODES:
            return _CODES[word]
    if failure.status == 429:
        return RATE_LIMITED
    has_code = failure.upstream is not None and failure.upstream.code is not None
    if failure.status == 400 and not has_code and _SAYS_TOO_LONG.search(error.message):
        return TOO_LONG
    return error.code
