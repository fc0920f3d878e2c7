"""From tokens to the frames of a log: merge, split, number, encode. No trio: nothing here waits.

A client that keeps up gets token by token, because then one token at a time is ready; one that lags gets fewer, larger
records. Merging happens before a record gets its number and never after, so a position means the same for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, final

import msgspec

from crucible_trio.output import Token
from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    Mode,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCreated,
    Terminal,
    encode_frame,
    encode_json,
)

# One body message, one write with one deadline: a frame should go out in one piece.
MAX_FRAME_BYTES: Final = 16 * 1024
_ENVELOPE_BYTES = 256  # type, seq, segment, id and field names of a frame, generously
_MAX_TEXT_BYTES = MAX_FRAME_BYTES - _ENVELOPE_BYTES
_BYTES_PER_CHARACTER = 6  # the widest: an escape such as \u0085
_SAFE_LENGTH = _MAX_TEXT_BYTES // _BYTES_PER_CHARACTER

# The last `reasoning.done` and the terminal record must fit under the byte cap whatever came before.
TERMINAL_RESERVE_BYTES: Final = 4 * 1024
_MAX_ERROR_CODE_LENGTH = 64
_MAX_ERROR_MESSAGE_LENGTH = 400

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@final
class Recorder:
    """Makes the frames of one stream, in order; its state depends on what it has made so far alone.

    Args:
        stream_id: The stream's id, for the event ids.
        max_bytes: The log's byte cap, over all frames.

    Attributes:
        seq: The number of the last frame made.
        full: Whether a record was refused because it would have passed the cap; from then on only `finish` works.
    """

    def __init__(self, stream_id: str, *, max_bytes: int) -> None:
        self.seq = 0
        self.full = False
        self._stream_id = stream_id
        self._free_bytes = max_bytes - TERMINAL_RESERVE_BYTES
        self._segments = 0  # of the trace since the last `reasoning.done`
        self._last_segment: int | None = None
        # A piece can end in the middle of a character, as a lone high surrogate; it waits here for the other half.
        self._half = ""
        self._half_segment: int | None = None

    def create(self, *, mode: Mode, model: str, created_at: float) -> bytes:
        """Make record 1."""
        created = StreamCreated(seq=1, stream=self._stream_id, mode=mode, model=model, created_at=created_at)
        return self._number(created)

    def add(self, tokens: Sequence[Token]) -> list[bytes]:
        """Make the frames for these tokens, as few as possible.

        Returns:
            The frames; none when the tokens hold but half a character, or from the record on that would pass the cap.
        """
        frames: list[bytes] = []
        for segment, text in self._merge(tokens):
            if text.isascii() and not self._half:
                self._add_text(frames, segment, text)
            else:
                for its_segment, whole in self._whole_characters(segment, text):
                    self._add_text(frames, its_segment, whole)
        return frames

    def finish(self, tokens: Sequence[Token], ending: Callable[[int], Terminal]) -> list[bytes]:
        """Make the last frames.

        Args:
            tokens: What was still in the buffer.
            ending: Makes the terminal record with the number it is given.
        """
        frames = self.add(tokens)
        if self._half:
            self._half = ""
            self._add_text(frames, self._half_segment, _REPLACEMENT)
        self._close_trace(frames)
        frames.append(self._number(ending(self.seq + 1)))
        return frames

    def _merge(self, tokens: Sequence[Token]) -> Iterator[tuple[int | None, str]]:
        if len(tokens) == 1:
            yield tokens[0].segment, tokens[0].text
            return
        run: list[str] = []
        length = 0
        segment: int | None = None
        for token in tokens:
            if run and (token.segment != segment or length + len(token.text) > _SAFE_LENGTH):
                yield segment, "".join(run)
                run.clear()
                length = 0
            segment = token.segment
            run.append(token.text)
            length += len(token.text)
        if run:
            yield segment, "".join(run)

    def _whole_characters(self, segment: int | None, text: str) -> Iterator[tuple[int | None, str]]:
        if self._half:
            if self._half_segment == segment:
                text = self._half + text
            else:
                yield self._half_segment, _REPLACEMENT
            self._half = ""
        if not text.isascii() and _SURROGATE.search(text):
            if "\ud800" <= text[-1] <= "\udbff":
                self._half, self._half_segment = text[-1], segment
                text = text[:-1]
            # Pairs become characters, lone halves U+FFFD.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if text:
            yield segment, text

    def _add_text(self, frames: list[bytes], segment: int | None, text: str) -> None:
        if segment is None and self._segments:
            self._close_trace(frames)
        for piece in (text,) if len(text) <= _SAFE_LENGTH else _split(text):
            record: AnyRecord
            if segment is None:
                record = OutputDelta(seq=self.seq + 1, delta=piece)
            else:
                record = ReasoningDelta(seq=self.seq + 1, segment=segment, delta=piece)
            frame = encode_frame(self._stream_id, record)
            if self.full or len(frame) > self._free_bytes:
                self.full = True
                return
            frames.append(frame)
            self._count(frame)
            if segment is not None and segment != self._last_segment:
                self._segments += 1
                self._last_segment = segment

    def _close_trace(self, frames: list[bytes]) -> None:
        if self._segments:
            frames.append(self._number(ReasoningDone(seq=self.seq + 1, segments=self._segments)))
            self._segments = 0
            self._last_segment = None

    def _number(self, record: AnyRecord) -> bytes:
        frame = encode_frame(self._stream_id, record)
        self._count(frame)
        return frame

    def _count(self, frame: bytes) -> None:
        self.seq += 1
        self._free_bytes -= len(frame)


def bounded_error(code: str, message: str, *, retryable: bool) -> ErrorInfo:
    """An error that fits into the room kept for the terminal record."""
    clean = [part.encode(errors="replace").decode() for part in (code, message)]
    return ErrorInfo(clean[0][:_MAX_ERROR_CODE_LENGTH], clean[1][:_MAX_ERROR_MESSAGE_LENGTH], retryable)


class _Text(msgspec.Struct):
    text: str


def _split(text: str) -> Iterator[str]:
    if len(encode_json(_Text(text))) <= _MAX_TEXT_BYTES:
        yield text
    else:
        middle = len(text) // 2
        yield from _split(text[:middle])
        yield from _split(text[middle:])
