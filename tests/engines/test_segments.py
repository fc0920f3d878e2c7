"""Cutting a trace at its numbered steps."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.engines.segments import SegmentCutter


def cut(*texts: str) -> list[tuple[int, str]]:
    """Feed the texts and join the pieces of each segment."""
    cutter = SegmentCutter()
    joined: list[tuple[int, str]] = []
    for segment, text in [piece for fed in texts for piece in cutter.feed(fed)] + cutter.flush():
        assert text
        if joined and joined[-1][0] == segment:
            joined[-1] = segment, joined[-1][1] + text
        else:
            joined.append((segment, text))
    return joined


trace_text = st.text(alphabet="1234 .)\n\ta", max_size=40)


@given(trace_text, st.data())
def test_no_text_is_lost_and_the_split_into_pieces_does_not_matter(text: str, data: st.DataObject) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    assert cut(*pieces) == cut(text)
    assert "".join(piece for _, piece in cut(*pieces)) == text


@given(trace_text)
def test_segments_count_from_zero_without_holes(text: str) -> None:
    segments = [segment for segment, _ in cut(text)]
    assert segments == list(range(len(segments)))


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("1. one\n2. two\n", ["1. one\n", "2. two\n"]),
        ("\n\n1. one\n\n2. two", ["\n\n1. one\n\n", "2. two"]),
        ("Steps:\n1. one", ["Steps:\n", "1. one"]),
        ("1) one\n 2) two\n   3) three", ["1) one\n", " 2) two\n", "   3) three"]),
        ("1. one\r\n2. two", ["1. one\r\n", "2. two"]),
        ("9. nine\n10. ten", ["9. nine\n", "10. ten"]),
        ("1. one\n2.", ["1. one\n", "2."]),
        ("1. one\n2.\ntwo", ["1. one\n", "2.\ntwo"]),
        # not steps
        ("1. one\n1990. was a year", ["1. one\n1990. was a year"]),
        ("1. one\n2.5 litres", ["1. one\n2.5 litres"]),
        ("1. one\n    2. deeper", ["1. one\n    2. deeper"]),
        ("1. one 2. not at the start of a line", ["1. one 2. not at the start of a line"]),
        ("1. one\n2", ["1. one\n2"]),
        ("1. one\n  ", ["1. one\n  "]),
        ("no steps\nat all", ["no steps\nat all"]),
        ("", []),
    ],
)
def test_a_step_is_a_line_that_begins_with_a_number(text: str, segments: list[str]) -> None:
    assert cut(text) == list(enumerate(segments))


def test_only_text_that_may_become_a_step_is_held_back() -> None:
    cutter = SegmentCutter()
    assert cutter.feed("1") == []
    assert cutter.feed(".") == []
    assert cutter.feed(" Leaves") == [(0, "1. Leaves")]
    assert cutter.feed(" fall.\n\n") == [(0, " fall.\n\n")]
    assert cutter.feed("2") == []
    assert cutter.feed(" apples") == [(0, "2 apples")]
    assert cutter.flush() == []


def test_a_real_trace_has_a_segment_for_each_of_its_steps() -> None:
    recording = (resources.files("crucible_trio.engines") / "recordings" / "deep.jsonl").read_text("utf-8")
    pieces = [line["text"] for line in map(json.loads, recording.splitlines()) if line["kind"] == "trace"]
    segments = cut(*pieces)
    assert [text[:2] for _, text in segments] == ["1.", "2.", "3.", "4.", "5."]
    assert "".join(text for _, text in segments) == "".join(pieces)
