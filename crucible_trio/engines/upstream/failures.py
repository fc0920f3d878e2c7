"""Find the error in what an upstream server sends, and translate it. No trio: nothing here waits.

Servers report a failure inside a stream in many forms, all of them under status 200:

* `{"error": ...}`, as text or as an object. Some put it into the choice.
* The object of the error without a frame: `{"object": "error", ...}`, `{"type": "error", ...}`, `{"detail": ...}`,
  `{"error_type": ..., "error_message": ...}`, `{"code": 400, "message": ...}`.
* `code` is an HTTP status as a number or as text, or an identifier.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from crucible_trio.engines.upstream.json_cuts import closed_again
from crucible_trio.errors import EngineError, UpstreamReport

# A server's identifier for an error, such as exceed_context_size_error. The server's sentence may quote the prompt or
# the key, an identifier does not.
_IDENTIFIER: Final = re.compile(r"[a-zA-Z][a-zA-Z_]{2,63}")

# Characters of a torn body in which an error is looked for. The sentence is at the beginning.
_MAX_CLOSED_LENGTH: Final = 16 * 1024

_CODE_FIELDS: Final = ("code", "status", "status_code", "error_code")
_WORD_FIELDS: Final = ("code", "error_code", "type", "error_type", "status")
# Fields that say by their presence that an object without choices is an error.
_ERROR_FIELDS: Final = ("error_type", "error_message", "error_code", "errors", "detail")
_MESSAGE_FIELDS: Final = ("message", "error_message", "error_msg", "detail")
# Values of a code or status with which a server says that all is well.
_SUCCESS: Final = (0, 200, "0", "200", "ok", "success")

# Identifiers that say as much as a status. In lower case. Sources: the API references of OpenAI, Anthropic and Gemini,
# and the servers of vLLM and llama.cpp.
_STATUS_OF_WORD: Final[Mapping[str, int]] = {
    "invalid_request_error": 400,
    "invalid_request": 400,
    "invalid_argument": 400,
    "badrequesterror": 400,
    "bad_request": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "notfounderror": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "overloaded_error": 503,
    "unavailable": 503,
    "unavailable_error": 503,
}


def find_error(body: str | bytes) -> object:
    """Find the error in a body: the value of `error`, or the whole object, as vLLM sent it.

    Args:
        body: The body, or its beginning: the prompt that a server quotes makes some of them very long.

    Returns:
        None if the body is not a JSON object, or a list with one.
    """
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    value = _decoded(text)
    if value is None:
        value = next(
            (found for closed in closed_again(text[:_MAX_CLOSED_LENGTH]) if (found := _decoded(closed)) is not None),
            None,
        )
    value = unwrapped(value)
    if not isinstance(value, dict):
        return None
    return value["error"] if _says_something(value.get("error")) else value


def unwrapped(value: object) -> object:
    """The object in a list with one error, as Gemini sends it. Any other value as it is."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "error" in value[0]:
        return value[0]
    return value


def error_in_chunk(chunk: Mapping[str, Any]) -> object:
    """Find the error that an object in a stream reports. None: it reports none."""
    if _says_something(error := chunk.get("error")):
        return error
    if chunk.get("object") == "error" or chunk.get("type") == "error":
        return chunk
    if chunk.get("choices"):
        return None
    if any(_says_something(chunk.get(name)) for name in _ERROR_FIELDS):
        return chunk
    if chunk.get("message") and ((_status_in(chunk) or 0) >= 400 or _says_something(chunk.get("code"))):
        return chunk
    return None


def to_engine_error(status: int | None, error: object, *, retry_after: float | None = None) -> EngineError:
    """Translate a server's error into the error that the client gets.

    The sentence of the result is ours, and may be logged. The server's own words are apart (`EngineError.upstream`).
    They are kept only if the server blames the request. An error about this server's key is never quoted.

    Args:
        status: The HTTP status. None for a failure inside a stream, where the error's `code` counts.
        error: What `find_error` or `error_in_chunk` returned.
        retry_after: Seconds after which the server wants to be asked again.
    """
    fields = error if isinstance(error, dict) else {}
    words = [word for name in _WORD_FIELDS if isinstance(word := fields.get(name), str) and _IDENTIFIER.fullmatch(word)]
    facts = words[:1]
    if status is not None:
        facts.insert(0, f"HTTP {status}")
    elif (status := _status_in(fields)) is not None:
        facts.insert(0, f"code {status}")
    else:
        status = next((_STATUS_OF_WORD[word.lower()] for word in words if word.lower() in _STATUS_OF_WORD), None)
    if status in {401, 403}:
        message = f"The upstream server does not accept this server's key ({facts[0]})."
        return EngineError("upstream_unauthorized", message, status=status)
    suffix = f" ({', '.join(facts)})." if facts else "."
    if status in {429, 503, 529}:  # 529: Anthropic
        failure = EngineError("upstream_refused", f"The upstream server is overloaded{suffix}", retryable=True)
    elif status is not None and 300 <= status < 500 and status != 408:
        failure = EngineError("upstream_rejected", f"The upstream server rejected the request{suffix}")
    else:
        failure = EngineError("upstream_error", f"The upstream server failed{suffix}", retryable=True)
    failure.status = status
    failure.retry_after = retry_after
    if status is not None and 400 <= status < 500:
        failure.upstream = _report(error)
    return failure


def _report(error: object) -> UpstreamReport | None:
    """The server's own words, if there are any."""
    if isinstance(error, str):
        return UpstreamReport(error)
    if not isinstance(error, dict):
        return None
    code = _text_in(error, ("code", "error_code"))
    return UpstreamReport(
        _text_in(error, _MESSAGE_FIELDS) or _details(error),
        _text_in(error, ("type", "error_type")),
        None if code is None or code.isdecimal() else code,
        _text_in(error, ("param",)),
    )


def _details(error: Mapping[str, Any]) -> str | None:
    """The sentences in the list of a validation error: FastAPI's (vLLM), and Mistral's, which has it in `message`."""
    outer = error.get("message")
    found = (outer if isinstance(outer, dict) else error).get("detail")
    sentences = []
    for item in found if isinstance(found, list) else [found]:
        if isinstance(item, str):
            sentences.append(item)
        elif isinstance(item, dict) and (sentence := _text_in(item, ("msg", *_MESSAGE_FIELDS))):
            loc = item.get("loc")
            place = ".".join(str(part) for part in loc if isinstance(part, str | int)) if isinstance(loc, list) else ""
            sentences.append(f"{place}: {sentence}" if place else sentence)
    return "; ".join(sentences) or None


def _decoded(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None


def _text_in(fields: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((value for name in names if isinstance(value := fields.get(name), str) and value), None)


def _says_something(value: object) -> bool:
    """Whether a field of an error reports one. Servers also send empty objects, and codes that mean success."""
    if isinstance(value, dict):
        return any(bool(part) and part not in _SUCCESS for part in value.values())
    word = value.lower() if isinstance(value, str) else value
    return bool(word) and word not in _SUCCESS


def _status_in(fields: Mapping[str, Any]) -> int | None:
    for name in _CODE_FIELDS:
        value = fields.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, (int, float)) and 100 <= value < 600:
            return int(value)
    return None
