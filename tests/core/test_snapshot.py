import pytest

from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamContinued,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    Usage,
    encode_frame,
)
from crucible_trio.snapshot import Snapshot, SnapshotToolCall, fold, status_of

STREAM = "str_7Q2M4kWcT0aXn3v9LzB1pg"
USAGE, TIMINGS = Usage(1, 2, 3), Timings(4.0, 5.0)
ERROR = ErrorInfo("code", "Message.", True)


def folded(*records: AnyRecord) -> Snapshot:
    return fold(encode_frame(STREAM, record) for record in records)


def test_a_snapshot_holds_exactly_what_was_recorded() -> None:
    snapshot = folded(
        StreamCreated(1, STREAM, "deep", "m", 12.5),
        ReasoningDelta(2, 0, "First, "),
        ReasoningDelta(3, 0, "this. "),
        ReasoningDelta(4, 1, "Then that."),
        ReasoningDone(5, 2),
        OutputDelta(6, "Hel"),
        ReasoningDelta(7, 1, " And more."),
        ReasoningDone(8, 1),
        OutputDelta(9, "lo"),
    )
    assert snapshot == Snapshot(
        id=STREAM,
        status="running",
        mode="deep",
        model="m",
        created_at=12.5,
        last_seq=9,
        output="Hello",
        trace=["First, this. ", "Then that. And more."],
    )


@pytest.mark.parametrize(
    ("terminal", "status", "facts"),
    [
        (StreamCompleted(2, "stop", USAGE, TIMINGS), "completed", {"finish_reason": "stop"}),
        (StreamIncomplete(2, "log_limit", USAGE, TIMINGS), "incomplete", {"reason": "log_limit"}),
        (StreamFailed(2, ERROR, USAGE, TIMINGS), "failed", {"error": ERROR}),
        (StreamCancelled(2, "client", USAGE, TIMINGS), "cancelled", {"by": "client"}),
    ],
)
def test_the_terminal_record_says_how_the_stream_ended(
    terminal: Terminal, status: str, facts: dict[str, object]
) -> None:
    assert status_of(terminal) == status
    assert folded(StreamCreated(1, STREAM, "standard", "m", 0.0), terminal) == Snapshot(
        id=STREAM,
        status=status,
        mode="standard",
        model="m",
        created_at=0.0,
        last_seq=2,
        output="",
        trace=[],
        usage=USAGE,
        timings=TIMINGS,
        **facts,
    )


def test_a_segment_without_records_is_empty() -> None:
    assert folded(ReasoningDelta(1, 0, "a"), ReasoningDelta(2, 2, "c")).trace == ["a", "", "c"]


def test_a_continuation_is_no_content() -> None:
    snapshot = folded(OutputDelta(1, "a"), StreamContinued(2, 1), OutputDelta(3, "b"))
    assert (snapshot.output, snapshot.last_seq, snapshot.status) == ("ab", 3, "running")


def test_fields_of_an_upstream_have_their_last_values() -> None:
    snapshot = folded(
        UpstreamFields(1, "chunk", {"a": 1, "b": [1]}),
        OutputDelta(2, "a"),
        UpstreamFields(3, "choice", {"a": 5}),
        UpstreamFields(4, "chunk", {"b": [2]}),
    )
    assert snapshot.upstream_fields == {"chunk": {"a": 1, "b": [2]}, "choice": {"a": 5}}
    assert (snapshot.output, snapshot.last_seq, snapshot.status) == ("a", 4, "running")
    assert folded(OutputDelta(1, "a")).upstream_fields == {}


def test_a_refusal_is_apart_from_the_answer() -> None:
    snapshot = folded(
        OutputDelta(1, "Well, "), RefusalDelta(2, "I can"), RefusalDelta(3, "not."), OutputDelta(4, "no.")
    )
    assert (snapshot.output, snapshot.refusal) == ("Well, no.", "I cannot.")
    assert folded(OutputDelta(1, "a")).refusal is None


def test_a_tool_call_is_complete_only_when_the_model_has_ended_it() -> None:
    records = [
        ToolCallStarted(1, 0, "call_a", "weather"),
        ToolCallDelta(2, 0, '{"city":'),
        ToolCallDelta(3, 0, '"Oslo"}'),
        ToolCallDone(4, 0),
        ToolCallStarted(5, 1, "call_b", "time"),
        ToolCallDone(6, 1),
        ToolCallStarted(7, 2, "call_c", "news"),
        ToolCallDelta(8, 2, "{"),
    ]
    whole = SnapshotToolCall(index=0, id="call_a", name="weather", arguments='{"city":"Oslo"}', complete=True)
    without_arguments = SnapshotToolCall(index=1, id="call_b", name="time", complete=True)
    unfinished = SnapshotToolCall(index=2, id="call_c", name="news", arguments="{")
    assert folded(*records).tool_calls == [whole, without_arguments, unfinished]
    assert folded(*records[:3]).tool_calls == [
        SnapshotToolCall(index=0, id="call_a", name="weather", arguments='{"city":"Oslo"}')
    ]
    assert folded(OutputDelta(1, "a")).tool_calls == []


def test_two_snapshots_share_no_list() -> None:
    first, second = folded(OutputDelta(1, "a")), folded(OutputDelta(1, "a"))
    first.tool_calls.append(SnapshotToolCall(index=0, id="x", name="y"))
    first.trace.append("z")
    assert (second.tool_calls, second.trace) == ([], [])
