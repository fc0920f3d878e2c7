"""What the chunks of an OpenAI-style chat completion mean. No trio: nothing here waits.

Servers agree on `choices[0].delta.content` and on little else:

* The trace comes as `reasoning_content`, as `reasoning`, or between `<think>` tags inside `content`.
* The role chunk's `content` may be null; usage may be missing, null, or in a chunk without choices.
* `finish_reason` is what says that the model has ended. `[DONE]` alone does not: a proxy writes it after a crash, too.
* A failure inside a stream is a chunk `{"error": ...}` under status 200.
"""

from __future__ import annotations

import json
import re
from typing import Final, TypeAlias, final

import msgspec

from crucible_trio.engines.segments import SegmentCutter
from crucible_trio.engines.upstream.think import Part, ThinkSplitter
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.sse import ServerSentEvent

Piece: TypeAlias = tuple[int | None, str]  # the segment of the trace, None for the answer; the text

_DONE = "[DONE]"

# The names under which a server reports that it gave up in the middle (vLLM: abort, error).
_FAILED_FINISH: Final = frozenset({"abort", "error"})
# Passed on as they are; anything else a server makes up counts as a normal end.
_KNOWN_FINISH: Final = frozenset({"stop", "length", "content_filter"})

# A server's own word for an error, such as exceed_context_size_error. Its sentence may quote the prompt or the key; a
# plain word does not.
_IDENTIFIER = re.compile(r"[a-zA-Z][a-zA-Z_]{2,63}")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: object = None
    error: object = None


class _UsageDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _UsageDetails | None = None


_decoder = msgspec.json.Decoder(_Chunk)


@final
class Completion:
    """Folds the events of one stream into pieces of trace and answer.

    A trace is cut into segments at its numbered steps; one that begins again after a piece of the answer begins a new
    segment.

    Attributes:
        finish_reason: `stop`, `length` or `content_filter` once the model has ended; None before.
        done: Whether the server has said that nothing follows.
        usage: Tokens as the server counted them.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.done = False
        self.usage = Usage()
        self._splitter: ThinkSplitter | None = ThinkSplitter()  # None: the server takes the trace out by itself
        self._cutter: SegmentCutter | None = None  # while the trace runs
        self._first_segment = 0  # of the cutter
        self._last_segment = -1

    def feed(self, event: ServerSentEvent) -> list[Piece]:
        """Take the next event.

        Returns:
            The pieces that are decided, in order; no text is empty.

        Raises:
            EngineError: `upstream_error` or `upstream_rejected` when the server reports a failure, `upstream_rubbish`
                when the event is no chunk.
        """
        data = event.data or ""
        if data.strip() == _DONE:
            self.done = True
            return []
        if event.event == "error":  # it need not be JSON then
            raise failure(None, error_of(data))
        chunk = _decode(data)
        if chunk.error:
            raise failure(None, chunk.error)
        if chunk.usage is not None:
            self.usage = _read_usage(chunk.usage)
        pieces: list[Piece] = []
        for choice in chunk.choices or ():
            if choice.index == 0:  # we asked for one
                self._feed_choice(choice, pieces)
        return pieces

    def flush(self) -> list[Piece]:
        """End the text, whatever ended it: what was held back comes out."""
        pieces: list[Piece] = []
        self._stop_splitting(pieces)
        self._end_trace(pieces)
        return pieces

    def _feed_choice(self, choice: _Choice, pieces: list[Piece]) -> None:
        delta = choice.delta or _Delta()
        trace = delta.reasoning_content or delta.reasoning  # some send the same text as both
        if trace:
            self._stop_splitting(pieces)
            self._take("trace", trace, pieces)
        if delta.content:
            if self._splitter is None:
                self._take("answer", delta.content, pieces)
            else:
                for part, text in self._splitter.feed(delta.content):
                    self._take(part, text, pieces)
        if choice.finish_reason in _FAILED_FINISH:
            raise EngineError("upstream_error", "The upstream server gave up before the end.", retryable=True)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason if choice.finish_reason in _KNOWN_FINISH else "stop"

    def _stop_splitting(self, pieces: list[Piece]) -> None:
        if self._splitter is not None:
            for part, text in self._splitter.flush():
                self._take(part, text, pieces)
            self._splitter = None

    def _take(self, part: Part, text: str, pieces: list[Piece]) -> None:
        if part == "answer":
            self._end_trace(pieces)
            pieces.append((None, text))
            return
        if self._cutter is None:
            self._cutter = SegmentCutter()
            self._first_segment = self._last_segment + 1
        self._number(self._cutter.feed(text), pieces)

    def _end_trace(self, pieces: list[Piece]) -> None:
        if self._cutter is not None:
            self._number(self._cutter.flush(), pieces)
            self._cutter = None

    def _number(self, cut: list[tuple[int, str]], pieces: list[Piece]) -> None:
        for segment, text in cut:
            self._last_segment = self._first_segment + segment
            pieces.append((self._last_segment, text))


def _decode(data: str) -> _Chunk:
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _not_a_chunk() from error
    except msgspec.DecodeError:
        # A character beyond U+FFFF can be cut over two chunks, as two escapes that are half a character each. msgspec
        # refuses them, `json` keeps the halves, and the recorder joins them.
        try:
            return msgspec.convert(json.loads(data), _Chunk)
        except (ValueError, RecursionError) as error:
            raise _not_a_chunk() from error
    except RecursionError as error:
        raise _not_a_chunk() from error


def _not_a_chunk() -> EngineError:
    return EngineError("upstream_rubbish", "The upstream server sent something that is no chat completion chunk.")


def _read_usage(value: object) -> Usage:
    try:
        usage = msgspec.convert(value, _Usage)
    except msgspec.ValidationError:  # an odd count is no reason to lose an answer
        return Usage()
    details = usage.completion_tokens_details or _UsageDetails()
    return Usage(usage.prompt_tokens, usage.completion_tokens, details.reasoning_tokens)


def error_of(body: str | bytes) -> object:
    """The error in a body, if it is JSON and has one: `{"error": ...}`, or the fields themselves as vLLM sent them."""
    try:
        value = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    return value.get("error", value) if isinstance(value, dict) else None


def failure(status: int | None, error: object) -> EngineError:
    """What a server's refusal means to our client.

    Args:
        status: The HTTP status; None when the failure came inside a stream, where the error's own `code` counts.
        error: The value of `error` in what the server sent.
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
        return EngineError("upstream_refused", f"The upstream server has no room just now{suffix}", retryable=True)
    if 300 <= status < 500 and status != 408:
        return EngineError("upstream_rejected", f"The upstream server does not accept the request{suffix}")
    return EngineError("upstream_error", f"The upstream server failed{suffix}", retryable=True)
