"""Markdown in a terminal: it streams, every word stays, and nothing of it controls the terminal."""

from __future__ import annotations

import re
import sys
from io import BytesIO, StringIO, TextIOWrapper

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.cli.answer import AnswerPrinter
from crucible_trio.cli.live_lines import LiveLines
from crucible_trio.cli.markdown import OpenText, render_block
from crucible_trio.cli.rendering import _MarkdownTerminal, _Terminal, open_display
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    StreamCompleted,
    Timings,
    ToolCallDelta,
    ToolCallStarted,
    Usage,
)

from .screen import Screen

FRAGMENTS = [
    *("word", "two words", "naïve", "日本語", "e\u0301", "👩‍🚀", "x" * 50, "汉" * 30, "[/INST]", "[bold]", "x[local]"),
    *(" ", "\n", "\n\n", "\t", "    ", "  ", "\\", "\\(a\\)", "\\[", "\\*", "&amp;", "&nbsp", "\u2028", "\xa0"),
    *("*", "**", "_", "__", "~~", "`", "``", "```", "```py\n", "\n```\n", "\n```", "~~~\n", "#", "# ", "\n## two\n"),
    *("- ", "\n- ", "\n  - ", "\n1. ", "\n3) ", "> ", "\n> ", "---", "\n---\n", "\n===\n", "+ ", "- [ ] task"),
    *("| a | b |\n|---|---|\n| 1 | 2 |\n", "| a | b |\n|--|\n", "\n| 1 | 2 | 3 |", "|", "\n|:-:|\n", "|\n|-|\n"),
    *(
        "[link](http://h/p)",
        "![image](http://h/i)",
        "\n[id]: http://h/r\n",
        "[id]",
        "<http://h/auto>",
        "[a](b 'title')",
    ),
    *(
        "<b>",
        "</b>",
        "<think>",
        "\n<div>\nhtml\n</div>\n",
        "<!-- comment -->",
        "<script>",
        ":smile:",
        "https://h/p?q=1",
    ),
    *("\x1b[31m", "\x1b]0;title\x07", "\x08", "\r", "\r\n", "\x9b2J", "\x7f", "\x00", "\x0c"),
]
ANSWERS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=25).map("".join)


def letters(text: str) -> str:
    """The text without spaces, the marks of Markdown, and characters that only draw."""
    return "".join(c for c in text if c.isalnum() or c in "👩🚀")


def shown(pieces: list[str], *, width: int = 30, height: int = 8, draw: bool = True) -> str:
    """Everything on the screen and above it, after each piece was drawn."""
    out = StringIO()
    display = _MarkdownTerminal(fake_terminal(out, width, height))
    for piece in pieces:
        display.answer(piece)
        if draw:
            display.draw()
    display.end()
    screen = Screen(width, height)
    screen.feed(out.getvalue())
    return screen.text


def fake_terminal(out: StringIO, width: int = 30, height: int = 8) -> Console:
    return Console(
        file=out, force_terminal=True, width=width, height=height, color_system="truecolor", markup=False, emoji=False
    )


def visible(text: str) -> str:
    """A text without its control characters."""
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c < "\xa0"))


@pytest.mark.slow
@given(ANSWERS, st.data())
@example("```python title\nprint(1)\n", None)
@example("a <b>c</b> [t](http://u 'v') ![i](http://j)\n\n[ref]: http://r\n", None)
@example("| a | b |\n|---|---|\n| 1 | 2 | three |\n", None)
@example("| " + "x" * 40 + " | b |\n|---|---|\n", None)
@example("1. a\n1. b\n", None)
@example("two wordswordwordwordword👩\u200d🚀", None)
@example("\n```| a | b |\n" + "line\n" * 20, None)
def test_every_letter_is_shown_once_and_in_order_for_any_split_into_pieces(answer: str, data: st.DataObject) -> None:
    width, height = (30, 8) if data is None else (data.draw(st.integers(12, 60)), data.draw(st.integers(2, 12)))
    cuts = [] if data is None else sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    text = shown(pieces, width=width, height=height)
    assert letters(text) == letters(visible(answer))


@pytest.mark.slow
@given(ANSWERS)
def test_no_block_is_wider_than_the_terminal(answer: str) -> None:
    for line in render_block(visible(answer).replace("\t", " "), fake_terminal(StringIO(), 20)):
        assert cell_len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 20


ANSWER = """\
# Tea

Boil **fresh** water.
Pour it.

- black: *four* minutes
- green:
  two

```python
def steep(minutes):
    return minutes * 60
```

| tea | minutes |
|---|---|
| black | 4 |

Done.
"""


def test_markdown_is_rendered_the_same_however_it_arrives() -> None:
    whole = shown([ANSWER], width=40, height=50, draw=False)
    assert shown(list(ANSWER), width=40, height=50) == whole
    assert [line.strip() for line in whole.splitlines()] == [
        *("Tea", "", "Boil fresh water.", "Pour it.", "", "• black: four minutes", "• green:", "two", ""),
        *("python", "def steep(minutes):", "return minutes * 60", "", "tea    minutes", "──────────────"),
        *("black  4", "", "Done."),
    ]


def test_an_answer_taller_than_the_screen_is_in_the_scrollback_once() -> None:
    for text in (
        "".join(f"Paragraph {n}.\n\n" for n in range(30)),
        "".join(f"- item {n}\n" for n in range(30)),
        "```\n" + "".join(f"line {n}\n" for n in range(30)) + "```\n",
        "".join(f"line {n}\n" for n in range(30)),
    ):
        assert [int(n) for n in re.findall(r"\d+", shown(list(text), height=6))] == list(range(30))


def test_the_lines_of_a_long_block_of_code_are_printed_before_its_end() -> None:
    out = StringIO()
    display = _MarkdownTerminal(fake_terminal(out, 30, 6))
    display.answer("```py\n")
    for number in range(30):
        display.answer(f"line{number}()\n")
        display.draw()
    screen = Screen(30, 6)
    screen.feed(out.getvalue())
    assert [int(n) for n in re.findall(r"\d+", screen.text)] == list(range(30))
    assert screen.lines[0].startswith("py")
    assert out.getvalue().count("line0") == 1, "a line that has not changed was drawn again"


def test_only_lines_that_changed_are_drawn_again() -> None:
    out = StringIO()
    lines = LiveLines(fake_terminal(out))
    lines.draw(["one", "two"])
    out.truncate(0)
    out.seek(0)
    lines.draw(["one", "two"])
    assert out.getvalue() == ""
    lines.draw(["one", "two!", "three"])
    assert out.getvalue() == "\x1b[?7l\r\x1b[Jtwo!\nthree\x1b[?7h"
    lines.draw(["one", "two!"])
    screen = Screen(30, 8)
    screen.feed("one\ntwo" + out.getvalue())
    lines.keep(["one", "2", "3"])
    screen = Screen(30, 8)
    screen.feed("one\ntwo" + out.getvalue() + "next")
    assert screen.text == "one\n2\n3\nnext"


def test_a_line_that_is_wider_than_it_seems_wraps_when_it_is_kept() -> None:
    joined = "👩\u200d🚀"  # two columns for rich, four for many terminals
    out = StringIO()
    lines = LiveLines(fake_terminal(out, 10))
    for end in range(1, 4):
        lines.draw(["first", "1234567" + joined, *map(str, range(end))])
    screen = Screen(10, 8)
    screen.feed(out.getvalue())
    assert len(screen.lines) == 5
    lines.keep(["first", "1234567" + joined, "last"])
    screen = Screen(10, 8)
    screen.feed(out.getvalue())
    assert screen.text == "first\n1234567👩\u200d\n🚀\nlast"


def test_a_terminal_that_changes_its_size_keeps_what_it_shows() -> None:
    out = StringIO()
    console = fake_terminal(out)
    lines = LiveLines(console)
    lines.draw(["one", "two"])
    console.width = 20
    lines.draw(["one", "two", "three"])
    screen = Screen(30, 8)
    screen.feed(out.getvalue())
    assert screen.text == "one\ntwo\none\ntwo\nthree"


@pytest.mark.parametrize("kind", [_MarkdownTerminal, _Terminal])
def test_a_models_escape_sequences_do_not_reach_a_terminal(kind: type[_Terminal]) -> None:
    out = StringIO()
    display = kind(Console(file=out, force_terminal=True, width=80, height=20, no_color=True, color_system=None))
    for write in (display.answer, display.other):
        write("a\x1b[31mb\x1b]0;t\x07c\x9b2Jd\re\x08f")
        display.end()
    assert out.getvalue() == "a[31mb]0;tc2Jdef\n" * 2


@pytest.mark.parametrize(
    "text", ["no [/INST] here", "x[local]", "[bold]b[/bold]", ":smile:", "[link=http://h]t[/link]"]
)
@pytest.mark.parametrize("kind", [_MarkdownTerminal, _Terminal])
def test_text_that_looks_like_richs_markup_is_shown_as_it_is(text: str, kind: type[_Terminal]) -> None:
    out = StringIO()
    display = kind(fake_terminal(out, 80))
    display.answer(text)
    display.end()
    screen = Screen(80, 8)
    screen.feed(out.getvalue())
    assert screen.text == text


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("one\ntwo", ["one", "two"]),  # a line end stays one
        (r"\(x_1\) and \[ y \] cost 3 \* 4", [r"\(x_1\) and \[ y \] cost 3 * 4"]),
        ("see [docs](http://h/p)", ["see [docs](http://h/p)"]),
        ("use <b> and &lt;", ["use <b> and &lt;"]),
        ("1. a\n1. b", ["1. a", "1. b"]),  # rich would number them 1 and 2
        ("| a |\n|---|\n| 1 | lost |", ["| a |", "|---|", "| 1 | lost |"]),  # Markdown drops the last cell
        ("```\n\n\na\n\n```", ["", "", " a", ""]),
        ("```", []),
    ],
)
def test_what_markdown_or_rich_would_hide_is_shown(source: str, lines: list[str]) -> None:
    console = Console(file=StringIO(), width=60, height=20, color_system=None, force_terminal=True)
    assert [line.rstrip() for line in render_block(source, console)] == lines


def test_only_complete_lines_end_a_block() -> None:
    text = OpenText()
    text.source = "- a\n\n1"
    assert text.take_blocks() == []
    text.source += ". b\n"
    assert text.take_blocks() == ["- a\n\n"]
    assert text.source == "1. b\n"
    text.source = "para\n#"
    assert text.take_blocks() == []
    text.source += "tag\n"
    assert text.take_blocks() == []
    text.source = "    code\n\npara\n"
    assert text.take_blocks() == ["    code\n\n"]


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        ("one\n\n- tw", ""),
        ("```py\na\nb", "```py\n"),
        ("x\n\n```py\na\n", "```py\n"),
        ("```py\na\n```\n", ""),
        ("```py\na\n```\nb", ""),
        ("", ""),
    ],
)
def test_text_that_was_shown_before_leaves_only_an_open_fence(source: str, rest: str) -> None:
    text = OpenText()
    text.source = source
    text.skip()
    assert text.source == rest


END = StreamCompleted(99, "stop", Usage(), Timings(None, 1.0))


def printed(records: list[AnyRecord], after: int = 0) -> str:
    out = StringIO()
    printer = AnswerPrinter(_MarkdownTerminal(fake_terminal(out, 40, 10)), after=after)
    for record in (*records, END):
        printer.add(record)
    assert printer.finish() == 0
    screen = Screen(40, 10)
    screen.feed(out.getvalue())
    return screen.text


def test_the_trace_is_plain_text_and_each_part_begins_after_an_empty_line() -> None:
    records: list[AnyRecord] = [
        *(ReasoningDelta(2, 0, "1. *Hm*"), ReasoningDelta(3, 0, " so")),
        *(OutputDelta(4, "It is **"), OutputDelta(5, "late**.")),
        *(ToolCallStarted(6, 0, "c", "now"), ToolCallDelta(7, 0, '{"a": "*b*"}')),
        *(ToolCallStarted(8, 1, "d", "then"), ToolCallDelta(9, 1, "{}")),
        *(OutputDelta(10, "Bye"), ReasoningDelta(11, 1, "Hm?")),
    ]
    assert printed(records).splitlines() == [
        *("Reasoning", "1. *Hm* so", "", "Answer", "It is late.", "", 'Tool call now {"a": "*b*"}', ""),
        *("Tool call then {}", "", "Answer", "Bye", "", "Reasoning", "Hm?"),
    ]


@pytest.mark.slow
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=2, max_size=20), st.data())
@example(["a\n", "    code\n"], None)
@example(["```py\n", "```py\nx"], None)
def test_what_two_commands_show_is_the_whole_answer(pieces: list[str], data: st.DataObject) -> None:
    records = [OutputDelta(number, piece) for number, piece in enumerate(pieces, 2)]
    shown_first = 1 if data is None else data.draw(st.integers(1, len(pieces) - 1))
    screen = Screen(40, 10)
    for after, end in ((0, shown_first), (1 + shown_first, len(pieces))):
        out = StringIO()
        printer = AnswerPrinter(_MarkdownTerminal(fake_terminal(out, 40, 10)), after=after)
        for record in records[:end]:
            printer.add(record)
        assert printer.last_seq == 1 + end
        printer.break_off()
        screen.feed(out.getvalue())
    assert letters(screen.text) == letters(visible("".join(pieces)))


def test_a_stream_that_is_resumed_inside_code_shows_the_rest_as_code() -> None:
    records: list[AnyRecord] = [
        *(OutputDelta(2, "Text\n\n```py\na = 1\n"), OutputDelta(3, "# b*c*d\n"), OutputDelta(4, "```\n\nEnd *now*"))
    ]
    assert printed(records, after=2).splitlines() == [" # b*c*d", "", "End now"]
    assert printed(records, after=4) == ""


async def test_the_answer_is_drawn_while_it_arrives(autojump_clock: MockClock) -> None:
    out = StringIO()
    display = _MarkdownTerminal(fake_terminal(out))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(display.run)
        for text in ("Hel", "lo"):
            display.answer(text)
            await trio.sleep(1)
        display.answer(" you")
        display.answer(" there")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    drawn = [frame for frame in out.getvalue().split("\x1b[?7l") if frame]
    assert drawn == ["Hel\x1b[?7h", "\r\x1b[JHello\x1b[?7h", "\r\x1b[JHello you there\x1b[?7h"]


class _Output(TextIOWrapper):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__(BytesIO(), "utf-8")
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    @property
    def written(self) -> bytes:
        self.flush()
        return self.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
@given(text=st.text() | ANSWERS)
def test_a_pipe_gets_the_bytes_as_the_model_wrote_them(variable: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, "1")
        patch.setattr(sys, "stdout", out := _Output(is_terminal=False))
        display = open_display(markdown=True)
        display.answer(text)
        display.end()
    assert out.written == (text if text.endswith("\n") or not text else f"{text}\n").encode()


@pytest.mark.parametrize(
    ("markdown", "term", "expected"),
    [(True, "xterm", "bold\n"), (False, "xterm", "**bold**\n"), (True, "dumb", "**bold**\n")],
)
def test_markdown_is_rendered_in_a_terminal_that_can(
    markdown: bool, term: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", out := _Output(is_terminal=True))
    display = open_display(markdown=markdown)
    display.answer("**bold**")
    display.end()
    assert re.sub(r"\x1b\[\d*m", "", out.written.decode()) == expected
