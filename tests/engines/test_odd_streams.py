"""Streams that are odd but whole lose no text. Streams that are cut never look whole."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError

from .odd_streams import OddStream, make_stream
from .reads import Parts, read

# The quick tests read the first thousand streams.
BLOCKS = [0, 1, *(pytest.param(block, marks=pytest.mark.slow) for block in range(2, 20))]


def flat(text: Parts) -> Parts:
    return [(kind, character) for kind, part in text for character in part]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_odd_but_whole_stream_loses_no_text_and_ends_as_it_was_meant(block: int) -> None:
    for seed in range(block * 500, block * 500 + 500):
        stream = make_stream(seed)
        random = Random(seed)
        count = random.choice((0, 1, 5, len(stream.body) - 1))
        cuts = sorted(random.sample(range(1, len(stream.body)), min(count, len(stream.body) - 1)))
        text, end = read(
            stream.body, cuts=cuts, was_cut=not stream.promised and random.random() < 0.2, as_promised=True
        )
        assert isinstance(end, Finish), f"seed {seed}: {end}\n{stream.body.decode()}"
        end = replace(end, stop_string=None)  # an odd `stop_reason`: the engine knows the stop strings of the request
        assert (text, end) == (stream.text, Finish(stream.finish, stream.usage)), f"seed {seed}\n{stream.body.decode()}"


def check_cut(stream: OddStream, at: int, *, was_cut: bool, as_promised: bool) -> None:
    text, end = read(stream.body[:at], was_cut=was_cut, as_promised=as_promised)
    case = f"cut at {at} of {stream.body!r}"
    whole = flat(stream.text)
    if stream.has_calls:
        for (kind, part), (its_kind, its_text) in zip(text, stream.text, strict=False):
            assert kind == its_kind, case
            assert its_text.startswith(part), case
    else:
        assert flat(text) == whole[: len(flat(text))], case
    if at < stream.whole_at:
        assert isinstance(end, EngineError), case
        assert as_promised or (end.code, end.retryable) == ("upstream_ended_early", True), case
    elif not stream.promised:
        assert isinstance(end, Finish), case
        assert flat(text) == whole, case


@pytest.mark.parametrize("block", BLOCKS)
def test_a_stream_that_is_cut_never_looks_whole(block: int) -> None:
    for seed in range(block * 500, block * 500 + 500):
        stream = make_stream(seed)
        random = Random(seed)
        # A proxy can end a body cleanly although the server behind it has died.
        as_promised = not stream.promised and not stream.is_beside_first and random.random() < 0.3
        at = random.randrange(len(stream.body) + 1)
        check_cut(stream, at, was_cut=not as_promised and random.random() < 0.5, as_promised=as_promised)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 20))])
def test_a_stream_never_looks_whole_wherever_it_is_cut(seed: int) -> None:
    stream = make_stream(seed)
    for at in range(len(stream.body) + 1):
        check_cut(stream, at, was_cut=bool(at % 2), as_promised=False)
