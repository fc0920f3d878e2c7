"""The check finds a token that is lost, repeated or out of order. Merged tokens count separately."""

from __future__ import annotations

import pytest

from benchmarks.spec import Spec
from benchmarks.tokens import TOKEN_LENGTH, TokensLostError, check, latencies_ns, stamp, token


def text(*numbers: int) -> bytes:
    return "".join(token(stamp(10**12 + 7 * number), number) for number in numbers).encode()


def test_all_tokens_have_the_same_length() -> None:
    assert {len(token(stamp(now), number)) for now in (0, 10**15) for number in (0, 9_999_999)} == {TOKEN_LENGTH}


def test_a_complete_text_passes() -> None:
    assert check(text(*range(1000)), count=1000) == 1000
    assert check(text(5, 6, 7), first=5) == 3
    assert check(b"") == 0


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 3), "'0000003 ' arrived instead of 2"),
        ((0, 1, 1, 2), "'0000001 ' arrived instead of 2"),
        ((0, 2, 1), "'0000002 ' arrived instead of 1"),
        ((1, 2), "'0000001 ' arrived instead of 0"),
    ],
)
def test_a_lost_or_repeated_token_is_found(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(TokensLostError, match=message):
        check(text(*numbers))


def test_a_missing_end_is_found() -> None:
    with pytest.raises(TokensLostError, match="2 tokens instead of 3"):
        check(text(0, 1), count=3)
    with pytest.raises(TokensLostError, match="not a whole number"):
        check(text(0, 1)[:-1])


def test_each_token_of_a_merged_record_has_a_separate_latency() -> None:
    assert latencies_ns(text(0, 1, 2), 10**12 + 20) == [20, 13, 6]


def test_a_spec_is_the_same_after_the_prompt() -> None:
    spec = Spec(kind="timer", name="s1", tokens=10, rate=20, offset=0.5, fill=3)
    assert Spec.from_json(spec.to_json()) == spec
