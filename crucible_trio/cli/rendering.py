"""Where an answer goes: a pipe, a plain terminal, or a terminal in which Markdown is rendered."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import BinaryIO, Final, Protocol, final

import trio
from rich.console import Console

from crucible_trio.cli.live_lines import LiveLines
from crucible_trio.cli.markdown import OpenText, render_block
from crucible_trio.errors import ConfigError

# Control characters in a model's text must not reach a terminal: no escape, no backspace, no C1 control.
_CONTROLS: Final = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

# At most 20 frames a second. A slow frame, such as a long list, gets a fifth of the time.
_FRAME_SECONDS: Final = 0.05
_REST_PER_WORK: Final = 4.0


class Display(Protocol):
    """Where the text goes. While it is muted, it only follows the text, which an earlier command has shown."""

    muted: bool

    def unmute(self) -> None:
        """Show what comes from now on."""

    def answer(self, text: str) -> None:
        """A piece of the answer, which may be Markdown."""

    def other(self, text: str, style: str | None = None) -> None:
        """A piece of any other text, which is not Markdown."""

    def part(self) -> None:
        """Begin another part, after an empty line."""

    def end(self) -> None:
        """Show everything that is still held back, and end the line."""

    def break_off(self) -> None:
        """Show everything that is still held back, of an answer that is not whole."""

    def pause(self) -> None:
        """Free the line for a note on the same terminal."""

    async def run(self) -> None:
        """Draw from time to time, until cancelled."""


def open_display(*, markdown: bool) -> Display:
    """The display for this process's standard output.

    Args:
        markdown: Whether a terminal renders Markdown.

    Raises:
        ConfigError: Standard output is closed.
    """
    if sys.stdout is None:  # Python's value for a closed one
        raise ConfigError("standard output is closed")
    # Not `Console.is_terminal`: environment variables set it for pipes, too, and those get the text as it is.
    if not sys.stdout.isatty():
        return _Pipe(sys.stdout.buffer)
    console = Console(highlight=False, markup=False, emoji=False)
    if markdown and console.is_terminal and not console.is_dumb_terminal:
        return _MarkdownTerminal(console)
    return _Terminal(console)


@final
class _Pipe:
    """Writes the bytes of the text as the model wrote it. Raises `BrokenPipeError` when its reader has exited."""

    def __init__(self, out: BinaryIO) -> None:
        self.muted = False
        self._out = out
        self._ends_line = True

    def answer(self, text: str) -> None:
        if text:
            self._ends_line = text.endswith("\n")
        if self.muted:
            return
        try:
            self._out.write(text.encode())
            self._out.flush()
        except OSError as error:
            # Python flushes standard output once more at its exit, and would complain.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            message = f"cannot write to standard output: {error.strerror}"
            raise ConfigError(message) from error

    def other(self, text: str, style: str | None = None) -> None:
        self.answer(text)

    def unmute(self) -> None:
        self.muted = False

    def part(self) -> None:
        self.answer("\n\n")

    def end(self) -> None:
        if not self._ends_line:
            self.answer("\n")

    def break_off(self) -> None:
        pass  # no line end: the rest may follow from the next command

    def pause(self) -> None:
        pass

    async def run(self) -> None:
        await trio.sleep_forever()


class _Terminal:
    """Writes text to a terminal as it arrives, without its control characters."""

    def __init__(self, console: Console) -> None:
        self.muted = False
        self._console = console
        self._at_line_start = True

    def unmute(self) -> None:
        self.muted = False
        self._at_line_start = True

    def answer(self, text: str) -> None:
        self.other(text)

    def part(self) -> None:
        self.end()
        self.other("\n")

    def end(self) -> None:
        if not self._at_line_start:
            self.other("\n")

    def break_off(self) -> None:
        self.end()

    def pause(self) -> None:
        self.end()

    async def run(self) -> None:
        await trio.sleep_forever()

    def other(self, text: str, style: str | None = None) -> None:
        text = text.translate(_CONTROLS)
        if not text:
            return
        if not self.muted:
            self._console.out(text, end="", style=style)
        self._at_line_start = text.endswith("\n")


@final
class _MarkdownTerminal(_Terminal):
    """Renders the answer. Blocks that are whole are printed once. The last one is drawn again when it grows."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._lines = LiveLines(console)
        self._open = OpenText()
        self._follows_block = False
        self._changed = trio.Event()

    def unmute(self) -> None:
        super().unmute()
        self._open.skip()

    def answer(self, text: str) -> None:
        if not self._open.source:
            super().end()  # lines can only be drawn from the beginning of a line
        self._open.source += text.translate(_CONTROLS)
        self._changed.set()

    def other(self, text: str, style: str | None = None) -> None:
        self._keep_answer()
        self._follows_block = False
        super().other(text, style)

    def end(self) -> None:
        self._keep_answer()
        super().end()

    def pause(self) -> None:
        self._lines.keep([])
        self._changed.set()
        super().end()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            began = time.perf_counter()
            self.draw()
            await trio.sleep(max(_FRAME_SECONDS, (time.perf_counter() - began) * _REST_PER_WORK))

    def draw(self) -> None:
        """Draw the answer so far."""
        if self.muted:
            return
        self._keep_blocks()
        # A long block of code is printed piece by piece. Any other block is printed when it is whole.
        if self._open.source.count("\n") >= self._console.height and (code := self._open.take_code()):
            self._keep(code, is_rest=self._open.is_rest)
            self._open.is_rest = True
        lines = self._render(self._open.source, is_rest=self._open.is_rest)
        self._lines.draw(lines)

    def _keep_answer(self) -> None:
        if self._open.source and not self.muted:
            if not self._open.source.endswith("\n"):
                self._open.source += "\n"
            self._keep_blocks()
            self._keep(self._open.source, is_rest=self._open.is_rest)
        self._open = OpenText()

    def _keep_blocks(self) -> None:
        is_rest = self._open.is_rest
        for block in self._open.take_blocks():
            self._keep(block, is_rest=is_rest)
            is_rest = False

    def _keep(self, block: str, *, is_rest: bool) -> None:
        lines = self._render(block, is_rest=is_rest)
        self._lines.keep(lines)
        self._follows_block = self._follows_block or bool(lines)

    def _render(self, source: str, *, is_rest: bool) -> list[str]:
        lines = render_block(source, self._console, is_rest=is_rest)
        return ["", *lines] if lines and self._follows_block and not is_rest else lines
