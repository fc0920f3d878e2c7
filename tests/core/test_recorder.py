import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_trio.output import Token
from crucible_trio.recorder import MAX_FRAME_BYTES, TERMINAL_RESERVE_BYTES, Recorder, bounded_error
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCancelled,
    StreamCreated,
    StreamFailed,
    Terminal,
    Timings,
    Usage,
    decode_frame,
    new_stream_id,
)

STREAM = "str_7Q2M4kWcT0aXn3v9LzB1pg"
PLENTY = 10**9


def ending(seq: int) -> Terminal:
    return StreamCancelled(seq, "client", Usage(), Timings(None, 1.0))


def record(batches: list[list[Token]], rest: list[Token], max_bytes: int = PLENTY) -> tuple[Recorder, list[bytes]]:
    recorder = Recorder(STREAM, max_bytes=max_bytes)
    frames = [recorder.create(mode="deep", model="m", created_at=1.0)]
    for batch in batches:
        frames += recorder.add(batch)
    return recorder, frames + recorder.finish(rest, ending)


def decoded(frames: list[bytes]) -> list[AnyRecord]:
    return [decode_frame(frame) for frame in frames]


def texts_of_pieces(tokens: list[Token]) -> dict[int | None, str]:
    """The expected text of each segment, and of the answer under None: pieces joined, half characters replaced.

    A half character is joined only with the piece directly after it. A piece of another segment in between keeps the
    halves apart.
    """
    runs: list[tuple[int | None, str]] = []
    for token in tokens:
        if runs and runs[-1][0] == token.segment:
            runs[-1] = (token.segment, runs[-1][1] + token.text)
        else:
            runs.append((token.segment, token.text))
    texts: dict[int | None, str] = {}
    for segment, text in runs:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        texts[segment] = texts.get(segment, "") + whole
    return texts


def texts_of_records(records: list[AnyRecord]) -> dict[int | None, str]:
    texts: dict[int | None, str] = {}
    for found in records:
        if isinstance(found, ReasoningDelta):
            texts[found.segment] = texts.get(found.segment, "") + found.delta
        elif isinstance(found, OutputDelta):
            texts[None] = texts.get(None, "") + found.delta
    return texts


@st.composite
def pieces_as_engines_write_them(draw: st.DrawFn) -> list[Token]:
    piece = st.one_of(
        st.text(st.characters(), min_size=1, max_size=5),
        st.text(alphabet='a\ud83d\ude00\x85\u2028\n"', min_size=1, max_size=5),
        st.builds(lambda text, times: text * times, st.sampled_from(["x", "\x85", "😀", "é"]), st.integers(1, 9000)),
    )
    segment = 0
    tokens = []
    for kind in draw(st.lists(st.sampled_from(["answer", "same", "next"]), max_size=12)):
        segment += kind == "next" and bool(tokens)
        tokens.append(Token(draw(piece), None if kind == "answer" else segment))
    return tokens


def batched(tokens: list[Token], places: list[int]) -> Iterator[list[Token]]:
    bounds = [0, *sorted(place % (len(tokens) + 1) for place in places), len(tokens)]
    return (tokens[begin:end] for begin, end in pairwise(bounds))


ANY_BATCHING = st.lists(st.integers(0, 100), max_size=8)


def check_shape(frames: list[bytes]) -> None:
    records = decoded(frames)
    assert [found.seq for found in records] == list(range(1, len(records) + 1))
    assert isinstance(records[0], StreamCreated)
    assert [found for found in records if isinstance(found, StreamCancelled)] == records[-1:]
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert all(found.delta for found in records if isinstance(found, OutputDelta | ReasoningDelta))
    # `reasoning.done` comes exactly where a trace stops. It counts the segments since the previous one.
    since: list[int] = []
    for found in records:
        if isinstance(found, ReasoningDelta):
            if found.segment not in since[-1:]:
                since.append(found.segment)
        elif isinstance(found, ReasoningDone):
            assert found.segments == len(since) > 0
            assert found.trace is None
            since = []
        else:
            assert not since, "a trace stopped without reasoning.done"


@given(pieces_as_engines_write_them(), ANY_BATCHING)
@example([Token("\ud83d", None), Token("\ude00", None)], [1])
@example([Token("\ud83d", 0), Token("\ude00", 1)], [1])
@example([Token("\ud83d", 0), Token("\ude00", None)], [])
@example([Token("😀" * 9000, None)], [])
def test_any_batching_records_the_same_text(tokens: list[Token], places: list[int]) -> None:
    *batches, rest = batched(tokens, places)
    recorder, frames = record(batches, rest)
    assert texts_of_records(decoded(frames)) == texts_of_pieces(tokens)
    assert not recorder.full
    assert recorder.seq == len(frames)
    check_shape(frames)


@given(pieces_as_engines_write_them(), ANY_BATCHING, st.integers(8192, 40_000))
def test_the_byte_cap_is_never_passed_and_the_terminal_record_still_fits(
    tokens: list[Token], places: list[int], max_bytes: int
) -> None:
    *batches, rest = batched(tokens, places)
    recorder, frames = record(batches, rest, max_bytes)
    assert sum(map(len, frames)) <= max_bytes
    check_shape(frames)
    expected = texts_of_pieces(tokens)
    for segment, text in texts_of_records(decoded(frames)).items():  # no text is recorded after a gap
        assert expected[segment].startswith(text)
    if not recorder.full:
        assert texts_of_records(decoded(frames)) == expected


def test_adjacent_pieces_of_the_same_kind_and_segment_become_one_record() -> None:
    tokens = [Token("a", 0), Token("b", 0), Token("c", 1), Token("d", None), Token("e", None), Token("f", 1)]
    recorder = Recorder(STREAM, max_bytes=PLENTY)
    assert decoded(recorder.add(tokens)) == [
        ReasoningDelta(1, 0, "ab"),
        ReasoningDelta(2, 1, "c"),
        ReasoningDone(3, 2),
        OutputDelta(4, "de"),
        ReasoningDelta(5, 1, "f"),
    ]
    assert decoded(recorder.finish([], ending))[:-1] == [ReasoningDone(6, 1)]


def test_a_later_batch_becomes_a_separate_record() -> None:
    recorder = Recorder(STREAM, max_bytes=PLENTY)
    assert decoded(recorder.add([Token("a", None)])) == [OutputDelta(1, "a")]
    assert decoded(recorder.add([Token("b", None)])) == [OutputDelta(2, "b")]


def test_half_a_character_waits_for_its_other_half() -> None:
    recorder = Recorder(STREAM, max_bytes=PLENTY)
    assert decoded(recorder.add([Token("a\ud83d", None)])) == [OutputDelta(1, "a")]
    assert recorder.add([]) == []
    assert decoded(recorder.add([Token("\ude00b", None)])) == [OutputDelta(2, "😀b")]
    assert recorder.add([Token("\ud83d", None)]) == []
    assert decoded(recorder.finish([], ending))[:-1] == [OutputDelta(3, "\ufffd")]


def test_half_a_character_stays_in_its_segment() -> None:
    recorder = Recorder(STREAM, max_bytes=PLENTY)
    recorder.add([Token("\ud83d", 0)])
    assert decoded(recorder.add([Token("\ude00", None)])) == [
        ReasoningDelta(1, 0, "\ufffd"),
        ReasoningDone(2, 1),
        OutputDelta(3, "\ufffd"),
    ]


@pytest.mark.parametrize("character", ["a", "é", "😀", "\x85", "\u2028", "\x00", '"'])
def test_a_large_piece_is_split_between_characters_and_a_frame_is_well_filled(character: str) -> None:
    recorder = Recorder(new_stream_id(), max_bytes=PLENTY)
    frames = recorder.add([Token(character * 50_000, 0)])
    assert all(MAX_FRAME_BYTES / 4 < len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert "".join(found.delta for found in decoded(frames) if isinstance(found, ReasoningDelta)) == character * 50_000


def test_merging_stops_before_a_frame_is_too_large() -> None:
    recorder = Recorder(STREAM, max_bytes=PLENTY)
    frames = recorder.add([Token("\u2028" * 100, None) for _ in range(100)])
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert len(frames) == 4  # 60,000 bytes of escapes


def test_recording_stops_before_the_first_record_that_would_pass_the_cap() -> None:
    recorder = Recorder(STREAM, max_bytes=TERMINAL_RESERVE_BYTES + 1000)
    assert recorder.add([Token("a" * 500, None)])
    assert recorder.add([Token("b" * 500, None)]) == []
    assert recorder.full
    assert recorder.add([Token("c", None)]) == []  # small enough to fit, but it would follow a gap
    assert decoded(recorder.finish([Token("d", None)], ending)) == [ending(2)]


@pytest.mark.parametrize("character", ["a", "\x85", "😀", "\x00"])
def test_the_reserve_fits_the_largest_possible_terminal_record(character: str) -> None:
    error = bounded_error(character * 9999, character * 9999, retryable=True)
    largest = Usage(2**63, 2**63, 2**63)
    recorder = Recorder(STREAM, max_bytes=PLENTY)
    recorder.add([Token("x", 0)])
    frames = recorder.finish([], lambda seq: StreamFailed(seq, error, largest, Timings(1e15 / 3, 1e15 / 3)))
    assert [type(found) for found in decoded(frames)] == [ReasoningDone, StreamFailed]
    assert sum(map(len, frames)) <= TERMINAL_RESERVE_BYTES


def test_an_errors_half_characters_are_replaced() -> None:
    error = bounded_error("a\ud83d", "b\ude00", retryable=False)
    assert (error.code, error.message) == ("a?", "b?")
    json.dumps([error.code, error.message], ensure_ascii=False).encode()
