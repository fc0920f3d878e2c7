"""Take `<think>...</think>` out of a model's text. No trio: nothing here waits.

A server without a reasoning parser of its own sends the trace as part of the answer, between two tags. What is easy to
get wrong:

* A tag can be cut anywhere by the pieces it arrives in. What could still become a tag is held back, and nothing else.
* Only a tag at the very beginning counts. An answer that explains the tags must not lose half of itself to the trace.
* The white space around the tags belongs to the markup. An empty trace (models send one when told not to think) leaves
  no trace at all, and the answer begins with its first word.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Literal, TypeAlias, final

OPEN_TAG: Final = "<think>"
CLOSE_TAG: Final = "</think>"

# White space that is held back while it is open whether a tag follows; a model that emits nothing else must not fill
# the memory. Templates put two line ends there at most.
_MAX_LEADING_SPACE = 64

Part: TypeAlias = Literal["trace", "answer"]


class _State(Enum):
    BEFORE = auto()  # nothing but white space and perhaps a part of the opening tag so far
    TRACE = auto()
    ANSWER = auto()


@final
class ThinkSplitter:
    """Tells the trace from the answer, however the text is cut into pieces.

    The opening tag counts after white space alone, the first closing tag ends the trace, and further tags are text.
    """

    def __init__(self) -> None:
        self._state = _State.BEFORE
        self._held = ""  # may become a tag
        self._skip_space = False  # right behind a tag

    def feed(self, text: str) -> list[tuple[Part, str]]:
        """Take the next piece of the text.

        Returns:
            What is decided, in order; no text is empty.
        """
        pieces: list[tuple[Part, str]] = []
        rest = self._held + text
        self._held = ""
        if self._state is _State.BEFORE:
            rest = self._before(rest)
        if self._state is _State.TRACE:
            rest = self._trace(rest, pieces)
        if self._state is _State.ANSWER:
            self._take("answer", rest, pieces)
        return pieces

    def flush(self) -> list[tuple[Part, str]]:
        """End the text: what was held back comes out as what it turned out to be."""
        pieces: list[tuple[Part, str]] = []
        held, self._held = self._held, ""
        self._take("trace" if self._state is _State.TRACE else "answer", held, pieces)
        return pieces

    def _before(self, text: str) -> str:
        word = text.lstrip()
        if len(text) - len(word) <= _MAX_LEADING_SPACE:
            if word.startswith(OPEN_TAG):
                self._state, self._skip_space = _State.TRACE, True
                return word.removeprefix(OPEN_TAG)
            if OPEN_TAG.startswith(word):
                self._held = text
                return ""
        self._state = _State.ANSWER
        return text

    def _trace(self, text: str, pieces: list[tuple[Part, str]]) -> str:
        inside, tag, behind = text.partition(CLOSE_TAG)
        if not tag:
            held = _beginning_at_end(inside)
            self._held = inside[len(inside) - held :]
            inside = inside[: len(inside) - held]
        self._take("trace", inside, pieces)
        if tag:
            self._state, self._skip_space = _State.ANSWER, True
        return behind

    def _take(self, part: Part, text: str, pieces: list[tuple[Part, str]]) -> None:
        if self._skip_space:
            text = text.lstrip()
        if text:
            self._skip_space = False
            pieces.append((part, text))


def _beginning_at_end(text: str) -> int:
    """The length of the longest end of the text that is a beginning of the closing tag."""
    longest = min(len(text), len(CLOSE_TAG) - 1)
    return next((length for length in range(longest, 0, -1) if CLOSE_TAG.startswith(text[-length:])), 0)
