"""Lines at the end of a terminal's output that may still change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from rich.console import Console


@final
class LiveLines:
    """Draws lines in place, each time in one write and from the first line that has changed.

    Never more lines than the screen has, because those above it cannot be erased. Only the last ones of a longer text
    are drawn until it is whole. After the terminal changed its size, the old lines stay and new ones are drawn below.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._drawn: list[str] = []  # the cursor is at the end of the last one
        self._size = console.size

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the lines. Lines that do not fit on the screen are left out at the top."""
        self._replace(list(lines[-max(self._console.height - 1, 1) :]))

    def keep(self, lines: Sequence[str]) -> None:
        """Replace the lines by these, which all stay. The cursor is at the beginning of the next line."""
        self._replace([*lines, ""])
        self._drawn = []

    def _replace(self, lines: list[str]) -> None:
        if self._size != self._console.size:
            self._size = self._console.size
            if self._drawn:
                self._write("\n")
                self._drawn = []
        same = 0
        while same < min(len(lines), len(self._drawn)) and lines[same] == self._drawn[same]:
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
        self._write(motion + "\n".join(lines[same:]))
        self._drawn = lines

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
