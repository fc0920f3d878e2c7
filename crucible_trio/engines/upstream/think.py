"""Take `<think>...</think>` out of a model's text. No trio: nothing here waits.

A server without a reasoning parser sends the trace as part of the answer, between two tags. Easy to get wrong:

* A tag can be split over several pieces. Text that could still become a tag is held back, and no other text.
* A tag counts only at the very beginning. An answer that explains the tags must not lose half its text to the trace.
* Some chat templates put the opening tag into the prompt, so the text begins inside the trace.
* White space around the tags belongs to the markup. Models send an empty trace when told not to think. It must leave no
  trace, and the answer must begin with its first word.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, Literal, TypeAlias, final

from crucible_trio.errors import ConfigError

THINK_TAGS: Final[Mapping[str, str]] = {"<think>": "</think>"}
"""From opening to closing tag."""

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

    An opening tag counts only after white space. The first closing tag ends the trace. Later tags are plain text.

    Args:
        tags: From opening to closing tag. Without any, all text is answer.
        starts_inside: The text begins inside the trace. An opening tag may follow nevertheless. As no opening tag says
            which closing tag to expect, each of them counts.
    """

    def __init__(self, tags: Mapping[str, str] = THINK_TAGS, *, starts_inside: bool = False) -> None:
        self._tags = tags
        self._starts_inside = starts_inside and bool(tags)
        self._state = _ThinkState.BEFORE if tags else _ThinkState.ANSWER
        self._closing = tuple(tags.values())  # the tags that end the trace
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
        is_inside = self._state is _ThinkState.TRACE or (self._state is _ThinkState.BEFORE and self._starts_inside)
        self._append("trace" if is_inside else "answer", held, pieces)
        return pieces

    def _before(self, text: str) -> str:
        word = text.lstrip()
        if len(text) - len(word) <= _MAX_LEADING_SPACE:
            if any(len(tag) > len(word) and tag.startswith(word) for tag in self._tags):
                self._held = text
                return ""
            # The longest one: a tag may begin with another tag.
            opening = max((tag for tag in self._tags if word.startswith(tag)), key=len, default=None)
            if opening is not None:
                self._state, self._skip_space = _ThinkState.TRACE, True
                self._closing = (self._tags[opening],)
                return word.removeprefix(opening)
        if self._starts_inside:
            self._state, self._skip_space = _ThinkState.TRACE, True
        else:
            self._state = _ThinkState.ANSWER
        return text

    def _trace(self, text: str, pieces: list[tuple[ThinkPart, str]]) -> str:
        found = [(at, tag) for tag in self._closing if (at := text.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            self._append("trace", text[:at], pieces)
            self._state, self._skip_space = _ThinkState.ANSWER, True
            return text[at + len(tag) :]
        kept = len(text) - max(_partial_tag(text, tag) for tag in self._closing)
        self._held = text[kept:]
        self._append("trace", text[:kept], pieces)
        return ""

    def _append(self, part: ThinkPart, text: str, pieces: list[tuple[ThinkPart, str]]) -> None:
        if self._skip_space:
            text = text.lstrip()
        if text:
            self._skip_space = False
            pieces.append((part, text))


def check_tags(tags: Mapping[str, str]) -> None:
    """Check tags before the first stream.

    Raises:
        ConfigError: A tag is empty, or an opening tag begins with white space and so could never be found.
    """
    for opening, closing in tags.items():
        if not opening or not closing or opening[0].isspace():
            message = f"no think tag may be empty or begin with white space, as in {opening!r} = {closing!r}"
            raise ConfigError(message, "upstream_think_tags")


def _partial_tag(text: str, tag: str) -> int:
    """The number of characters at the end of `text` that are the beginning of a tag."""
    longest = min(len(text), len(tag) - 1)
    return next((length for length in range(longest, 0, -1) if tag.startswith(text[-length:])), 0)
