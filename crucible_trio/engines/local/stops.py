"""End a text before the first stop string, however the text is split into pieces. No trio: nothing here waits.

llama.cpp's search for stop strings is not used. It sees one slice at a time and loses text held back at a slice's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final


@final
class StopCutter:
    """Passes text on up to the first stop string.

    Args:
        stops: The stop strings, none of them empty.

    Attributes:
        found: The stop string that was found. All later text is dropped.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""  # may be the beginning of a stop string

    def feed(self, text: str) -> str:
        """Take the next piece.

        Returns:
            The text that is certain. The end of it is held back while it may become a stop string.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        # The stop string that ends first wins, so that the split into pieces does not matter. Of two, the longer wins.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.found = min(found)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        whole = len(text) - keep
        self._held = text[whole:]
        return text[:whole]

    def flush(self) -> str:
        """End the text and return the text held back, which did not become a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
