"""Markdown as lines for a terminal, and where a text that is still arriving can be cut into blocks.

A model's text is not always the Markdown that its author had in mind, so nothing may vanish. The parser leaves out the
rules that hide text (HTML, links, images, references, entities, most escapes). As a second line of defence, a block
whose letters are not all in its rendering is shown as it was written.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import ClassVar, Final, final

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline import escape as escape_any
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import CodeBlock, Markdown, MarkdownElement
from rich.syntax import Syntax
from rich.text import Text

_HIDING_BLOCK_RULES: Final = ["html_block", "reference"]
_HIDING_INLINE_RULES: Final = ["html_inline", "link", "image", "autolink", "entity"]

# Spaces, marks of Markdown and the lines and bullets that rich draws.
_NOT_LETTERS = re.compile(r"[\s!-/:-@\[-`{-~\u2022\u2500-\u259f]+")
_STYLES = re.compile(r"\x1b\[[0-9;]*m")

# `\*` means an asterisk. But `\(` and `\[` begin a formula, and `\\` ends a line in one.
_ESCAPED: Final = frozenset("*_`~#")


def _escape(state: StateInline, silent: bool) -> bool:
    following = state.src[state.pos + 1 : state.pos + 2]
    return following in _ESCAPED and escape_any(state, silent)


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    parser.disable([*_HIDING_BLOCK_RULES, *_HIDING_INLINE_RULES])
    parser.inline.ruler.at("escape", _escape)
    return parser


_parser = _make_parser()
_block_parser = _make_parser().disable("inline")


class _Code(CodeBlock):
    """A code block without empty lines around it, with the words after the fence, and with all its lines."""

    info = ""

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> _Code:
        code = cls((token.info.split() or ["text"])[0], markdown.code_theme)
        code.info = token.info.strip() if isinstance(markdown, _Block) and markdown.shows_info else ""
        return code

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.info:
            yield Text(self.info, style="dim")
        code = str(self.text).removesuffix("\n")
        if code:
            yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, padding=(0, 1))


@final
class _Block(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = Markdown.elements | {"fence": _Code, "code_block": _Code}

    def __init__(self, source: str, *, shows_info: bool) -> None:
        super().__init__("")
        self.shows_info = shows_info
        self.parsed = _parser.parse(source)
        self.is_code = bool(self.parsed) and self.parsed[0].type in {"fence", "code_block"}
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":  # a model that ends a line means it: verses, addresses
                    child.type = "hardbreak"


def render_block(source: str, console: Console, *, is_rest: bool = False) -> list[str]:
    """The lines of a block, with escape sequences for colours, none wider than the terminal.

    Args:
        source: The block as the model wrote it.
        console: The terminal.
        is_rest: Whether it is code whose beginning was shown before. Its first line is not shown again.
    """
    block = _Block(source, shows_info=not is_rest)
    lines = _print(block, console)
    expected = source.partition("\n")[2] if is_rest else source
    if not block.is_code:
        lines = _strip_empty(lines)  # rich's, around lists and tables
    shown = "".join(map(_without_styles, lines))
    if _NOT_LETTERS.sub("", shown) != _NOT_LETTERS.sub("", expected):
        lines = _strip_empty(_print(Text(expected, overflow="fold"), console))
    return lines


def _print(renderable: RenderableType, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(renderable)
    return [line.rstrip(" ") for line in captured.get().split("\n")][:-1]


def _strip_empty(lines: list[str]) -> list[str]:
    full = [index for index, line in enumerate(lines) if _without_styles(line).strip()]
    return lines[full[0] : full[-1] + 1] if full else []


def _without_styles(line: str) -> str:
    return _STYLES.sub("", line)


@final
class OpenText:
    """Text that is still arriving, without the blocks that later text cannot change any more.

    Only complete lines decide where a block ends: `1` can become the item `1. one`, and `#` the word `#tag`.

    Attributes:
        source: The text of the last block, as far as it has arrived.
        is_rest: Whether the block is code whose beginning was cut off. Its first line was left, for the parser.
    """

    def __init__(self) -> None:
        self.source = ""
        self.is_rest = False

    def take_blocks(self) -> list[str]:
        """Cut off the blocks before the last one."""
        starts = [token.map[0] for token in self._blocks() if token.map]
        lines = _split_lines(self.source)
        blocks = [lines[start:end] for start, end in pairwise(starts)]
        if blocks:
            self.source = "".join(lines[starts[-1] :])
            self.is_rest = False
        return ["".join(block) for block in blocks]

    def take_code(self) -> str:
        """Cut complete lines off a code block, and leave the line with its fence. Empty if the block is not code."""
        fence = self._fence()
        if fence is None:
            return ""
        first, code, rest = fence
        self.source = first + rest
        return first + code if code else ""

    def skip(self) -> None:
        """Cut off everything that has arrived. Inside a code block, the text that follows is still code."""
        self.take_blocks()
        fence = self._fence()
        self.is_rest = fence is not None and "\n" not in fence[2]  # a line after the code is the closing fence
        self.source = fence[0] if fence is not None and self.is_rest else ""

    def _fence(self) -> tuple[str, str, str] | None:
        """The line of the fence, the complete lines of code, and the rest."""
        match self._blocks():
            case [Token(type="fence", map=[start, _], content=code)]:
                lines = _split_lines(self.source)
                end = start + 1 + code.count("\n")
                return lines[start], "".join(lines[start + 1 : end]), "".join(lines[end:])
        return None

    def _blocks(self) -> list[Token]:
        complete = self.source[: self.source.rfind("\n") + 1]
        return [token for token in _block_parser.parse(complete) if token.level == 0 and token.map]


def _split_lines(text: str) -> list[str]:
    """With their line ends. `str.splitlines` also cuts at other characters, which Markdown does not."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)
