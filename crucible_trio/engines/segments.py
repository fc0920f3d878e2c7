"""Cut a reasoning trace at its numbered steps. No trio: nothing here waits.

A model writes its steps as lines that begin with `1.`, `2.` and so on. Its tokens cut the text anywhere, also between
the `2` and the `.`. So the beginning of a line is held back while it could still become the number of a step: at most
one or two short tokens. No text is lost: all pieces together are the text that was fed, however it was split.
"""

from __future__ import annotations

import re
from typing import final

# In Markdown, up to three spaces are a list of the first level, and more are a list inside a step. At most two digits,
# because a line that begins with a year is not a step. The white space is required, because `1.5` is not a step.
_STEP = re.compile(r" {0,3}[0-9]{1,2}[.)]\s")
_MAY_BECOME_A_STEP = re.compile(r" {0,3}(?:[0-9]{1,2}[.)]?)?")


@final
class SegmentCutter:
    """Numbers the segment of each piece of a trace. Segments count from 0 and never go back.

    Text before the first step is a separate segment, unless it is only white space.
    """

    def __init__(self) -> None:
        self._segment = 0
        self._segment_has_text = False
        self._at_line_start = True
        self._held = ""  # the beginning of a line that may become a step

    def feed(self, text: str) -> list[tuple[int, str]]:
        """Take the next piece of the trace.

        Returns:
            The decided pieces as pairs of segment and text. Neighbours differ in their segment, and no text is empty.
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
            self._append(pieces, line + newline)
            self._at_line_start = bool(newline)
        return pieces

    def flush(self) -> list[tuple[int, str]]:
        """End the trace and return the text held back."""
        pieces: list[tuple[int, str]] = []
        held, self._held = self._held, ""
        if held.endswith((".", ")")):  # the model stopped directly after the number
            self._begin_segment()
        if held:
            self._append(pieces, held)
        return pieces

    def _begin_segment(self) -> None:
        if self._segment_has_text:  # false for the first step after nothing or white space
            self._segment += 1
            self._segment_has_text = False

    def _append(self, pieces: list[tuple[int, str]], text: str) -> None:
        self._segment_has_text = self._segment_has_text or not text.isspace()
        if pieces and pieces[-1][0] == self._segment:
            text = pieces.pop()[1] + text
        pieces.append((self._segment, text))
