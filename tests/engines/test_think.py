from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.engines.upstream.think import ThinkSplitter


def split(pieces: list[str]) -> tuple[str, str]:
    """Join the trace and the answer. Asserts that the trace comes first and that no piece is empty."""
    splitter = ThinkSplitter()
    out = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
    assert all(text for _, text in out)
    kinds = [kind for kind, _ in out]
    assert kinds == sorted(kinds, key=("trace", "answer").index)
    return (
        "".join(text for kind, text in out if kind == "trace"),
        "".join(text for kind, text in out if kind == "answer"),
    )


@pytest.mark.parametrize(
    ("text", "trace", "answer"),
    [
        ("", "", ""),
        ("Hello", "", "Hello"),
        ("<think>why</think>because", "why", "because"),
        ("\n<think>\nwhy\n</think>\n\nbecause\n", "why\n", "because\n"),
        ("<think>\n\n</think>\n\nbecause", "", "because"),
        ("<think></think>", "", ""),
        ("<think>cut off", "cut off", ""),
        ("<think>cut off</thi", "cut off</thi", ""),
        ("<thi", "", "<thi"),
        ("  \n", "", "  \n"),
        ("<thinking>x", "", "<thinking>x"),
        ("HTML has neither <think> nor </think>.", "", "HTML has neither <think> nor </think>."),
        ("<think>a</think>b<think>c</think>d", "a", "b<think>c</think>d"),
        ("<think>a <think> b</think> c", "a <think> b", "c"),
        ("<think>1 < 2 </t </thin</think>3", "1 < 2 </t </thin", "3"),
        ("<think><</think>3", "<", "3"),
        ("\n" * 100 + "<think>", "", "\n" * 100 + "<think>"),
    ],
)
def test_one_piece_and_single_characters_give_the_same_result(text: str, trace: str, answer: str) -> None:
    assert split([text]) == (trace, answer)
    assert split(list(text)) == (trace, answer)


FRAGMENTS = st.sampled_from(["<think>", "</think>", "<", "/", "th", "ink>", "</", "\n", " ", "a", "é", "\ud83d"])


@given(st.lists(FRAGMENTS, max_size=12).map("".join), st.data())
def test_the_split_into_pieces_does_not_matter(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces) == split([text])


@given(st.text(alphabet="ab \n<", max_size=30), st.text(alphabet="ab \n</>", max_size=30))
def test_only_the_tags_and_the_space_around_them_are_removed(trace: str, answer: str) -> None:
    assert split([f"<think>{trace}</think>{answer}"]) == (trace.lstrip(), answer.lstrip())


def test_only_text_that_may_become_a_tag_is_held_back() -> None:
    splitter = ThinkSplitter()
    assert splitter.feed("<th") == []
    assert splitter.feed("ink>The") == [("trace", "The")]
    assert splitter.feed(" sky </") == [("trace", " sky ")]
    assert splitter.feed("b>") == [("trace", "</b>")]
    assert splitter.feed("</think>\n") == []
    assert splitter.feed("Blue") == [("answer", "Blue")]
    assert splitter.feed(" <") == [("answer", " <")]


def split_with(tags: dict[str, str], text: str, *, starts_inside: bool = False) -> tuple[str, str]:
    """The trace and the answer of a text in one piece, which must be those of its single characters."""
    results = []
    for pieces in ([text], list(text)):
        splitter = ThinkSplitter(tags, starts_inside=starts_inside)
        out = [part for piece in pieces for part in splitter.feed(piece)] + splitter.flush()
        results.append(
            tuple("".join(text for kind, text in out if kind == wanted) for wanted in ("trace", "answer")),
        )
    assert results[0] == results[1]
    return results[0]


CHANNELS = {"<|channel|>analysis<|message|>": "<|end|><|start|>assistant<|channel|>final<|message|>"}
SEVERAL = {"<think>": "</think>", "<thought>": "</thought>", "[THINK]": "[/THINK]"}


@pytest.mark.parametrize(
    ("tags", "text", "trace", "answer"),
    [
        (SEVERAL, "<thought>why</think></thought>because", "why</think>", "because"),
        (SEVERAL, "[THINK]why[/THINK] because", "why", "because"),
        (SEVERAL, "<think>why</think>because", "why", "because"),
        (SEVERAL, "<thou", "", "<thou"),
        (CHANNELS, f"{next(iter(CHANNELS))}why{CHANNELS[next(iter(CHANNELS))]}because", "why", "because"),
        ({"<a>": "</a>", "<a>b": "/b"}, "<a>bx</a>/by", "x</a>", "y"),
        ({"<a>": "</a>", "<a>b": "/b"}, "<a>x/b</a>y", "x/b", "y"),
        ({}, "<think>why</think>because", "", "<think>why</think>because"),
    ],
)
def test_other_tags(tags: dict[str, str], text: str, trace: str, answer: str) -> None:
    assert split_with(tags, text) == (trace, answer)


@pytest.mark.parametrize(
    ("text", "trace", "answer"),
    [
        ("Okay, far.\n</think>\n\nBlue.", "Okay, far.\n", "Blue."),
        ("<think>\nOkay.</think>Blue.", "Okay.", "Blue."),
        ("\n\nOkay.</thought>Blue.", "Okay.", "Blue."),
        ("</think>Blue.", "", "Blue."),
        ("Okay.", "Okay.", ""),
        ("<thi", "<thi", ""),
        ("\n" * 100 + "<think>x</think>y", "<think>x", "y"),
        ("<thought>a</think>b</thought>c", "a</think>b", "c"),
    ],
)
def test_a_text_can_start_inside_the_trace(text: str, trace: str, answer: str) -> None:
    assert split_with(SEVERAL, text, starts_inside=True) == (trace, answer)


def test_without_tags_no_text_starts_inside_the_trace() -> None:
    assert split_with({}, "Blue.", starts_inside=True) == ("", "Blue.")
