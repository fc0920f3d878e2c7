"""The responses dialect without I/O: the events of a log, and every resume as the tail of the whole body."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from functools import partial

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from trio.testing import MockClock

from crucible_trio.apis.openai.responses.objects import (
    EchoedFields,
    EchoedReasoning,
    format_response_id,
    parse_response_id,
)
from crucible_trio.apis.openai.responses.replay import open_dialect, response_object
from crucible_trio.content import Piece, Reasoning, Text
from crucible_trio.errors import InvalidRequestError, StreamNotFoundError, UpstreamReport
from crucible_trio.log.memory import MemoryLog
from crucible_trio.recorder import Recorder
from crucible_trio.records import (
    ErrorInfo,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    Timings,
    Usage,
)

STREAM = "str_7Q2M4kWcT0aXn3v9LzB1pg"
RESPONSE = "resp_7Q2M4kWcT0aXn3v9LzB1pg"
CREATED_AT = 1764000000.75
TIMINGS = Timings(212.0, 3411.0)
USAGE = Usage(3, 9, 4)
COMPLETED = partial(StreamCompleted, finish_reason="stop", usage=USAGE, timings=TIMINGS)
ECHOED = EchoedFields(
    instructions="Be short.",
    metadata={"run": "7"},
    max_output_tokens=64,
    temperature=0.5,
    reasoning=EchoedReasoning(effort="high", summary="auto"),
    background=True,
)

# Each inner list is one batch for the recorder.
DEEP = [
    [Reasoning("First, ", 0), Reasoning("add.", 0)],
    [Reasoning("Then ", 1)],
    [Reasoning("check.", 1), Text("Hel")],
    [Text("lo")],
]
INTERRUPTED = [[Reasoning("a", 0)], [Text("Hel")], [Reasoning("b", 0)], [Reasoning("c", 1)], [Text("lo")]]


def make_log(batches: Sequence[Sequence[Piece]], ending: object = COMPLETED) -> MemoryLog:
    """A log as a stream writes it. Without an ending the stream is still running."""
    log = MemoryLog(room_without_readers=True)
    recorder = Recorder(STREAM, max_bytes=10_000_000)
    log.append_nowait([recorder.create(mode="deep", model="tiny", created_at=CREATED_AT)])
    for batch in batches:
        log.append_nowait(recorder.add(batch))
    if ending is not None:
        log.append_nowait(recorder.finish([], ending), last=True)
    return log


async def body_of(log: MemoryLog, starting_after: int | None = None, echoed: EchoedFields = ECHOED) -> bytes:
    view = await open_dialect(log, echoed, starting_after)
    return view.feed(log.read(view.resume_offset))


def events_in(body: bytes) -> list[dict[str, object]]:
    """The events of a body. Checks the shape of every line."""
    events = []
    for block in body.decode().split("\n\n")[:-1]:
        kind, data = block.split("\n")
        assert kind.startswith("event: ")
        assert data.startswith("data: ")
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == kind.removeprefix("event: ")
        events.append(event)
    return events


async def events_of(log: MemoryLog) -> list[dict[str, object]]:
    return events_in(await body_of(log))


def types_of(events: list[dict[str, object]]) -> list[str]:
    return [str(event["type"]).removeprefix("response.") for event in events]


async def test_a_deep_stream_has_exactly_the_documented_events() -> None:
    events = await events_of(make_log(DEEP))
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_every_event_has_exactly_the_documented_json() -> None:
    body = (await body_of(make_log([[Reasoning("Hm", 0)], [Text("Hi")]]))).decode()
    blocks = body.split("\n\n")
    asked = (
        '"instructions":"Be short.","max_output_tokens":64,"max_tool_calls":null,"metadata":{"run":"7"},'
        '"model":"tiny","output":OUTPUT,"parallel_tool_calls":true,"presence_penalty":0.0,'
        '"previous_response_id":null,"prompt_cache_key":null,"reasoning":{"effort":"high","summary":"auto"},'
        '"safety_identifier":null,"service_tier":"default","store":true,"temperature":0.5,'
        '"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,'
        '"truncation":"disabled"'
    )
    begun = (
        f'{{"id":"{RESPONSE}","object":"response","created_at":1764000000,"completed_at":null,"status":"in_progress",'
        '"background":true,"error":null,"frequency_penalty":0.0,"incomplete_details":null,'
        f'{asked.replace("OUTPUT", "[]")},"usage":null,"user":null}}'
    )
    rs, msg = "rs_7Q2M4kWcT0aXn3v9LzB1pg_0", "msg_7Q2M4kWcT0aXn3v9LzB1pg_1"
    in_rs = f'"item_id":"{rs}","output_index":0,"summary_index":0'
    in_msg = f'"item_id":"{msg}","output_index":1,"content_index":0'
    hm = '{"type":"summary_text","text":"Hm"}'
    hi = '{"type":"output_text","text":"Hi","annotations":[],"logprobs":[]}'
    trace = f'{{"type":"reasoning","id":"{rs}","status":"completed","summary":[{hm}]}}'
    answer = f'{{"type":"message","id":"{msg}","status":"completed","content":[{hi}],"role":"assistant"}}'
    ended = (
        f'{{"id":"{RESPONSE}","object":"response","created_at":1764000000,"completed_at":1764000004,'
        f'"status":"completed","background":true,"error":null,"frequency_penalty":0.0,"incomplete_details":null,'
        f'{asked.replace("OUTPUT", f"[{trace},{answer}]")},"usage":{{"input_tokens":3,'
        '"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":9,'
        '"output_tokens_details":{"reasoning_tokens":4},"total_tokens":12},"user":null}'
    )
    expected = [
        ("created", f'"response":{begun}'),
        ("in_progress", f'"response":{begun}'),
        (
            "output_item.added",
            f'"output_index":0,"item":{{"type":"reasoning","id":"{rs}","status":"in_progress","summary":[]}}',
        ),
        ("reasoning_summary_part.added", f'{in_rs},"part":{{"type":"summary_text","text":""}}'),
        ("reasoning_summary_text.delta", f'{in_rs},"delta":"Hm"'),
        ("reasoning_summary_text.done", f'{in_rs},"text":"Hm"'),
        ("reasoning_summary_part.done", f'{in_rs},"part":{hm}'),
        ("output_item.done", f'"output_index":0,"item":{trace}'),
        (
            "output_item.added",
            f'"output_index":1,"item":{{"type":"message","id":"{msg}","status":"in_progress","content":[],'
            '"role":"assistant"}',
        ),
        (
            "content_part.added",
            f'{in_msg},"part":{{"type":"output_text","text":"","annotations":[],"logprobs":[]}}',
        ),
        ("output_text.delta", f'{in_msg},"delta":"Hi","logprobs":[]'),
        ("output_text.done", f'{in_msg},"text":"Hi","logprobs":[]'),
        ("content_part.done", f'{in_msg},"part":{hi}'),
        ("output_item.done", f'"output_index":1,"item":{answer}'),
        ("completed", f'"response":{ended}'),
    ]
    assert blocks == [
        f'event: response.{kind}\ndata: {{"type":"response.{kind}","sequence_number":{number},{rest}}}'
        for number, (kind, rest) in enumerate(expected)
    ] + [""]


async def test_the_sdks_models_accept_every_event_in_strict_mode() -> None:
    adapter = TypeAdapter(ResponseStreamEvent)
    ends = [
        COMPLETED,
        partial(StreamIncomplete, reason="max_output_tokens", usage=USAGE, timings=TIMINGS),
        partial(StreamCompleted, finish_reason="stop", usage=Usage(), timings=TIMINGS),
    ]
    for ending in ends:
        for event in await events_of(make_log(INTERRUPTED, ending)):
            parsed = adapter.validate_python(event)
            assert not parsed.model_extra
            if response := getattr(parsed, "response", None):
                # Open Responses has them, the SDK does not know them.
                assert set(response.model_extra) == {"store", "frequency_penalty", "presence_penalty"}
                assert all(not item.model_extra for item in response.output)


@pytest.mark.parametrize("batches", [DEEP, INTERRUPTED, []])
async def test_a_replay_is_the_same_bytes(batches: list[list[Piece]]) -> None:
    log = make_log(batches)
    whole = await body_of(log)
    for size in (1, 2, 3):
        view = await open_dialect(log, ECHOED)
        frames = log.read(0)
        pieces = [view.feed(frames[start : start + size]) for start in range(0, len(frames), size)]
        assert b"".join(pieces) == whole


@pytest.mark.parametrize("batches", [DEEP, INTERRUPTED, []])
async def test_a_resume_after_any_event_is_the_tail_of_the_whole(batches: list[list[Piece]]) -> None:
    await _every_resume_is_the_tail(make_log(batches))


async def _every_resume_is_the_tail(log: MemoryLog) -> None:
    blocks = (await body_of(log)).split(b"\n\n")[:-1]
    for number in range(len(blocks)):
        tail = b"".join(block + b"\n\n" for block in blocks[number + 1 :])
        view = await open_dialect(log, ECHOED, number)
        assert b"".join(view.feed([frame]) for frame in log.read(view.resume_offset)) == tail


PIECE_TEXTS = st.text(min_size=1, max_size=3)
PIECES = st.builds(Text, PIECE_TEXTS) | st.builds(Reasoning, PIECE_TEXTS, st.integers(0, 2))


@settings(max_examples=40)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=4), max_size=8))
def test_any_log_can_be_resumed_anywhere_and_its_events_hold_the_text_of_the_log(batches: list[list[Piece]]) -> None:
    async def check() -> None:
        log = make_log(batches)
        await _every_resume_is_the_tail(log)
        events = await events_of(log)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        answer = "".join(piece.text for batch in batches for piece in batch if isinstance(piece, Text))
        trace = "".join(piece.text for batch in batches for piece in batch if isinstance(piece, Reasoning))
        output = events[-1]["response"]["output"]
        assert Response.model_validate(events[-1]["response"]).output_text == answer
        deltas = [event for event in events if str(event["type"]).endswith(".delta")]
        assert _joined(deltas, "response.output_text.delta") == answer
        assert _joined(deltas, "response.reasoning_summary_text.delta") == trace
        assert "".join(part["text"] for item in output for part in item.get("summary", [])) == trace
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert done == output
        added = [event for event in events if event["type"] == "response.output_item.added"]
        assert [event["output_index"] for event in added] == list(range(len(output)))
        assert (await response_object(log, ECHOED)).status == "completed"

    trio.run(check, clock=MockClock(autojump_threshold=0))


def _joined(events: list[dict[str, object]], kind: str) -> str:
    return "".join(str(event["delta"]) for event in events if event["type"] == kind)


async def test_a_resume_between_the_events_of_one_record_reads_that_record_again() -> None:
    log = make_log(DEEP)
    # Event 2 opens the item, event 3 opens the part, event 4 is the delta. All three belong to record 2.
    assert [(await open_dialect(log, ECHOED, number)).resume_offset for number in (None, 0, 1, 2, 3, 4)] == [
        0,
        0,
        1,
        1,
        1,
        2,
    ]


@pytest.mark.parametrize("ending", [None, COMPLETED])
async def test_a_resume_after_the_last_event_has_nothing_to_send_yet(ending: object) -> None:
    log = make_log(DEEP, ending)
    count = len(await events_of(log))
    view = await open_dialect(log, ECHOED, count - 1)
    assert view.resume_offset == log.head
    assert view.feed([]) == b""


@pytest.mark.parametrize("ending", [None, COMPLETED])
async def test_a_resume_after_an_event_that_does_not_exist_is_refused(ending: object) -> None:
    log = make_log(DEEP, ending)
    count = len(await events_of(log))
    for number in (count, count + 1, 10**30):
        with trio.fail_after(30), pytest.raises(InvalidRequestError, match=f"last event, {count - 1}") as caught:
            await open_dialect(log, ECHOED, number)
        assert caught.value.param == "starting_after"


async def test_a_resume_continues_with_later_records() -> None:
    log = MemoryLog(room_without_readers=True)
    recorder = Recorder(STREAM, max_bytes=10_000_000)
    log.append_nowait([recorder.create(mode="deep", model="tiny", created_at=CREATED_AT)])
    log.append_nowait(recorder.add([Text("Hel")]))
    view = await open_dialect(log, ECHOED, 3)
    tail = view.feed(log.read(view.resume_offset))
    position = log.head
    log.append_nowait(recorder.add([Text("lo")]))
    log.append_nowait(recorder.finish([], COMPLETED), last=True)
    tail += view.feed(log.read(position))
    assert (await body_of(log)).endswith(tail)
    assert events_in(tail)[0]["sequence_number"] == 4


async def test_reasoning_after_text_becomes_a_new_item() -> None:
    events = await events_of(make_log(INTERRUPTED))
    output = events[-1]["response"]["output"]
    assert [(item["type"], item["id"]) for item in output] == [
        ("reasoning", "rs_7Q2M4kWcT0aXn3v9LzB1pg_0"),
        ("message", "msg_7Q2M4kWcT0aXn3v9LzB1pg_1"),
        ("reasoning", "rs_7Q2M4kWcT0aXn3v9LzB1pg_2"),
        ("message", "msg_7Q2M4kWcT0aXn3v9LzB1pg_3"),
    ]
    # Summary indexes count from 0 in every item, independently of the segment numbers in the log.
    added = [event for event in events if event["type"] == "response.reasoning_summary_part.added"]
    assert [(event["output_index"], event["summary_index"]) for event in added] == [(0, 0), (2, 0), (2, 1)]
    assert [part["text"] for part in output[2]["summary"]] == ["b", "c"]
    assert [part["text"] for item in output if "content" in item for part in item["content"]] == ["Hel", "lo"]


async def test_one_item_is_finished_before_the_next_begins() -> None:
    open_item = None
    for event in await events_of(make_log(INTERRUPTED)):
        match event["type"]:
            case "response.output_item.added":
                assert open_item is None
                open_item = event["item"]["id"]
            case "response.output_item.done":
                assert open_item == event["item"]["id"]
                open_item = None
            case _ if "item_id" in event:
                assert event["item_id"] == open_item
    assert open_item is None


async def test_a_merged_record_is_one_delta() -> None:
    apart = await events_of(make_log([[Text("Hel")], [Text("lo")]]))
    merged = await events_of(make_log([[Text("Hel"), Text("lo")]]))
    assert [event["delta"] for event in apart if "delta" in event] == ["Hel", "lo"]
    assert [event["delta"] for event in merged if "delta" in event] == ["Hello"]
    assert merged[-1]["response"] == apart[-1]["response"]


def _incomplete(reason: str) -> object:
    return partial(StreamIncomplete, reason=reason, usage=Usage(), timings=TIMINGS)


CANCELLED = partial(StreamCancelled, by="client", usage=Usage(), timings=TIMINGS)
FAILED = partial(StreamFailed, error=ErrorInfo("upstream_timeout", "Too slow.", True), usage=Usage(), timings=TIMINGS)


@pytest.mark.parametrize(
    ("ending", "kind", "status", "reason", "error"),
    [
        (COMPLETED, "completed", "completed", None, None),
        (partial(COMPLETED, finish_reason="eos"), "completed", "completed", None, None),
        (partial(COMPLETED, finish_reason="content_filter"), "incomplete", "incomplete", "content_filter", None),
        *(
            (_incomplete(reason), "incomplete", "incomplete", reason, None)
            for reason in (
                "max_output_tokens",
                "first_token_deadline",
                "idle_deadline",
                "total_deadline",
                "log_limit",
            )
        ),
        (CANCELLED, "incomplete", "cancelled", "cancelled", None),
        (FAILED, "failed", "failed", None, {"code": "upstream_timeout", "message": "Too slow."}),
    ],
)
@pytest.mark.parametrize("batches", [DEEP, DEEP[:2], []])
async def test_every_kind_of_end_has_its_status_and_reason(
    batches: list[list[Piece]], ending: object, kind: str, status: str, reason: str | None, error: object
) -> None:
    events = await events_of(make_log(batches, ending))
    last = events[-1]
    response = last["response"]
    assert last["type"] == f"response.{kind}"
    assert [event["type"] == "error" for event in events[-3:]] == [False, kind == "failed", False][-len(events[-3:]) :]
    assert response["status"] == status
    assert response["incomplete_details"] == (None if reason is None else {"reason": reason})
    assert response["error"] == error
    assert (response["completed_at"] is not None) == (status == "completed")
    assert (
        sum(event["type"] in {"response.completed", "response.incomplete", "response.failed"} for event in events) == 1
    )
    statuses = [item["status"] for item in response["output"]]
    # A trace ends in the log before the stream's end is known. An answer ends with the stream.
    assert statuses == ["completed", "completed" if status == "completed" else "incomplete"][: len(statuses)]


def _refused(
    status: int, retry_after: float | None = None, *, code: str = "upstream_refused", **said: str
) -> ErrorInfo:
    if "code_" in said:
        said["code"] = said.pop("code_")
    return ErrorInfo(code, "It said no.", True, status, retry_after, UpstreamReport(**said) if said else None)


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (_refused(429), "rate_limit_exceeded", "It said no."),
        (_refused(429, 29.5), "rate_limit_exceeded", "It said no. Please try again in 30 s."),
        (_refused(429, 3, message="Slow down."), "rate_limit_exceeded", "Slow down. Please try again in 3 s."),
        (_refused(429, 3, message="Please try again in 28ms."), "rate_limit_exceeded", "Please try again in 28ms."),
        (_refused(429, 3, code="queue_full", type="overloaded"), "rate_limit_exceeded", None),
        (_refused(429, 3, message="Pay.", code_="insufficient_quota"), "insufficient_quota", "Pay."),
        (_refused(429, message="Pay.", type="insufficient_quota"), "insufficient_quota", "Pay."),
        (_refused(503, 3), "upstream_refused", "It said no."),
        (_refused(400, code_="context_length_exceeded"), "context_length_exceeded", "It said no."),
        (_refused(400, type="exceed_context_size_error"), "context_length_exceeded", "It said no."),
        (ErrorInfo("prompt_too_long", "Too long.", False), "context_length_exceeded", "Too long."),
        (_refused(400, message="This model's maximum context length is 8 tokens."), "context_length_exceeded", None),
        (_refused(400, message="The maximum context length", code_="bad_value"), "bad_value", None),
        (_refused(422, message="The maximum context length"), "upstream_422", None),
        (_refused(500, message="The maximum context length"), "upstream_refused", "It said no."),
        (_refused(400, code="upstream_rejected", message="No such tool."), "upstream_rejected", "No such tool."),
    ],
)
async def test_a_failure_has_the_code_by_which_codex_decides(
    failure: ErrorInfo, code: str, message: str | None
) -> None:
    ending = partial(StreamFailed, error=failure, usage=USAGE, timings=TIMINGS)
    *_, error, last = await events_of(make_log(DEEP, ending))
    assert last["response"]["error"]["code"] == error["code"] == error["error"]["code"] == code
    assert last["response"]["error"]["message"] == error["message"] == error["error"]["message"]
    assert message is None or error["message"] == message


async def test_a_stream_without_text_has_no_items() -> None:
    events = await events_of(make_log([]))
    assert types_of(events) == ["created", "in_progress", "completed"]
    assert events[-1]["response"]["output"] == []


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(), None),
        (Usage(3, None, 4), None),
        (Usage(None, 9, 4), None),
        (Usage(3, 9, None), (3, 9, 0, 12)),
        (Usage(0, 0, 0), (0, 0, 0, 0)),
    ],
)
async def test_usage_is_null_if_input_or_output_is_unknown(usage: Usage, expected: tuple[int, ...] | None) -> None:
    events = await events_of(make_log([], partial(COMPLETED, usage=usage)))
    found = events[-1]["response"]["usage"]
    if expected is None:
        assert found is None
    else:
        reasoning = found["output_tokens_details"]["reasoning_tokens"]
        assert (found["input_tokens"], found["output_tokens"], reasoning, found["total_tokens"]) == expected


async def test_characters_that_break_lines_in_old_clients_are_escaped() -> None:
    body = await body_of(make_log([[Text("a\u2028b\x85c\r\nd")]]))
    assert "\u2028".encode() not in body
    assert "\x85".encode() not in body
    assert b"\r" not in body
    assert events_in(body)[-1]["response"]["output"][0]["content"][0]["text"] == "a\u2028b\x85c\r\nd"


async def test_a_running_response_holds_the_text_in_the_log() -> None:
    for count in range(len(DEEP) + 1):
        response = await response_object(make_log(DEEP[:count], None), ECHOED)
        assert response.status == "in_progress"
        assert response.usage is None
        output = response.output
        texts = [part.text for item in output for part in (getattr(item, "summary", None) or item.content)]
        assert texts == [[], ["First, add."], ["First, add.", "Then "], ["First, add.", "Then check.", "Hel"]][
            min(count, 3)
        ] or texts == ["First, add.", "Then check.", "Hello"]
        assert [item.status for item in output] == [[], ["in_progress"], ["completed", "in_progress"]][
            0 if count == 0 else 1 if count < 3 else 2
        ]


async def test_the_final_response_equals_that_of_the_last_event() -> None:
    log = make_log(INTERRUPTED)
    assert json.loads(msgspec.json.encode(await response_object(log, ECHOED))) == (await events_of(log))[-1]["response"]


def test_a_response_id_converts_to_its_stream_id_and_back() -> None:
    assert format_response_id(STREAM) == RESPONSE
    assert parse_response_id(RESPONSE) == STREAM


@pytest.mark.parametrize(
    "text", ["", STREAM, "resp_", RESPONSE + "x", RESPONSE + "\n", RESPONSE[:-1] + "/", "resp_é" * 5]
)
def test_an_invalid_response_id_is_not_found(text: str) -> None:
    with pytest.raises(StreamNotFoundError):
        parse_response_id(text)


async def test_folding_a_long_log_lets_others_run() -> None:
    log = make_log([[Text("word ")] for _ in range(5_000)])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    for fold in (partial(open_dialect, log, ECHOED, 5_000), partial(response_object, log, ECHOED)):
        turns = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await fold()
            nursery.cancel_scope.cancel()
        assert turns >= log.size_bytes // (64 * 1024) - 1 > 5


@pytest.mark.parametrize("piece", [Text, Reasoning])
async def test_the_memory_cost_of_a_piece_does_not_grow_with_the_text_before_it(
    piece: type[Text] | type[Reasoning],
) -> None:
    """Measured by memory, which is independent of load. Joining the text at every piece would copy all of it."""
    log = make_log([[piece("x" * 2_500)] for _ in range(400)], None)
    *frames, last = log.read(0)
    view = await open_dialect(log, ECHOED)
    tracemalloc.start()
    try:
        view.feed(frames)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        view.feed([last])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 400 * 2_500
    assert peak - before < 10 * 2_500
