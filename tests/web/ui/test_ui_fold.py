"""The fold of records into the chunks of a UI message stream."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.apis.ui.fold import UIDialect
from crucible_trio.errors import UpstreamReport
from crucible_trio.records import (
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
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    Usage,
    encode_frame,
)

ID = "str_7Q2M4kWcT0aXn3v9LzB1pg"
TIMINGS = Timings(1.0, 2.0)
COMPLETED = StreamCompleted(0, "stop", Usage(3, 4, 2), TIMINGS)


def frames(*records: Any) -> list[bytes]:
    """The frames of a log with these records, whose numbers do not matter."""
    return [encode_frame(ID, record) for record in (StreamCreated(1, ID, "deep", "small", 12.5), *records)]


def folded(chunks_of: Any, *records: Any, **options: Any) -> list[Any]:
    return chunks_of(UIDialect(**options).feed(frames(*records)))


EVERYTHING = frames(
    ReasoningDelta(2, 0, "1. One."),
    ReasoningDelta(3, 0, " More."),
    ReasoningDelta(4, 1, "2. Two."),
    ReasoningDone(5, 2),
    OutputDelta(6, "Hel"),
    StreamContinued(7, 3),
    OutputDelta(8, "", []),
    OutputDelta(9, "lo\u2028"),
    ToolCallStarted(10, 0, "c1", "weather"),
    ToolCallDelta(11, 0, '{"city":\n'),
    ToolCallDelta(12, 0, ' "Rome", "n": 1.0}'),
    ToolCallDone(13, 0),
    ToolCallStarted(14, 1, "c2", "other"),
    ToolCallDone(15, 1),
    ToolCallStarted(16, 2, "c3", "weather"),
    ToolCallDelta(17, 2, "no JSON"),
    ToolCallDone(18, 2),
    ReasoningDelta(19, 1, "Again."),
    OutputDelta(20, "So. "),
    RefusalDelta(21, "No."),
    COMPLETED,
)


def test_the_chunks_of_everything_that_an_engine_can_write(chunks_of: Any) -> None:
    usage = {"inputTokens": 3, "outputTokens": 4, "totalTokens": 7, "reasoningTokens": 2}
    metadata = {"model": "small", "streamId": ID, "createdAt": 12500}
    assert chunks_of(UIDialect(tools={"weather"}).feed(EVERYTHING)) == [
        {"type": "start", "messageId": "msg_7Q2M4kWcT0aXn3v9LzB1pg", "messageMetadata": metadata},
        {"type": "start-step"},
        {"type": "reasoning-start", "id": "1"},
        {"type": "reasoning-delta", "id": "1", "delta": "1. One."},
        {"type": "reasoning-delta", "id": "1", "delta": " More."},
        {"type": "reasoning-end", "id": "1"},
        {"type": "reasoning-start", "id": "2"},
        {"type": "reasoning-delta", "id": "2", "delta": "2. Two."},
        {"type": "reasoning-end", "id": "2"},
        {"type": "text-start", "id": "3"},
        {"type": "text-delta", "id": "3", "delta": "Hel"},
        {"type": "text-delta", "id": "3", "delta": "lo\u2028"},
        {"type": "text-end", "id": "3"},
        {"type": "tool-input-start", "toolCallId": "c1", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": '{"city":\n'},
        {"type": "tool-input-delta", "toolCallId": "c1", "inputTextDelta": ' "Rome", "n": 1.0}'},
        {
            "type": "tool-input-available",
            "toolCallId": "c1",
            "toolName": "weather",
            "input": {"city": "Rome", "n": 1.0},
        },
        {"type": "tool-input-start", "toolCallId": "c2", "toolName": "other", "dynamic": True},
        {"type": "tool-input-available", "toolCallId": "c2", "toolName": "other", "input": {}, "dynamic": True},
        {"type": "tool-input-start", "toolCallId": "c3", "toolName": "weather"},
        {"type": "tool-input-delta", "toolCallId": "c3", "inputTextDelta": "no JSON"},
        {
            "type": "tool-input-error",
            "toolCallId": "c3",
            "toolName": "weather",
            "input": "no JSON",
            "errorText": "The arguments of this call are not valid JSON.",
        },
        {"type": "reasoning-start", "id": "4"},
        {"type": "reasoning-delta", "id": "4", "delta": "Again."},
        {"type": "reasoning-end", "id": "4"},
        {"type": "text-start", "id": "5"},
        {"type": "text-delta", "id": "5", "delta": "So. "},
        {"type": "text-end", "id": "5"},
        {"type": "text-start", "id": "6"},
        {"type": "text-delta", "id": "6", "delta": "No."},
        {"type": "text-end", "id": "6"},
        {"type": "finish-step"},
        {"type": "finish", "finishReason": "tool-calls", "messageMetadata": {"usage": usage}},
    ]


def test_the_body_ends_with_done_and_no_line_of_it_can_be_split(chunks_of: Any) -> None:
    body = UIDialect().feed(EVERYTHING)
    assert body.endswith(b"\n\ndata: [DONE]\n\n")
    assert b"\xe2\x80\xa8" not in body
    assert b'"n":1.0' in body  # numbers are as the model wrote them
    assert chunks_of(body)


@given(st.sets(st.integers(1, len(EVERYTHING) - 1)))
def test_every_split_of_the_records_gives_the_same_bytes(cuts: set[int]) -> None:
    dialect, edges = UIDialect(), [0, *sorted(cuts), len(EVERYTHING)]
    body = b"".join(dialect.feed(EVERYTHING[begin:end]) for begin, end in pairwise(edges))
    assert body == UIDialect().feed(EVERYTHING)


def test_a_reader_that_has_some_chunks_gets_the_others(chunks_of: Any) -> None:
    whole = UIDialect()
    chunks = chunks_of(whole.feed(EVERYTHING))
    assert whole.chunks_made == len(chunks)
    for skip in range(len(chunks) + 1):
        rest = UIDialect(skip=skip)
        assert chunks_of(rest.feed(EVERYTHING)) == chunks[skip:]
        assert rest.chunks_made == len(chunks)


NO_USAGE = Usage()


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        pytest.param(StreamCompleted(0, "stop", NO_USAGE, TIMINGS), ["stop"], id="stop"),
        pytest.param(StreamCompleted(0, "strange", NO_USAGE, TIMINGS), ["stop"], id="another reason"),
        pytest.param(StreamCompleted(0, "content_filter", NO_USAGE, TIMINGS), ["content-filter"], id="filter"),
        pytest.param(StreamIncomplete(0, "max_output_tokens", NO_USAGE, TIMINGS), ["length"], id="limit"),
        pytest.param(StreamIncomplete(0, "log_limit", NO_USAGE, TIMINGS), ["length"], id="log limit"),
        pytest.param(
            StreamIncomplete(0, "idle_deadline", NO_USAGE, TIMINGS),
            [{"type": "error", "errorText": "The model stopped in the middle."}, "error"],
            id="deadline",
        ),
        pytest.param(
            StreamFailed(0, ErrorInfo("model_failed", "It broke.", retryable=False), NO_USAGE, TIMINGS),
            [{"type": "error", "errorText": "It broke."}, "error"],
            id="failed",
        ),
        pytest.param(
            StreamFailed(
                0,
                ErrorInfo("c", "Ours.", retryable=False, status=422, upstream=UpstreamReport("Theirs.")),
                NO_USAGE,
                TIMINGS,
            ),
            [{"type": "error", "errorText": "Theirs."}, "error"],
            id="the request is at fault",
        ),
        pytest.param(
            StreamFailed(
                0,
                ErrorInfo("c", "Ours.", retryable=True, status=503, upstream=UpstreamReport("Theirs.")),
                NO_USAGE,
                TIMINGS,
            ),
            [{"type": "error", "errorText": "Ours."}, "error"],
            id="the upstream is at fault",
        ),
        pytest.param(
            StreamCancelled(0, "client", NO_USAGE, TIMINGS),
            [{"type": "abort", "reason": "The stream was cancelled."}, "other"],
            id="stopped",
        ),
        pytest.param(
            StreamCancelled(0, "shutdown", NO_USAGE, TIMINGS),
            [{"type": "error", "errorText": "The server is shutting down."}, "error"],
            id="shutdown",
        ),
    ],
)
def test_every_end_has_a_finish_and_no_bad_end_looks_complete(chunks_of: Any, terminal: Any, expected: Any) -> None:
    *chunks, finish = folded(chunks_of, OutputDelta(2, "Hel"), terminal)[4:]
    *events, reason = expected
    assert finish == {"type": "finish", "finishReason": reason}
    complete = [{"type": "text-end", "id": "1"}, {"type": "finish-step"}]
    assert chunks == (events or complete)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([ToolCallStarted(2, 0, "c1", "f"), ToolCallDelta(3, 0, "{")], "length"),
        ([ToolCallStarted(2, 0, "c1", "f"), ToolCallDone(3, 0), ToolCallStarted(4, 1, "c2", "f")], "length"),
        ([ToolCallStarted(2, 0, "c1", "f"), ToolCallDone(3, 0)], "tool-calls"),
    ],
)
def test_a_call_that_broke_off_is_never_available(chunks_of: Any, records: Any, reason: str) -> None:
    chunks = folded(chunks_of, *records, COMPLETED)
    done = sum(isinstance(record, ToolCallDone) for record in records)
    assert sum(chunk["type"] == "tool-input-available" for chunk in chunks) == done
    assert chunks[-1]["finishReason"] == reason


@pytest.mark.parametrize("arguments", ["[" * 5000, "{", '{"a": 1} x', '{"a": 1e999}', "nul"])
def test_arguments_that_are_not_json_are_an_error_of_the_call_alone(chunks_of: Any, arguments: str) -> None:
    records = ToolCallStarted(2, 0, "c1", "f"), ToolCallDelta(3, 0, arguments), ToolCallDone(4, 0), COMPLETED
    chunks = folded(chunks_of, *records)
    [error] = [chunk for chunk in chunks if chunk["type"] == "tool-input-error"]
    assert error["input"] == arguments
    assert chunks[-1]["type"] == "finish"


def test_a_message_that_goes_on_has_its_id_and_its_earlier_parts_in_a_replay(chunks_of: Any) -> None:
    chunks = folded(chunks_of, COMPLETED, message_id="m1", earlier=[msgspec.Raw(b'{"type":"start-step"}')])
    assert chunks[0]["messageId"] == "m1"
    assert [chunk["type"] for chunk in chunks] == ["start", "start-step", "start-step", "finish-step", "finish"]


def test_the_wire_has_a_ping_and_no_other_event_out_of_band() -> None:
    dialect = UIDialect()
    assert (dialect.keep_alive(), dialect.opening(), dialect.draining(), dialect.busy()) == (
        b": ping\n\n",
        b"",
        b"",
        None,
    )
