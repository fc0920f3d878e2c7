"""End a text before the first stop string, wherever the pieces it arrives in are cut. No trio: nothing here waits.

The model's own search for stop strings sees one slice at a time, and text that it holds back at a slice's end is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final


@final
class StopCutter:
    """Lets text through up to the first stop string.

    Args:
        stops: The stop strings, none of them empty.

    Attributes:
        stopped: Whether one was found; no text comes from then on.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop string

    def feed(self, text: str) -> str:
        """Take the next piece.

        Returns:
            What certainly belongs to the text; what may still become a stop string is held back.
        """
        if self.stopped:
            return ""
        text = self._held + text
        # The one that is complete first, so that the cuts of the pieces do not matter; of two, the longer.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        whole = len(text) - keep
        self._held = text[whole:]
        return text[:whole]

    def flush(self) -> str:
        """End the text: what was held back has become no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
