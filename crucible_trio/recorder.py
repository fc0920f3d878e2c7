"""From pieces to the frames of a log: merge, split, number, encode. Nothing here waits, and nothing needs trio.

A client that keeps up gets piece by piece, because then one piece at a time is ready. A client that lags gets fewer,
larger records. Merging happens before a record gets its number and never after, so an offset always means the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from math import inf
from typing import Final, final

import msgspec

from crucible_trio.content import (
    Continued,
    Piece,
    Reasoning,
    ServerFields,
    Text,
    TextPiece,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.errors import EngineError, UpstreamReport
from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    Mode,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamContinued,
    StreamCreated,
    Terminal,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    encode_frame,
    encode_json,
)

# A frame goes out in one write with one deadline.
MAX_FRAME_BYTES: Final = 16 * 1024
_ENVELOPE_BYTES = 256  # type, seq, segment or index, id and field names of a frame, with some reserve
_MAX_TEXT_BYTES = MAX_FRAME_BYTES - _ENVELOPE_BYTES
_BYTES_PER_CHARACTER = 6  # the widest: an escape such as \u0085
_SAFE_LENGTH = _MAX_TEXT_BYTES // _BYTES_PER_CHARACTER
# The last `reasoning.done` and the terminal record must fit under the byte cap in any case.
TERMINAL_RESERVE_BYTES: Final = 6 * 1024
_MAX_ERROR_CODE_LENGTH = 64
_MAX_ERROR_MESSAGE_LENGTH = 400
_MAX_REPORT_LENGTH = 1000
# Seconds. A daily or weekly quota is the longest that upstream servers name.
LONGEST_RETRY_AFTER: Final = 7 * 24 * 3600.0
_MAX_REPORT_BYTES = 2000
_MAX_REPORT_WORD_LENGTH = 128

_MARKS: Final = (ToolCallStart, ToolCallEnd, Continued, ServerFields)  # pieces without text

# In an upstream's message. A terminal or a log viewer would obey them, and in JSON they take six bytes each.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_WORD = re.compile(r"[\x21-\x7e]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@final
class Recorder:
    """Makes the frames of one stream, in order. Its state depends on the frames it has made and on nothing else.

    Args:
        stream_id: The stream's id, for the event ids.
        max_bytes: The log's byte cap, over all frames.

    Attributes:
        seq: The number of the last frame made.
        full: Whether the cap refused a record. From then on only `finish` adds frames.
    """

    def __init__(self, stream_id: str, *, max_bytes: int) -> None:
        self.seq = 0
        self.full = False
        self._stream_id = stream_id
        self._free_bytes = max_bytes - TERMINAL_RESERVE_BYTES
        self._segments = 0  # of the trace since the last `reasoning.done`
        self._last_segment: int | None = None
        self._calls = 0  # tool calls begun
        # A piece can end in the middle of a character, as a lone high surrogate. It waits here for the other half.
        self._half: TextPiece | None = None

    def create(self, *, mode: Mode, model: str, created_at: float) -> bytes:
        """Make record 1."""
        created = StreamCreated(seq=1, stream=self._stream_id, mode=mode, model=model, created_at=created_at)
        return self._number(created)

    def add(self, pieces: Sequence[Piece]) -> list[bytes]:
        """Make the frames for these pieces, as few as possible.

        Returns:
            The frames. None when the pieces hold only half a character, and none from the first record on that would
            pass the cap.
        """
        frames: list[bytes] = []
        for piece in pieces if len(pieces) == 1 else _merged(pieces):
            if isinstance(piece, _MARKS):
                self._add_mark(frames, piece)
            elif self._half is None and piece.text.isascii():
                self._add_text(frames, piece)
            else:
                self._add_whole_characters(frames, piece)
        return frames

    def finish(self, pieces: Sequence[Piece], ending: Callable[[int], Terminal]) -> list[bytes]:
        """Make the last frames.

        Args:
            pieces: The rest of the buffer.
            ending: Makes the terminal record with the number it is given.
        """
        frames = self.add(pieces)
        self._flush_half(frames)
        self._close_trace(frames)
        frames.append(self._number(ending(self.seq + 1)))
        return frames

    def _add_whole_characters(self, frames: list[bytes], piece: TextPiece) -> None:
        if self._half is not None:
            if _continues(piece, self._half):
                piece = _with_text(piece, self._half.text + piece.text)
                self._half = None
            else:
                self._flush_half(frames)
        if _SURROGATE.search(piece.text):
            text = piece.text
            if "\ud800" <= text[-1] <= "\udbff":
                # The log probabilities of the piece stay with its first part.
                self._half = Text(text[-1]) if isinstance(piece, Text) else _with_text(piece, text[-1])
                text = text[:-1]
            # Pairs become characters, lone halves U+FFFD.
            piece = _with_text(piece, text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
        if piece.text or (isinstance(piece, Text) and piece.logprobs):
            self._add_text(frames, piece)

    def _flush_half(self, frames: list[bytes]) -> None:
        half, self._half = self._half, None
        if half is not None:  # its other half never came
            self._add_text(frames, _with_text(half, _REPLACEMENT))

    def _add_text(self, frames: list[bytes], piece: TextPiece) -> None:
        if isinstance(piece, Reasoning):
            for text in _cut(piece.text):
                if not self._add(frames, ReasoningDelta(seq=self.seq + 1, segment=piece.segment, delta=text)):
                    return
                if piece.segment != self._last_segment:
                    self._segments += 1
                    self._last_segment = piece.segment
            return
        if self._segments:
            self._close_trace(frames)
        if isinstance(piece, Text):
            if piece.logprobs is None and len(piece.text) <= _SAFE_LENGTH:  # nearly every piece of every stream
                self._add(frames, OutputDelta(seq=self.seq + 1, delta=piece.text))
                return
            for text, logprobs in _cut_with_logprobs(piece):
                if not self._add(frames, OutputDelta(seq=self.seq + 1, delta=text, logprobs=logprobs)):
                    return
            return
        for text in _cut(piece.text):
            record = (
                ToolCallDelta(seq=self.seq + 1, index=self._calls - 1, delta=text)
                if isinstance(piece, ToolCallArguments)
                else RefusalDelta(seq=self.seq + 1, delta=text)
            )
            if not self._add(frames, record):
                return

    def _add_mark(self, frames: list[bytes], piece: ToolCallStart | ToolCallEnd | Continued | ServerFields) -> None:
        if isinstance(piece, ServerFields):  # not content, so the trace and half a character may go on after it
            self._add(frames, UpstreamFields(seq=self.seq + 1, at=piece.at, fields=dict(piece.fields)))
            return
        self._flush_half(frames)
        if isinstance(piece, ToolCallEnd):
            self._add(frames, ToolCallDone(seq=self.seq + 1, index=self._calls - 1))
            return
        self._close_trace(frames)
        if isinstance(piece, Continued):
            self._add(frames, StreamContinued(seq=self.seq + 1, characters=piece.characters))
        else:
            self._calls += 1
            self._add(frames, ToolCallStarted(seq=self.seq + 1, index=self._calls - 1, id=piece.id, name=piece.name))

    def _close_trace(self, frames: list[bytes]) -> None:
        if self._segments:
            frames.append(self._number(ReasoningDone(seq=self.seq + 1, segments=self._segments)))
            self._segments = 0
            self._last_segment = None

    def _add(self, frames: list[bytes], record: AnyRecord) -> bool:
        """Add a record. Returns whether there was room under the cap."""
        frame = encode_frame(self._stream_id, record)
        if self.full or len(frame) > self._free_bytes:
            self.full = True
            return False
        frames.append(frame)
        self._count(frame)
        return True

    def _number(self, record: AnyRecord) -> bytes:
        frame = encode_frame(self._stream_id, record)
        self._count(frame)
        return frame

    def _count(self, frame: bytes) -> None:
        self.seq += 1
        self._free_bytes -= len(frame)


def bounded_error(error: EngineError) -> ErrorInfo:
    """An error that fits into the bytes reserved for the terminal record. Invalid facts are left out."""
    clean = [part.encode(errors="replace").decode() for part in (error.code, error.message)]
    status, retry_after = error.status, error.retry_after
    return ErrorInfo(
        clean[0][:_MAX_ERROR_CODE_LENGTH],
        clean[1][:_MAX_ERROR_MESSAGE_LENGTH],
        error.retryable,
        status if status is not None and 100 <= status < 600 else None,
        min(retry_after, LONGEST_RETRY_AFTER) if retry_after is not None and 0 <= retry_after < inf else None,
        error.upstream and _bounded_report(error.upstream),
    )


def _bounded_report(report: UpstreamReport) -> UpstreamReport:
    message = report.message
    if message is not None:
        encoded = _CONTROLS.sub(" ", message)[:_MAX_REPORT_LENGTH].encode(errors="replace")
        message = encoded[:_MAX_REPORT_BYTES].decode(errors="ignore")
    words = [
        word if word and len(word) <= _MAX_REPORT_WORD_LENGTH and _WORD.fullmatch(word) else None
        for word in (report.type, report.code, report.param)
    ]
    return UpstreamReport(message, *words)


def _merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Join neighbours of one kind, and of one segment, as far as they fit into a record."""
    # A burst has up to 64 pieces, so this loop is the most expensive one for an engine that never waits.
    first: TextPiece | None = None
    texts: list[str] = []
    logprobs: list[object] = []
    segment: int | None = None
    length = 0
    for piece in pieces:
        its_segment: int | None = None
        size = 0
        if isinstance(piece, Text):
            if piece.logprobs is not None:
                size = _bytes(piece.logprobs) // _BYTES_PER_CHARACTER + 1
        elif isinstance(piece, Reasoning):
            its_segment = piece.segment
        elif isinstance(piece, _MARKS):
            if first is not None:
                yield _joined(first, texts, logprobs)
                first = None
            yield piece
            continue
        size += len(piece.text)
        if type(piece) is not type(first) or its_segment != segment or length + size > _SAFE_LENGTH:
            if first is not None:
                yield _joined(first, texts, logprobs)
            first, texts, logprobs, segment, length = piece, [], [], its_segment, 0
        texts.append(piece.text)
        length += size
        if isinstance(piece, Text) and piece.logprobs is not None:
            logprobs += piece.logprobs
    if first is not None:
        yield _joined(first, texts, logprobs)


def _continues(piece: TextPiece, before: TextPiece) -> bool:
    """Whether a piece can stand in one record with the piece before it."""
    if isinstance(piece, Reasoning) and isinstance(before, Reasoning):
        return piece.segment == before.segment
    return type(piece) is type(before)


def _joined(first: TextPiece, texts: list[str], logprobs: list[object]) -> TextPiece:
    if len(texts) == 1:
        return first
    if isinstance(first, Text):
        return Text("".join(texts), logprobs or None)
    return _with_text(first, "".join(texts))


def _with_text(piece: TextPiece, text: str) -> TextPiece:
    return msgspec.structs.replace(piece, text=text)


def _length(piece: Text) -> int:
    """The characters of a piece, and as many more as its log probabilities are worth."""
    return len(piece.text) + _bytes(piece.logprobs) // _BYTES_PER_CHARACTER + 1


def _cut(text: str, max_bytes: int = _MAX_TEXT_BYTES) -> Sequence[str]:
    """Cut a text so that each part fits into a record."""
    if len(text) * _BYTES_PER_CHARACTER <= max_bytes or _bytes(text) <= max_bytes:
        return (text,)
    middle = len(text) // 2
    return (*_cut(text[:middle], max_bytes), *_cut(text[middle:], max_bytes))


def _cut_with_logprobs(piece: Text) -> Iterable[tuple[str, list[object] | None]]:
    """Cut text and log probabilities so that each pair fits into a record. The first pairs hold the text."""
    if piece.logprobs is None:
        return [(text, None) for text in _cut(piece.text)]
    if _length(piece) <= _SAFE_LENGTH:
        return [(piece.text, list(piece.logprobs))]
    groups: list[list[object]] = []
    free = 0
    for entry in piece.logprobs:
        size = _bytes(entry) + 1
        if size > free:
            groups.append([])
            free = _MAX_TEXT_BYTES // 2
        groups[-1].append(entry)
        free -= size
    return [(text or "", group) for text, group in zip_longest(_cut(piece.text, _MAX_TEXT_BYTES // 2), groups)]


class _Value(msgspec.Struct):
    value: object


def _bytes(value: object) -> int:
    """How many bytes a value takes as JSON on the wire."""
    return len(encode_json(_Value(value)))
