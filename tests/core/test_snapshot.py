import pytest

from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    Timings,
    Usage,
    encode_frame,
)
from crucible_trio.snapshot import Snapshot, fold, status_of

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
