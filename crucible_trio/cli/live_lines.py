"""Lines at the end of a terminal's output that may still change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from rich.console import Console

_NO_WRAP: Final = "\x1b[?7l"
_WRAP: Final = "\x1b[?7h"


@final
class LiveLines:
    """Draws lines in place, each time in one write and from the first line that has changed.

    Never more lines than the screen has, because those above it cannot be erased. Only the last ones of a longer text
    are drawn until it is whole. After the terminal changed its size, the old lines stay and new ones are drawn below.

    Terminals do not agree about the width of some characters, such as joined emoji. A line that wraps would take two
    rows, and the next drawing would erase the wrong ones. So a line that may still change does not wrap. When it is
    kept, it is drawn again and wraps.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[str] = []  # the cursor is at the end of the last one
        self._size = console.size

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the lines. Lines that do not fit on the screen are left out at the top."""
        self._replace(list(lines[-max(self._console.height - 1, 1) :]), wraps=False)

    def keep(self, lines: Sequence[str]) -> None:
        """Replace the lines by these, which all stay. The cursor is at the beginning of the next line."""
        self._replace([*lines, ""], wraps=True)
        self._drawn = []

    def _replace(self, lines: list[str], *, wraps: bool) -> None:
        if self._size != self._console.size:
            self._size = self._console.size
            if self._drawn:
                self._write("\n")
                self._drawn = []
        same = 0
        while same < min(len(lines), len(self._drawn)) and lines[same] == self._drawn[same]:
            if wraps and not lines[same].isascii():
                break
            same += 1
        if same == len(lines) == len(self._drawn):
            return
        same = min(same, max(len(lines) - 1, 0))  # the cursor has to end behind the last line
        motion = ""
        if same < len(self._drawn):
            up = len(self._drawn) - 1 - same
            motion = (f"\x1b[{up}A" if up else "") + "\r\x1b[J"
        elif same:
            motion = "\n"
        text = motion + "\n".join(lines[same:])
        self._write(text if wraps else f"{_NO_WRAP}{text}{_WRAP}")
        self._drawn = lines

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
