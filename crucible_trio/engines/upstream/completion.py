"""Fold the events of a chat completion into pieces, and judge whether it is whole. No trio: nothing here waits.

Reading is tolerant and the end is judged strictly. Unknown values are skipped. The signs that the model has ended are
checked:

* `finish_reason` says that the model has ended. `[DONE]` alone does not: a proxy writes it after a crash, too.
* Some servers send a `finish_reason` too early, or with every chunk. Text after it withdraws it. From then on only
  `[DONE]` confirms a finish.
* A finish for tool calls that did not come is an early one: the server calls its own tools and goes on.
* A finish with the first text may be such an early one. It needs `[DONE]`, or a body that ended as its length or its
  last chunk promised. A finish without any text needs `[DONE]`.
* Nothing after a final finish fails a whole answer.
* A failure inside a stream comes under status 200. Text that came before it, or with it, is kept.
"""

from __future__ import annotations

import re
from typing import Final, final

import msgspec

from crucible_trio.content import Piece, Reasoning, Refusal, Text, TextPiece
from crucible_trio.engines.segments import SegmentCutter
from crucible_trio.engines.upstream.call_order import CallOrder
from crucible_trio.engines.upstream.call_pieces import CallPiece
from crucible_trio.engines.upstream.chunks import ChunkReader, PartKind, UpstreamChunk, decode_data
from crucible_trio.engines.upstream.failures import find_error, to_engine_error, unwrapped
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.same_form import SameForm
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkPart, ThinkSplitter
from crucible_trio.engines.upstream.usage import merge_usage
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage, is_deeper
from crucible_trio.sse import ServerSentEvent

DONE: Final = "[DONE]"

# Finish reasons by meaning, in lower case. Any other counts as `stop`. Those that OpenAI does not have come from vLLM
# (abort, error), DeepSeek (insufficient_system_resource), Z.AI (network_error, sensitive,
# model_context_window_exceeded), Mistral (model_length, error), Anthropic (max_tokens) and Gemini (safety and others).
_FAILED_FINISH: Final = frozenset({"abort", "error", "insufficient_system_resource", "network_error"})
_LENGTH_FINISH: Final = frozenset(
    {"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"}
)
_FILTER_FINISH: Final = frozenset({"content_filter", "sensitive", "safety", "blocklist", "prohibited_content", "spii"})

# After these, a server that calls its own tools goes on with text.
_CALL_FINISH: Final = frozenset({"tool_calls", "function_call"})

# Data that no torn chunk can be, such as `ping` or `: KEEP-ALIVE`.
_WORDS: Final = re.compile(r"[\w .:-]{1,64}", re.ASCII)


@final
class UpstreamCompletion:
    """Folds the events of one stream into pieces of trace, answer, refusal and tool calls.

    A trace is cut into segments at its numbered steps. A trace that resumes after a piece of the answer begins a new
    segment.

    Args:
        skipped: Counts the skipped values.
        splitter: Separates a trace inside the content. None: the content is answer.
        keeps_logprobs: Whether the log probabilities of the answer's tokens come with its pieces.
        passed: As in `ChunkReader`.

    Attributes:
        finish_reason: `stop`, `length` or `content_filter` while the model has ended. None before, and after text
            that came after a finish reason. After `flush` also `tool_calls`, if any call is whole.
        done: Whether the server has sent `[DONE]`. Anything after it is skipped.
        failure: Why the stream has failed. Anything after the failure is skipped.
        stop_string: The text that the server says has ended the answer. Text after it withdraws it.
        usage: The server's token counts.
        has_chunks: Whether any event was a chunk of a completion.
        is_empty: Whether no text and no tool call has come.
    """

    def __init__(
        self,
        skipped: SkippedFields | None = None,
        splitter: ThinkSplitter | None = None,
        *,
        keeps_logprobs: bool = False,
        passed: PassedFields | None = None,
    ) -> None:
        self.finish_reason: str | None = None
        self.done = False
        self.failure: EngineError | None = None
        self.stop_string: str | None = None
        self.usage = Usage()
        self.has_chunks = False
        self.is_empty = True
        self._skipped = skipped or SkippedFields()
        self._chunks = ChunkReader(self._skipped, passed)
        self._form = SameForm()
        self._splitter = splitter  # None: the server separates the trace
        self._has_plain_output = False  # output in a chunk without a finish reason
        self._calls: CallOrder | None = None  # set with the first tool call
        self._keeps_logprobs = keeps_logprobs
        self._logprobs: list[object] = []  # of text that the splitter holds back
        self._needs_done = False  # a finish reason was too early, or may be
        self._failure_after_finish: EngineError | None = None
        self._cutter: SegmentCutter | None = None  # set while the trace runs
        self._first_segment = 0  # of the cutter
        self._last_segment = -1

    @property
    def is_final(self) -> bool:
        """Whether the finish reason needs no confirmation by the end of the body."""
        if self.finish_reason is None:
            return False
        return self.done or (self._has_plain_output and not self._needs_done)

    def is_whole(self, *, ended_as_promised: bool) -> bool:
        """Whether the completion is whole if nothing more comes.

        Args:
            ended_as_promised: The body's length or its last chunk says that it has ended.
        """
        if self.is_final:
            return True
        has_text = not self.is_empty and not self._needs_done
        return self.finish_reason is not None and ended_as_promised and has_text

    def feed(self, event: ServerSentEvent) -> list[Piece]:
        """Take the next event. A failure is in `failure` afterwards, and the text before it in the result.

        Returns:
            The decided pieces in order, none of them empty.
        """
        data = (event.data or "").strip()
        if not event.event and (text := self._form.text_of(data)):
            texts: list[TextPiece] = []
            self._append_part(self._form.kind, text, texts)
            return [*texts]
        self._form.forget()
        name = f"event {event.event}" if event.event else "event"
        if self.done or self.failure is not None:
            if data:
                self._skipped.add(name)
            return []
        if data == DONE:
            self.done = True
        elif event.event == "error":  # its data need not be JSON
            self.fail(to_engine_error(None, find_error(data)))
        elif data:
            return self._feed_data(data, event.event, name)
        return []

    def fail(self, error: EngineError) -> None:
        """The stream has failed. After a final finish that does not matter, unless text follows."""
        self._form.forget()
        if self.is_final:
            self._failure_after_finish = error
            self._skipped.add("error")
        else:
            self.failure = error

    def flush(self) -> list[Piece]:
        """End the text and return the text held back. Call it after a failure, too."""
        texts: list[TextPiece] = []
        self._stop_splitting(texts)
        self._end_trace(texts)
        pieces = self._in_order(texts)
        if self._calls is not None:
            self._end_calls(self._calls, pieces)
        return pieces

    def _end_calls(self, calls: CallOrder, pieces: list[Piece]) -> None:
        calls.end(pieces, is_whole=self.failure is None, is_limited=self.finish_reason == "length")
        if self.failure is None:
            self.failure = calls.failure
            if self.finish_reason == "stop" and calls.was_cut:
                self.finish_reason = "length"
            elif self.finish_reason == "stop" and calls.has_ended_calls:
                self.finish_reason = "tool_calls"

    def _feed_data(self, data: str, event_type: str, name: str) -> list[Piece]:
        try:
            value = unwrapped(decode_data(data))
        except ValueError:
            if event_type in {"", "message"} and not _WORDS.fullmatch(data):
                message = "The upstream server sent an event that is not a chat completion chunk."
                self.fail(EngineError("upstream_invalid_response", message))
            else:
                self._skipped.add(name)
            return []
        if not isinstance(value, dict):
            self._skipped.add(name, may_hold_text=bool(value))
            return []
        skipped = self._skipped.total
        chunk = self._chunks.read(value)
        if chunk.is_completion:
            self.has_chunks = True
        elif chunk.error is None and value:
            self._skipped.add(name, may_hold_text=True)
        pieces = self._feed_chunk(chunk)
        if chunk.is_only_text and self._skipped.total == skipped and self._is_plain:
            self._form.learn(data, *chunk.parts[0])
        return pieces

    @property
    def _is_plain(self) -> bool:
        """Whether a chunk like the last one, which had nothing but text, changes nothing but the text."""
        return self._has_plain_output and self._calls is None and not self._logprobs and self.failure is None

    def _feed_chunk(self, chunk: UpstreamChunk) -> list[Piece]:
        texts: list[TextPiece] = []
        has_output = bool(chunk.parts) or bool(chunk.calls)
        if has_output and self.finish_reason is not None:
            self.finish_reason = None
            self._needs_done = True
            self.failure = self._failure_after_finish
        if has_output or chunk.stop_string is not None:
            self.stop_string = chunk.stop_string
        for kind, text in chunk.parts:
            self._append_part(kind, text, texts)
        if self._keeps_logprobs:
            self._add_logprobs(chunk.logprobs, texts)
        pieces = self._add_calls(chunk.calls, texts) if chunk.calls else self._in_order(texts)
        for usage in chunk.usage:
            self.usage = merge_usage(self.usage, usage)
        if chunk.error is not None:
            self.fail(to_engine_error(None, chunk.error))
        elif chunk.finish is not None:
            self._finish(chunk.finish)
        elif has_output:
            self._has_plain_output = True
        return [*chunk.passed, *pieces] if chunk.passed else pieces

    def _finish(self, reason: str) -> None:
        if reason in _FAILED_FINISH:
            message = f"The upstream server ended the completion with finish_reason {reason!r}."
            self.fail(EngineError("upstream_error", message, retryable=True))
        elif reason in _LENGTH_FINISH:
            self.finish_reason = "length"
        elif reason in _FILTER_FINISH:
            self.finish_reason = "content_filter"
        elif self.finish_reason is None:  # a repetition as `stop` must not hide that the text was cut
            self.finish_reason = "stop"
            self._needs_done = self._needs_done or (reason in _CALL_FINISH and self._calls is None)

    def _add_logprobs(self, found: list[object], texts: list[TextPiece]) -> None:
        """Put log probabilities into the first piece of the answer. Those of trace are dropped."""
        if found and not _is_json(found):
            self._skipped.add("choices.logprobs")
        else:
            self._logprobs += found
        for number, piece in enumerate(texts):
            if isinstance(piece, Text) and self._logprobs:
                texts[number] = Text(piece.text, self._logprobs)
                break
        if texts:
            self._logprobs = []

    def _in_order(self, texts: list[TextPiece]) -> list[Piece]:
        """The pieces that may be written now. A tool call can hold texts back."""
        if self._calls is None:
            return list(texts)
        pieces: list[Piece] = []
        for text in texts:
            self._calls.add_text(text, pieces)
        self.failure = self.failure or self._calls.failure
        return pieces

    def _add_calls(self, found: list[CallPiece], texts: list[TextPiece]) -> list[Piece]:
        self.is_empty = False
        if self._splitter is not None:
            for part, text in self._splitter.flush():
                self._append(part, text, texts)
        self._end_trace(texts)
        pieces = self._in_order(texts)
        self._calls = self._calls or CallOrder()
        self._calls.add_calls(found, pieces)
        self.failure = self.failure or self._calls.failure
        return pieces

    def _append_part(self, kind: PartKind, text: str, texts: list[TextPiece]) -> None:
        self.is_empty = False
        if kind == "trace":
            self._stop_splitting(texts)
            self._append("trace", text, texts)
        elif kind == "refusal":
            self._stop_splitting(texts)
            self._end_trace(texts)
            texts.append(Refusal(text))
        elif self._splitter is None:
            self._append("answer", text, texts)
        else:
            for part, split in self._splitter.feed(text):
                self._append(part, split, texts)

    def _stop_splitting(self, texts: list[TextPiece]) -> None:
        if self._splitter is not None:
            for part, text in self._splitter.flush():
                self._append(part, text, texts)
            self._splitter = None

    def _append(self, part: ThinkPart, text: str, texts: list[TextPiece]) -> None:
        if part == "answer":
            self._end_trace(texts)
            texts.append(Text(text))
            return
        if self._cutter is None:
            self._cutter = SegmentCutter()
            self._first_segment = self._last_segment + 1
        self._append_segments(self._cutter.feed(text), texts)

    def _end_trace(self, texts: list[TextPiece]) -> None:
        if self._cutter is not None:
            self._append_segments(self._cutter.flush(), texts)
            self._cutter = None

    def _append_segments(self, cut: list[tuple[int, str]], texts: list[TextPiece]) -> None:
        for segment, text in cut:
            self._last_segment = self._first_segment + segment
            texts.append(Reasoning(text, self._last_segment))


def _is_json(value: list[object]) -> bool:
    """Whether our own JSON can hold a value. That of others may have half a character, or be nested too deeply."""
    try:
        msgspec.json.encode(value)
    except (ValueError, RecursionError):
        return False
    return not is_deeper(value)
