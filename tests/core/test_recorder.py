import json
from collections.abc import Iterator
from itertools import pairwise
from math import inf, nan
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_trio.content import (
    MAX_FIELDS_BYTES,
    Continued,
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    TextPiece,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.errors import EngineError, UpstreamReport
from crucible_trio.output import MAX_CALL_ID_LENGTH, MAX_CALL_NAME_LENGTH
from crucible_trio.recorder import MAX_FRAME_BYTES, TERMINAL_RESERVE_BYTES, Recorder, bounded_error
from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamCancelled,
    StreamContinued,
    StreamCreated,
    StreamFailed,
    Terminal,
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    Usage,
    decode_frame,
    new_stream_id,
)

STREAM = "str_7Q2M4kWcT0aXn3v9LzB1pg"
PLENTY = 10**9

Key: TypeAlias = tuple[str, int]
"""A text of a stream: its kind, and the segment or the index of the tool call."""

Delta: TypeAlias = OutputDelta | ReasoningDelta | RefusalDelta | ToolCallDelta

KINDS: dict[str, list[Piece]] = {
    "answer": [],
    "reasoning": [],
    "refusal": [],
    "arguments": [ToolCallStart("call_1", "weather")],
}
"""The kinds of text, and the pieces that must come before a piece of that kind."""

each_kind = pytest.mark.parametrize("kind", KINDS)


def piece_of(kind: str, text: str) -> TextPiece:
    match kind:
        case "answer":
            return Text(text)
        case "reasoning":
            return Reasoning(text, 0)
        case "refusal":
            return Refusal(text)
        case _:
            return ToolCallArguments(text)


def new_recorder(kind: str = "answer", max_bytes: int = PLENTY) -> Recorder:
    """A recorder that can take a piece of this kind."""
    recorder = Recorder(STREAM, max_bytes=max_bytes)
    recorder.add(KINDS[kind])
    return recorder


def ending(seq: int) -> Terminal:
    return StreamCancelled(seq, "client", Usage(), Timings(None, 1.0))


def record(batches: list[list[Piece]], rest: list[Piece], max_bytes: int = PLENTY) -> tuple[Recorder, list[bytes]]:
    recorder = Recorder(STREAM, max_bytes=max_bytes)
    frames = [recorder.create(mode="deep", model="m", created_at=1.0)]
    for batch in batches:
        frames += recorder.add(batch)
    return recorder, frames + recorder.finish(rest, ending)


def decoded(frames: list[bytes]) -> list[AnyRecord]:
    return [decode_frame(frame) for frame in frames]


def deltas_of(records: list[AnyRecord]) -> list[str]:
    return [found.delta for found in records if isinstance(found, Delta)]


# What must come out of any program of pieces


def texts_of_pieces(pieces: list[Piece]) -> dict[Key, str]:
    """The expected text of each kind, segment and tool call: pieces joined, half characters replaced.

    A half character is joined only with the piece directly after it. A piece of another kind in between keeps the
    halves apart.
    """
    calls = 0
    runs: list[tuple[Key, str]] = []
    for piece in pieces:
        match piece:
            case ToolCallStart():
                calls += 1
                runs.append((("mark", 0), ""))
                continue
            case ToolCallEnd():
                runs.append((("mark", 0), ""))
                continue
            case Reasoning():
                key = ("reasoning", piece.segment)
            case ToolCallArguments():
                key = ("arguments", calls - 1)
            case Text():
                key = ("answer", 0)
            case Refusal():
                key = ("refusal", 0)
        if runs and runs[-1][0] == key:
            runs[-1] = (key, runs[-1][1] + piece.text)
        else:
            runs.append((key, piece.text))
    texts: dict[Key, str] = {}
    for key, text in runs:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if whole:
            texts[key] = texts.get(key, "") + whole
    return texts


def texts_of_records(records: list[AnyRecord]) -> dict[Key, str]:
    texts: dict[Key, str] = {}
    for found in records:
        match found:
            case ReasoningDelta():
                key = ("reasoning", found.segment)
            case ToolCallDelta():
                key = ("arguments", found.index)
            case OutputDelta():
                key = ("answer", 0)
            case RefusalDelta():
                key = ("refusal", 0)
            case _:
                continue
        if found.delta:
            texts[key] = texts.get(key, "") + found.delta
    return texts


def logprobs_of_pieces(pieces: list[Piece]) -> list[object]:
    return [entry for piece in pieces if isinstance(piece, Text) for entry in piece.logprobs or ()]


def logprobs_of_records(records: list[AnyRecord]) -> list[object]:
    return [entry for found in records if isinstance(found, OutputDelta) for entry in found.logprobs or ()]


def whole_calls(pieces: list[Piece]) -> set[int]:
    """The indices of the tool calls that the engine has ended."""
    calls = -1
    whole = set()
    for piece in pieces:
        calls += isinstance(piece, ToolCallStart)
        if isinstance(piece, ToolCallEnd):
            whole.add(calls)
    return whole


def done_calls(records: list[AnyRecord]) -> set[int]:
    return {found.index for found in records if isinstance(found, ToolCallDone)}


TEXTS = st.one_of(
    st.text(st.characters(), min_size=1, max_size=5),
    st.text(alphabet='a\ud83d\ude00\x85\u2028\n"', min_size=1, max_size=5),
    st.builds(lambda text, times: text * times, st.sampled_from(["x", "\x85", "😀", "é"]), st.integers(1, 9000)),
)
# At most 6 KB each, so that every entry fits into a record.
LOGPROBS = st.lists(
    st.builds(
        lambda token, times: {"token": token * times, "logprob": -0.5, "top_logprobs": []},
        st.sampled_from(["x", "\x85", "😀"]),
        st.integers(1, 1000),
    ),
    max_size=6,
)


@st.composite
def pieces_as_engines_write_them(draw: st.DrawFn) -> list[Piece]:
    segment = 0
    pieces: list[Piece] = []
    for kind in draw(st.lists(st.sampled_from(["answer", "same", "next", "refusal", "call", "logprobs"]), max_size=12)):
        match kind:
            case "answer":
                pieces.append(Text(draw(TEXTS)))
            case "logprobs":
                pieces.append(Text(draw(st.just("") | TEXTS), draw(LOGPROBS.filter(bool))))
            case "refusal":
                pieces.append(Refusal(draw(TEXTS)))
            case "call":
                pieces.append(ToolCallStart(f"call_{len(pieces)}", "weather"))
                pieces += [ToolCallArguments(text) for text in draw(st.lists(TEXTS, max_size=3))]
                pieces += draw(st.sampled_from([[ToolCallEnd()], []]))
            case _:
                segment += kind == "next" and bool(pieces)
                pieces.append(Reasoning(draw(TEXTS), segment))
    return pieces


def batched(pieces: list[Piece], places: list[int]) -> Iterator[list[Piece]]:
    bounds = [0, *sorted(place % (len(pieces) + 1) for place in places), len(pieces)]
    return (pieces[begin:end] for begin, end in pairwise(bounds))


ANY_BATCHING = st.lists(st.integers(0, 100), max_size=8)


def check_shape(frames: list[bytes]) -> None:
    records = decoded(frames)
    assert [found.seq for found in records] == list(range(1, len(records) + 1))
    assert isinstance(records[0], StreamCreated)
    assert [found for found in records if isinstance(found, StreamCancelled)] == records[-1:]
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert all(found.delta for found in records if isinstance(found, ReasoningDelta | RefusalDelta | ToolCallDelta))
    assert all(found.delta or found.logprobs for found in records if isinstance(found, OutputDelta))
    check_trace(records)
    check_calls(records)


def check_trace(records: list[AnyRecord]) -> None:
    """`reasoning.done` comes exactly where a trace stops. It counts the segments since the previous one."""
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


def check_calls(records: list[AnyRecord]) -> None:
    """Calls count from 0. The records of one call are contiguous, and nothing of a call follows its end."""
    calls = 0
    open_call: int | None = None
    for found in records:
        match found:
            case ToolCallStarted():
                assert found.index == calls
                calls += 1
                open_call = found.index
            case ToolCallDelta():
                assert found.index == open_call
            case ToolCallDone():
                assert found.index == open_call
                open_call = None
            case _:
                open_call = None


@given(pieces_as_engines_write_them(), ANY_BATCHING)
@example([Text("\ud83d"), Text("\ude00")], [1])
@example([Reasoning("\ud83d", 0), Reasoning("\ude00", 1)], [1])
@example([Reasoning("\ud83d", 0), Text("\ude00")], [])
@example([Text("\ud83d"), Refusal("\ude00")], [1])
@example([Text("😀" * 9000)], [])
@example([ToolCallStart("a", "b"), ToolCallArguments("\ud83d"), ToolCallStart("c", "d"), ToolCallEnd()], [2])
@example([Text("\ud83d", [1]), Text("", [2]), Text("\ude00", [3])], [1, 2])
def test_any_batching_records_the_same_content(pieces: list[Piece], places: list[int]) -> None:
    *batches, rest = batched(pieces, places)
    recorder, frames = record(batches, rest)
    records = decoded(frames)
    assert texts_of_records(records) == texts_of_pieces(pieces)
    assert logprobs_of_records(records) == logprobs_of_pieces(pieces)
    assert done_calls(records) == whole_calls(pieces)
    starts = [(piece.id, piece.name) for piece in pieces if isinstance(piece, ToolCallStart)]
    assert [(found.id, found.name) for found in records if isinstance(found, ToolCallStarted)] == starts
    assert not recorder.full
    assert recorder.seq == len(frames)
    check_shape(frames)


@given(pieces_as_engines_write_them(), ANY_BATCHING, st.integers(8192, 40_000))
def test_the_byte_cap_is_never_passed_and_the_terminal_record_still_fits(
    pieces: list[Piece], places: list[int], max_bytes: int
) -> None:
    *batches, rest = batched(pieces, places)
    recorder, frames = record(batches, rest, max_bytes)
    assert sum(map(len, frames)) <= max_bytes
    check_shape(frames)
    records = decoded(frames)
    expected = texts_of_pieces(pieces)
    texts = texts_of_records(records)
    for key, text in texts.items():  # no text is recorded after a gap
        assert expected[key].startswith(text)
    logprobs = logprobs_of_records(records)
    assert logprobs == logprobs_of_pieces(pieces)[: len(logprobs)]
    for index in done_calls(records):  # a call is done only when all of its arguments are in the log
        assert texts.get(("arguments", index)) == expected.get(("arguments", index))
    if not recorder.full:
        assert texts == expected
        assert done_calls(records) == whole_calls(pieces)


# Merging


def test_adjacent_pieces_of_the_same_kind_and_segment_become_one_record() -> None:
    pieces = [Reasoning("a", 0), Reasoning("b", 0), Reasoning("c", 1), Text("d"), Text("e"), Reasoning("f", 1)]
    recorder = new_recorder()
    assert decoded(recorder.add(pieces)) == [
        ReasoningDelta(1, 0, "ab"),
        ReasoningDelta(2, 1, "c"),
        ReasoningDone(3, 2),
        OutputDelta(4, "de"),
        ReasoningDelta(5, 1, "f"),
    ]
    assert decoded(recorder.finish([], ending))[:-1] == [ReasoningDone(6, 1)]


def test_pieces_of_different_kinds_are_never_merged() -> None:
    pieces = [
        *(Text("a"), Text("b"), Refusal("c"), Refusal("d"), Text("e")),
        *(ToolCallStart("call_a", "weather"), ToolCallArguments("{"), ToolCallArguments("}"), ToolCallEnd()),
        *(ToolCallStart("call_b", "time"), ToolCallArguments("["), ToolCallArguments("]")),
        *(ToolCallStart("call_c", "news"), ToolCallEnd()),
        Text("f"),
    ]
    assert decoded(new_recorder().add(pieces)) == [
        OutputDelta(1, "ab"),
        RefusalDelta(2, "cd"),
        OutputDelta(3, "e"),
        ToolCallStarted(4, 0, "call_a", "weather"),
        ToolCallDelta(5, 0, "{}"),
        ToolCallDone(6, 0),
        ToolCallStarted(7, 1, "call_b", "time"),
        ToolCallDelta(8, 1, "[]"),
        ToolCallStarted(9, 2, "call_c", "news"),
        ToolCallDone(10, 2),
        OutputDelta(11, "f"),
    ]


def test_a_continuation_is_a_record_between_the_texts() -> None:
    pieces = [Text("a"), Text("b\ud83d"), Continued(3), Text("c")]
    assert decoded(new_recorder().add(pieces)) == [
        OutputDelta(1, "ab"),
        OutputDelta(2, "\ufffd"),
        StreamContinued(3, 3),
        OutputDelta(4, "c"),
    ]


def test_fields_of_an_upstream_end_neither_the_trace_nor_a_character() -> None:
    fields = ServerFields("chunk", {"a": 1})
    pieces = [Reasoning("a", 0), fields, Reasoning("b", 0), Text("c\ud83d"), fields, Text("\ude00d")]
    assert decoded(new_recorder().add(pieces)) == [
        ReasoningDelta(1, 0, "a"),
        UpstreamFields(2, "chunk", {"a": 1}),
        ReasoningDelta(3, 0, "b"),
        ReasoningDone(4, 1),
        OutputDelta(5, "c"),
        UpstreamFields(6, "chunk", {"a": 1}),
        OutputDelta(7, "\N{GRINNING FACE}d"),
    ]


def test_the_longest_fields_fit_into_a_record() -> None:
    longest = ServerFields("delta", {"a": "\x85" * ((MAX_FIELDS_BYTES - len('{"a":""}')) // 2)})
    [frame] = new_recorder(max_bytes=10**6).add([longest])
    assert MAX_FIELDS_BYTES * 2 < len(frame) < MAX_FRAME_BYTES


@each_kind
def test_a_later_batch_becomes_a_separate_record(kind: str) -> None:
    recorder = new_recorder(kind)
    for text in "ab":
        assert deltas_of(decoded(recorder.add([piece_of(kind, text)]))) == [text]


@pytest.mark.parametrize("piece", [Text("x"), Refusal("x"), ToolCallStart("call_1", "weather"), Continued(0)])
def test_the_trace_is_closed_before_any_other_kind(piece: Piece) -> None:
    recorder = new_recorder()
    together = decoded(recorder.add([Reasoning("a", 0), Reasoning("b", 1), piece]))
    assert together[-2] == ReasoningDone(3, 2)
    recorder = new_recorder()
    recorder.add([Reasoning("a", 0)])
    assert decoded(recorder.add([piece]))[0] == ReasoningDone(2, 1)


def test_each_batch_of_a_call_belongs_to_the_same_call() -> None:
    recorder = new_recorder()
    assert decoded(recorder.add([ToolCallStart("call_1", "weather")])) == [ToolCallStarted(1, 0, "call_1", "weather")]
    assert decoded(recorder.add([ToolCallArguments("{")])) == [ToolCallDelta(2, 0, "{")]
    assert decoded(recorder.add([ToolCallArguments("}"), ToolCallEnd()])) == [
        ToolCallDelta(3, 0, "}"),
        ToolCallDone(4, 0),
    ]
    assert decoded(recorder.add([ToolCallStart("call_2", "time")])) == [ToolCallStarted(5, 1, "call_2", "time")]
    assert decoded(recorder.add([ToolCallEnd()])) == [ToolCallDone(6, 1)]


# Half characters


@each_kind
def test_half_a_character_waits_for_its_other_half(kind: str) -> None:
    recorder = new_recorder(kind)
    assert deltas_of(decoded(recorder.add([piece_of(kind, "a\ud83d")]))) == ["a"]
    assert recorder.add([]) == []
    assert deltas_of(decoded(recorder.add([piece_of(kind, "\ude00b")]))) == ["😀b"]
    assert recorder.add([piece_of(kind, "\ud83d")]) == []
    assert deltas_of(decoded(recorder.add([piece_of(kind, "\ude00")]))) == ["😀"]
    assert recorder.add([piece_of(kind, "\ud83d")]) == []
    assert deltas_of(decoded(recorder.add([piece_of(kind, "c")]))) == ["\ufffdc"]
    assert recorder.add([piece_of(kind, "\ud83d")]) == []
    assert deltas_of(decoded(recorder.finish([], ending))) == ["\ufffd"]


@each_kind
def test_halves_in_pieces_that_are_merged_become_one_character(kind: str) -> None:
    recorder = new_recorder(kind)
    pieces = [piece_of(kind, text) for text in ("a\ud83d", "\ude00b", "\ude00")]
    assert deltas_of(decoded(recorder.add(pieces))) == ["a😀b\ufffd"]


def test_half_a_character_stays_in_its_segment() -> None:
    recorder = new_recorder()
    recorder.add([Reasoning("\ud83d", 0)])
    assert decoded(recorder.add([Text("\ude00")])) == [
        ReasoningDelta(1, 0, "\ufffd"),
        ReasoningDone(2, 1),
        OutputDelta(3, "\ufffd"),
    ]


@pytest.mark.parametrize("kind", ["answer", "reasoning", "refusal"])
def test_half_a_character_is_replaced_before_a_tool_call_starts(kind: str) -> None:
    recorder = new_recorder(kind)
    recorder.add([piece_of(kind, "a\ud83d")])
    records = decoded(recorder.add([ToolCallStart("call_1", "weather"), ToolCallArguments("\ude00")]))
    assert deltas_of(records) == ["\ufffd", "\ufffd"]
    assert isinstance(records[-2], ToolCallStarted)


def test_half_a_character_is_replaced_before_its_tool_call_ends() -> None:
    recorder = new_recorder("arguments")
    recorder.add([ToolCallArguments("a\ud83d")])
    assert decoded(recorder.add([ToolCallEnd()])) == [ToolCallDelta(3, 0, "\ufffd"), ToolCallDone(4, 0)]
    assert decoded(recorder.add([Text("\ude00")])) == [OutputDelta(5, "\ufffd")]


def test_half_a_character_of_a_cut_call_stays_in_that_call() -> None:
    recorder = new_recorder("arguments")
    recorder.add([ToolCallArguments("a\ud83d")])
    assert decoded(recorder.add([ToolCallStart("call_2", "time"), ToolCallArguments("\ude00")])) == [
        ToolCallDelta(3, 0, "\ufffd"),
        ToolCallStarted(4, 1, "call_2", "time"),
        ToolCallDelta(5, 1, "\ufffd"),
    ]


# Frames of at most 16 KiB


@each_kind
@pytest.mark.parametrize("character", ["a", "é", "😀", "\x85", "\u2028", "\x00", '"'])
def test_a_large_piece_is_split_between_characters_and_a_frame_is_well_filled(character: str, kind: str) -> None:
    recorder = Recorder(new_stream_id(), max_bytes=PLENTY)
    recorder.add(KINDS[kind])
    frames = recorder.add([piece_of(kind, character * 50_000)])
    assert all(MAX_FRAME_BYTES / 4 < len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert "".join(deltas_of(decoded(frames))) == character * 50_000


@each_kind
def test_merging_stops_before_a_frame_is_too_large(kind: str) -> None:
    recorder = new_recorder(kind)
    frames = recorder.add([piece_of(kind, "\u2028" * 100) for _ in range(100)])
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert len(frames) == 4  # 60,000 bytes of escapes


def test_the_longest_id_and_name_of_a_call_fit_into_one_frame() -> None:
    start = ToolCallStart("\u2028" * MAX_CALL_ID_LENGTH, "\u2028" * MAX_CALL_NAME_LENGTH)
    [frame] = new_recorder().add([start])
    assert len(frame) <= MAX_FRAME_BYTES


# Log probabilities


def entry(token: str, width: int = 0) -> dict[str, object]:
    return {"token": token, "logprob": -0.25, "filler": "x" * width}


def test_log_probabilities_are_concatenated_when_their_pieces_are_merged() -> None:
    pieces = [Text("a", [entry("a")]), Text("b"), Text("cd", (entry("c"), entry("d")))]
    assert decoded(new_recorder().add(pieces)) == [OutputDelta(1, "abcd", [entry("a"), entry("c"), entry("d")])]
    assert decoded(new_recorder().add([Text("a"), Text("b")])) == [OutputDelta(1, "ab")]


def test_log_probabilities_count_towards_the_size_of_a_frame() -> None:
    pieces = [Text(f"{number} ", [entry(f"{number} ", 1000)]) for number in range(100)]
    frames = new_recorder().add(pieces)
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    assert 7 <= len(frames) <= 9  # 106,000 bytes
    for found in decoded(frames):  # each record has the log probabilities of its text
        assert isinstance(found, OutputDelta)
        assert "".join(each["token"] for each in found.logprobs or ()) == found.delta  # type: ignore[index]


def test_log_probabilities_that_do_not_fit_beside_their_text_are_split() -> None:
    logprobs = [entry(str(number), 2000) for number in range(20)]
    frames = new_recorder().add([Text("short", logprobs)])
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in frames)
    records = decoded(frames)
    assert deltas_of(records) == ["short", *[""] * (len(frames) - 1)]
    assert logprobs_of_records(records) == logprobs


@pytest.mark.parametrize("character", ["a", '"', "\x85", "\x9f", "\u2029", "😀", "\x00"])
def test_the_reserve_fits_the_largest_possible_terminal_record(character: str) -> None:
    text = character * 9999
    word = '"' * 128
    error = EngineError(
        text, text, retryable=True, status=599, retry_after=1e300 / 3, upstream=UpstreamReport(text, word, word, word)
    )
    largest = Usage(2**63, 2**63, 2**63)
    recorder = new_recorder()
    recorder.add([Reasoning("x", 0)])
    info = bounded_error(error)
    assert info.upstream is not None
    assert info.upstream.type == word
    frames = recorder.finish([], lambda seq: StreamFailed(seq, info, largest, Timings(1e15 / 3, 1e15 / 3)))
    assert [type(found) for found in decoded(frames)] == [ReasoningDone, StreamFailed]
    assert sum(map(len, frames)) <= TERMINAL_RESERVE_BYTES


def test_an_errors_half_characters_are_replaced() -> None:
    error = bounded_error(EngineError("a\ud83d", "b\ude00", upstream=UpstreamReport("c\ud83d", "\ud83d")))
    assert error == ErrorInfo("a?", "b?", False, upstream=UpstreamReport("c?"))
    json.dumps([error.code, error.message], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (UpstreamReport("too\r\nlong\x1b[2J\x9f", "t", "c", "p"), UpstreamReport("too long [2J ", "t", "c", "p")),
        (UpstreamReport("m" * 1001), UpstreamReport("m" * 1000)),
        (UpstreamReport("é" * 1000), UpstreamReport("é" * 1000)),
        (UpstreamReport("😀" * 501), UpstreamReport("😀" * 500)),
        (UpstreamReport("a" + "😀" * 501), UpstreamReport("a" + "😀" * 499)),
        (UpstreamReport("m", "", "two words", "p" * 129), UpstreamReport("m")),
        (UpstreamReport(None, "é", "c\n", "p" * 128), UpstreamReport(None, None, None, "p" * 128)),
    ],
)
def test_the_words_of_an_upstream_are_bounded_and_free_of_control_characters(
    said: UpstreamReport, kept: UpstreamReport
) -> None:
    assert bounded_error(EngineError("code", "Message.", upstream=said)).upstream == kept


@pytest.mark.parametrize(("seconds", "kept"), [(604_799.0, 604_799.0), (604_801.0, 604_800.0), (1e308, 604_800.0)])
def test_no_client_is_asked_to_wait_longer_than_a_week(seconds: float, kept: float) -> None:
    assert bounded_error(EngineError("code", "Message.", retry_after=seconds)).retry_after == kept


@pytest.mark.parametrize("retry_after", [-1.0, inf, nan])
@pytest.mark.parametrize("status", [99, 600])
def test_a_status_or_retry_after_that_cannot_be_one_is_left_out(status: int, retry_after: float) -> None:
    error = EngineError("code", "Message.", status=status, retry_after=retry_after)
    assert bounded_error(error) == ErrorInfo("code", "Message.", False)


def test_a_failed_record_shows_the_status_and_the_words_of_the_upstream() -> None:
    error = EngineError("c", "M.", status=429, retry_after=30.0, upstream=UpstreamReport("Slow down.", code="busy"))
    frames = new_recorder().finish([], lambda seq: StreamFailed(seq, bounded_error(error), Usage(), Timings(None, 1.0)))
    assert json.loads(frames[0].partition(b"data: ")[2].splitlines()[0])["error"] == {
        "code": "c",
        "message": "M.",
        "retryable": False,
        "status": 429,
        "retry_after": 30.0,
        "upstream": {"message": "Slow down.", "code": "busy"},
    }
