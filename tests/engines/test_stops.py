"""Ending a text at a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.engines.local.stops import StopCutter

short_text = st.text(alphabet="abc", max_size=20)


def cut(stops: list[str], *texts: str) -> tuple[str, str | None]:
    cutter = StopCutter(stops)
    text = "".join(cutter.feed(text) for text in texts) + cutter.flush()
    return text, cutter.found


@given(st.lists(short_text.filter(bool), max_size=3), st.lists(short_text, max_size=8))
def test_the_stop_string_that_ends_first_wins_however_the_text_is_split(stops: list[str], texts: list[str]) -> None:
    whole = "".join(texts)
    ends = [(whole.index(stop) + len(stop), whole.index(stop), stop) for stop in stops if stop in whole]
    _, at, found = min(ends) if ends else (0, len(whole), None)
    assert cut(stops, *texts) == (whole[:at], found)


@pytest.mark.parametrize(
    ("stops", "texts", "expected"),
    [
        (["END"], ["a E", "N", "D b"], "a "),
        (["END"], ["a E", "NE", "ND"], "a EN"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb"),
        (["cd", "b"], ["abcd"], "a"),
        (["aab"], ["aaab"], "a"),
        ([], ["a", "b"], "ab"),
        (["x"], ["ab"], "ab"),
        (["abc"], ["ab"], "ab"),
    ],
)
def test_all_text_before_the_stop_string_is_kept(stops: list[str], texts: list[str], expected: str) -> None:
    assert cut(stops, *texts)[0] == expected


def test_text_after_the_stop_string_is_dropped() -> None:
    cutter = StopCutter(["."])
    assert cutter.feed("one. two") == "one"
    assert cutter.feed("three") == ""
    assert cutter.flush() == ""


def test_only_text_that_may_become_a_stop_string_is_held_back() -> None:
    cutter = StopCutter(["END"])
    assert cutter.feed("the E") == "the "
    assert cutter.feed("a") == "Ea"
