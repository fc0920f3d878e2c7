"""Take `<think>...</think>` out of a model's text. No trio: nothing here waits.

A server without a reasoning parser sends the trace as part of the answer, between two tags. Easy to get wrong:

* A tag can be split over several pieces. Text that could still become a tag is held back, and no other text.
* A tag counts only at the very beginning. An answer that explains the tags must not lose half its text to the trace.
* White space around the tags belongs to the markup. Models send an empty trace when told not to think. It must leave no
  trace, and the answer must begin with its first word.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Literal, TypeAlias, final

OPEN_TAG: Final = "<think>"
CLOSE_TAG: Final = "</think>"

# Leading white space is held back until the next character shows whether a tag follows. The limit keeps a model that
# emits only white space from filling the memory. Templates put at most two line ends there.
_MAX_LEADING_SPACE = 64

ThinkPart: TypeAlias = Literal["trace", "answer"]


class _ThinkState(Enum):
    BEFORE = auto()  # only white space so far, and perhaps the beginning of the opening tag
    TRACE = auto()
    ANSWER = auto()


@final
class ThinkSplitter:
    """Separates the trace from the answer, however the text is split into pieces.

    The opening tag counts only after white space. The first closing tag ends the trace. Later tags are plain text.
    """

    def __init__(self) -> None:
        self._state = _ThinkState.BEFORE
        self._held = ""  # may become a tag
        self._skip_space = False  # directly after a tag

    def feed(self, text: str) -> list[tuple[ThinkPart, str]]:
        """Take the next piece of the text.

        Returns:
            The decided pieces in order, none of them empty.
        """
        pieces: list[tuple[ThinkPart, str]] = []
        rest = self._held + text
        self._held = ""
        if self._state is _ThinkState.BEFORE:
            rest = self._before(rest)
        if self._state is _ThinkState.TRACE:
            rest = self._trace(rest, pieces)
        if self._state is _ThinkState.ANSWER:
            self._append("answer", rest, pieces)
        return pieces

    def flush(self) -> list[tuple[ThinkPart, str]]:
        """End the text and return the held text: as trace inside the tags, otherwise as answer."""
        pieces: list[tuple[ThinkPart, str]] = []
        held, self._held = self._held, ""
        self._append("trace" if self._state is _ThinkState.TRACE else "answer", held, pieces)
        return pieces

    def _before(self, text: str) -> str:
        word = text.lstrip()
        if len(text) - len(word) <= _MAX_LEADING_SPACE:
            if word.startswith(OPEN_TAG):
                self._state, self._skip_space = _ThinkState.TRACE, True
                return word.removeprefix(OPEN_TAG)
            if OPEN_TAG.startswith(word):
                self._held = text
                return ""
        self._state = _ThinkState.ANSWER
        return text

    def _trace(self, text: str, pieces: list[tuple[ThinkPart, str]]) -> str:
        inside, tag, after = text.partition(CLOSE_TAG)
        if not tag:
            held = _partial_close_tag(inside)
            self._held = inside[len(inside) - held :]
            inside = inside[: len(inside) - held]
        self._append("trace", inside, pieces)
        if tag:
            self._state, self._skip_space = _ThinkState.ANSWER, True
        return after

    def _append(self, part: ThinkPart, text: str, pieces: list[tuple[ThinkPart, str]]) -> None:
        if self._skip_space:
            text = text.lstrip()
        if text:
            self._skip_space = False
            pieces.append((part, text))


def _partial_close_tag(text: str) -> int:
    """The number of characters at the end of `text` that are the beginning of the closing tag."""
    longest = min(len(text), len(CLOSE_TAG) - 1)
    return next((length for length in range(longest, 0, -1) if CLOSE_TAG.startswith(text[-length:])), 0)
