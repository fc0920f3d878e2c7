"""Cut a reasoning trace at its numbered steps. No trio: nothing here waits.

A model writes its steps as lines that begin with `1.`, `2.` and so on, and its tokens cut anywhere, between the `2` and
the `.` too. So the beginning of a line is held back for as long as it could still become a number of a step: at most
one short token or two. Nothing is lost: all pieces together are the text that was fed, however it was split.
"""

from __future__ import annotations

import re
from typing import final

# Up to three spaces are a list of the first level in Markdown, more a list inside a step. Two digits: a line that
# begins with a year is no step; nor is `1.5`, hence the space.
_STEP = re.compile(r" {0,3}[0-9]{1,2}[.)]\s")
_MAY_BECOME_A_STEP = re.compile(r" {0,3}(?:[0-9]{1,2}[.)]?)?")


@final
class SegmentCutter:
    """Gives each piece of a trace the number of its segment; they count from 0 and never go back.

    What comes before the first step, if anything but white space does, is a segment of its own.
    """

    def __init__(self) -> None:
        self._segment = 0
        self._segment_has_text = False
        self._at_line_start = True
        self._held = ""  # the beginning of a line that may become a step

    def feed(self, text: str) -> list[tuple[int, str]]:
        """Take the next piece of the trace.

        Returns:
            What is decided, as pairs of segment and text: neighbours differ in their segment, no text is empty.
        """
        pieces: list[tuple[int, str]] = []
        rest = self._held + text
        self._held = ""
        while rest:
            if self._at_line_start:
                if _MAY_BECOME_A_STEP.fullmatch(rest):
                    self._held = rest
                    break
                if _STEP.match(rest):
                    self._begin_segment()
            line, newline, rest = rest.partition("\n")
            self._take(pieces, line + newline)
            self._at_line_start = bool(newline)
        return pieces

    def flush(self) -> list[tuple[int, str]]:
        """End the trace: what was held back comes out."""
        pieces: list[tuple[int, str]] = []
        held, self._held = self._held, ""
        if held.endswith((".", ")")):  # the model stopped right behind the number
            self._begin_segment()
        if held:
            self._take(pieces, held)
        return pieces

    def _begin_segment(self) -> None:
        if self._segment_has_text:  # otherwise this is the first step, or only white space came before
            self._segment += 1
            self._segment_has_text = False

    def _take(self, pieces: list[tuple[int, str]], text: str) -> None:
        self._segment_has_text = self._segment_has_text or not text.isspace()
        if pieces and pieces[-1][0] == self._segment:
            text = pieces.pop()[1] + text
        pieces.append((self._segment, text))
