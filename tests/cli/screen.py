"""A terminal that keeps everything it has shown: the screen and the lines that have scrolled off."""

from __future__ import annotations

import re

from rich.cells import cell_len


class Screen:
    """Understands only the output of a display: text, line ends, cursor up, erase below, wrapping, colours."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows: list[list[str]] = [[]]
        self._row = self._column = 0
        self._wraps = True

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip("\n")

    def feed(self, output: str) -> None:
        for part in re.findall(r"\x1b\[\??[0-9;]*[A-Za-z]|\x1b.|[^\x1b]", output, re.DOTALL):
            if part.startswith("\x1b"):
                self._control(part)
            elif part == "\r":
                self._column = 0
            elif part == "\n":
                self._row, self._column = self._row + 1, 0
            else:
                self._put(part)
            while self._row >= len(self.rows):
                self.rows.append([])

    def _control(self, sequence: str) -> None:
        if match := re.fullmatch(r"\x1b\[(\d+)A", sequence):
            self._row = max(self._row - int(match[1]), len(self.rows) - self.height, 0)
        elif sequence == "\x1b[J":
            del self.rows[self._row + 1 :], self.rows[self._row][self._column :]
        elif sequence in {"\x1b[?7l", "\x1b[?7h"}:
            self._wraps = sequence.endswith("h")
        else:
            assert re.fullmatch(r"\x1b\[[0-9;]*m", sequence), f"unexpected {sequence!r}"

    def _put(self, character: str) -> None:
        assert character == "\t" or character.isprintable() or not character.isascii(), f"unexpected {character!r}"
        width = cell_len(character)
        row = self.rows[self._row]
        if width == 0 and row:
            row[-1] += character
            return
        if self._column + width > self.width and not self._wraps:
            self._column = self.width - width
        elif self._column + width > self.width:
            self._row, self._column = self._row + 1, 0
            if self._row == len(self.rows):
                self.rows.append([])
            row = self.rows[self._row]
        row[self._column :] = [*row[: self._column][len(row) :], character, *[""] * (width - 1)]
        self._column += width
