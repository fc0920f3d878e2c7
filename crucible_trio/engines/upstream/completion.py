"""Interpret the chunks of an OpenAI-style chat completion. No trio: nothing here waits.

Servers agree on `choices[0].delta.content` and on little else:

* The trace comes as `reasoning_content`, as `reasoning`, or between `<think>` tags inside `content`.
* The role chunk's `content` may be null. Usage may be missing, null, or in a chunk without choices.
* `finish_reason` says that the model has ended. `[DONE]` alone does not: a proxy writes it after a crash, too.
* A failure inside a stream is a chunk `{"error": ...}` under status 200.
"""

from __future__ import annotations

import json
import re
from typing import Final, TypeAlias, final

import msgspec

from crucible_trio.engines.segments import SegmentCutter
from crucible_trio.engines.upstream.think import ThinkPart, ThinkSplitter
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.sse import ServerSentEvent

UpstreamPiece: TypeAlias = tuple[int | None, str]
"""The segment of the trace (None: the answer) and the text."""

_DONE = "[DONE]"

# Finish reasons with which a server reports that generation failed (vLLM: abort, error).
_FAILED_FINISH: Final = frozenset({"abort", "error"})
# Passed on unchanged. Any other finish reason counts as `stop`.
_KNOWN_FINISH: Final = frozenset({"stop", "length", "content_filter"})

# A server's identifier for an error, such as exceed_context_size_error. The server's sentence may quote the prompt or
# the key, an identifier does not.
_IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z_]{2,63}")


class _UpstreamDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _UpstreamChoice(msgspec.Struct):
    index: int = 0
    delta: _UpstreamDelta | None = None
    finish_reason: str | None = None


class _UpstreamChunk(msgspec.Struct):
    choices: list[_UpstreamChoice] | None = None
    usage: object = None
    error: object = None


class _UpstreamUsageDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _UpstreamUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _UpstreamUsageDetails | None = None


_decoder = msgspec.json.Decoder(_UpstreamChunk)


@final
class UpstreamCompletion:
    """Folds the events of one stream into pieces of trace and answer.

    A trace is cut into segments at its numbered steps. A trace that resumes after a piece of the answer begins a new
    segment.

    Attributes:
        finish_reason: `stop`, `length` or `content_filter` once the model has ended, None before.
        done: Whether the server has sent `[DONE]`.
        usage: The server's token counts.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.done = False
        self.usage = Usage()
        self._splitter: ThinkSplitter | None = ThinkSplitter()  # None: the server separates the trace
        self._cutter: SegmentCutter | None = None  # set while the trace runs
        self._first_segment = 0  # of the cutter
        self._last_segment = -1

    def feed(self, event: ServerSentEvent) -> list[UpstreamPiece]:
        """Take the next event.

        Returns:
            The decided pieces in order, none of them empty.

        Raises:
            EngineError: `upstream_error` or `upstream_rejected` when the server reports a failure,
                `upstream_invalid_response` when the event is not a chunk.
        """
        data = event.data or ""
        if data.strip() == _DONE:
            self.done = True
            return []
        if event.event == "error":  # its data need not be JSON
            raise to_engine_error(None, find_error(data))
        chunk = _decode(data)
        if chunk.error:
            raise to_engine_error(None, chunk.error)
        if chunk.usage is not None:
            self.usage = _read_usage(chunk.usage)
        pieces: list[UpstreamPiece] = []
        for choice in chunk.choices or ():
            if choice.index == 0:  # the request asked for one choice
                self._feed_choice(choice, pieces)
        return pieces

    def flush(self) -> list[UpstreamPiece]:
        """End the text and return the text held back. Call it after a failure, too."""
        pieces: list[UpstreamPiece] = []
        self._stop_splitting(pieces)
        self._end_trace(pieces)
        return pieces

    def _feed_choice(self, choice: _UpstreamChoice, pieces: list[UpstreamPiece]) -> None:
        delta = choice.delta or _UpstreamDelta()
        trace = delta.reasoning_content or delta.reasoning  # some servers send the same text as both
        if trace:
            self._stop_splitting(pieces)
            self._append("trace", trace, pieces)
        if delta.content:
            if self._splitter is None:
                self._append("answer", delta.content, pieces)
            else:
                for part, text in self._splitter.feed(delta.content):
                    self._append(part, text, pieces)
        if choice.finish_reason in _FAILED_FINISH:
            message = f"The upstream server ended the completion with finish_reason {choice.finish_reason!r}."
            raise EngineError("upstream_error", message, retryable=True)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason if choice.finish_reason in _KNOWN_FINISH else "stop"

    def _stop_splitting(self, pieces: list[UpstreamPiece]) -> None:
        if self._splitter is not None:
            for part, text in self._splitter.flush():
                self._append(part, text, pieces)
            self._splitter = None

    def _append(self, part: ThinkPart, text: str, pieces: list[UpstreamPiece]) -> None:
        if part == "answer":
            self._end_trace(pieces)
            pieces.append((None, text))
            return
        if self._cutter is None:
            self._cutter = SegmentCutter()
            self._first_segment = self._last_segment + 1
        self._append_segments(self._cutter.feed(text), pieces)

    def _end_trace(self, pieces: list[UpstreamPiece]) -> None:
        if self._cutter is not None:
            self._append_segments(self._cutter.flush(), pieces)
            self._cutter = None

    def _append_segments(self, cut: list[tuple[int, str]], pieces: list[UpstreamPiece]) -> None:
        for segment, text in cut:
            self._last_segment = self._first_segment + segment
            pieces.append((self._last_segment, text))


def _decode(data: str) -> _UpstreamChunk:
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _not_a_chunk() from error
    except msgspec.DecodeError:
        # A character beyond U+FFFF can be split over two chunks, as two escapes of half a character each. msgspec
        # refuses such halves. `json` keeps them and the recorder joins them.
        try:
            return msgspec.convert(json.loads(data), _UpstreamChunk)
        except (ValueError, RecursionError) as error:
            raise _not_a_chunk() from error
    except RecursionError as error:
        raise _not_a_chunk() from error


def _not_a_chunk() -> EngineError:
    message = "The upstream server sent an event that is not a chat completion chunk."
    return EngineError("upstream_invalid_response", message)


def _read_usage(value: object) -> Usage:
    try:
        usage = msgspec.convert(value, _UpstreamUsage)
    except msgspec.ValidationError:  # an invalid count must not lose the answer
        return Usage()
    details = usage.completion_tokens_details or _UpstreamUsageDetails()
    return Usage(usage.prompt_tokens, usage.completion_tokens, details.reasoning_tokens)


def find_error(body: str | bytes) -> object:
    """Find the error in a body: the value of `error`, or the whole object, as vLLM sent it.

    Returns:
        None if the body is not a JSON object.
    """
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    return value.get("error", value) if isinstance(value, dict) else None


def to_engine_error(status: int | None, error: object) -> EngineError:
    """Translate a server's error into the error that the client gets.

    Args:
        status: The HTTP status. None for a failure inside a stream, where the error's `code` counts.
        error: What `find_error` returned.
    """
    fields = error if isinstance(error, dict) else {}
    words = [fields.get("code"), fields.get("type")]
    known = f"HTTP {status}" if status is not None else None
    name = next((word for word in words if isinstance(word, str) and _IDENTIFIER.fullmatch(word)), None)
    facts = ", ".join(fact for fact in (known, name) if fact)
    suffix = f" ({facts})." if facts else "."
    if status is None:
        code = fields.get("code")
        status = code if isinstance(code, int) else 500
    if status in {429, 503}:
        return EngineError("upstream_refused", f"The upstream server is overloaded{suffix}", retryable=True)
    if 300 <= status < 500 and status != 408:
        return EngineError("upstream_rejected", f"The upstream server rejected the request{suffix}")
    return EngineError("upstream_error", f"The upstream server failed{suffix}", retryable=True)
