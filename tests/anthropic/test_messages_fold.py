"""The dialect of the Messages API without I/O: the events of a log, and every resume as the tail of the whole body."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.apis.anthropic.errors import error_of
from crucible_trio.apis.anthropic.events import (
    PING,
    format_message_id,
    parse_message_event_id,
    parse_message_id,
)
from crucible_trio.apis.anthropic.fold import UNPARSED, MessageFold, ThinkingView, whole_message
from crucible_trio.apis.kit.replay import open_after
from crucible_trio.apis.kit.sealed import Seals
from crucible_trio.content import (
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.errors import CursorAheadError, InvalidLastEventIdError, StreamNotFoundError, UpstreamReport
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
MESSAGE = "msg_7Q2M4kWcT0aXn3v9LzB1pg"
TIMINGS = Timings(212.0, 3411.0)
USAGE = Usage(3, 9, 4)
COMPLETED = partial(StreamCompleted, finish_reason="stop", usage=USAGE, timings=TIMINGS)
FILTERED = partial(StreamCompleted, finish_reason="content_filter", usage=USAGE, timings=TIMINGS)
LIMITED = partial(StreamIncomplete, reason="max_output_tokens", usage=USAGE, timings=TIMINGS)
SEAL = Seals("secret").of("alice")

Json = dict[str, Any]

DEEP = [
    [Reasoning("First, ", 0), Reasoning("add.", 0)],
    [Reasoning("Then check.", 1), Text("Hel")],
    [Text("lo")],
]
CALLS = [
    [Reasoning("Look.", 0), Text("I look.")],
    [ToolCallStart("call_1", "weather"), ToolCallArguments('{"ci')],
    [ToolCallArguments('ty": "Rome"}'), ToolCallEnd()],
    [ToolCallStart("call_2", "now"), ToolCallEnd()],
]
HALF_CALL = [[Text("I look.")], [ToolCallStart("call_1", "weather"), ToolCallArguments('{"city": "Ro')]]
LOGS: list[list[list[Piece]]] = [
    [],
    DEEP,
    CALLS,
    HALF_CALL,
    [[Text("a")], [Reasoning("b", 0)], [Text("c")], [Refusal("No.")]],
    [[Reasoning("only", 0)]],
    [[Reasoning("a", 0)], [ServerFields("delta", {"x": 1})], [Reasoning("b", 0), ServerFields("choice", {"y": 2})]],
]


def make_log(batches: Sequence[Sequence[Piece]], ending: object = COMPLETED) -> MemoryLog:
    """A log as a stream writes it. Without an ending the stream is still running."""
    log = MemoryLog(room_without_readers=True)
    recorder = Recorder(STREAM, max_bytes=10_000_000)
    log.append_nowait([recorder.create(mode="deep", model="tiny", created_at=1764000000.75)])
    for batch in batches:
        log.append_nowait(recorder.add(batch))
    if ending is not None:
        log.append_nowait(recorder.finish([], ending), last=True)
    return log


def new_fold(view: ThinkingView = "shown") -> MessageFold:
    return MessageFold(view, SEAL)


async def body_of(log: MemoryLog, after: int | None = None, view: ThinkingView = "shown") -> bytes:
    dialect = await open_after(log, new_fold(view), after)
    return dialect.feed(log.read(dialect.resume_offset))


def events_in(body: bytes) -> list[Json]:
    """The events of a body. Checks the shape of every line, and the numbers of the ids."""
    events = []
    for number, block in enumerate(body.decode().split("\n\n")[:-1]):
        kind, data, event_id = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        assert event_id == f"id: {MESSAGE}.{number}"
        events.append(event)
    return events


async def events_of(
    batches: Sequence[Sequence[Piece]], ending: object = COMPLETED, view: ThinkingView = "shown"
) -> list[Json]:
    return events_in(await body_of(make_log(batches, ending), view=view))


def types_of(events: list[Json]) -> list[str]:
    """Each event in a word or two: its type, or its effect on a block."""
    words = []
    for event in events:
        inner = event.get("content_block") or ("type" in event.get("delta", {}) and event["delta"]) or {"type": ""}
        words.append(f"{event['type'].removeprefix('content_block_')} {inner['type']}".strip())
    return words


async def test_a_deep_stream_has_exactly_the_documented_events() -> None:
    assert types_of(await events_of(DEEP)) == [
        "message_start",
        "start thinking",
        "delta thinking_delta",
        "delta thinking_delta",
        "delta signature_delta",
        "stop",
        "start text",
        "delta text_delta",
        "delta text_delta",
        "stop",
        "message_delta",
        "message_stop",
    ]


async def test_every_event_has_exactly_the_documented_bytes() -> None:
    body = await body_of(make_log([[Reasoning("Hm", 0)], [Text("Hi")], *CALLS[1:3]]))
    expected = [
        '{"type":"message_start","message":{"type":"message","id":"' + MESSAGE + '","role":"assistant","model":"tiny",'
        '"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}}',
        '{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hm"}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"SIGNATURE"}}',
        '{"type":"content_block_stop","index":0}',
        '{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"","citations":null}}',
        '{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Hi"}}',
        '{"type":"content_block_stop","index":1}',
        '{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"call_1","name":"weather",'
        '"input":{}}}',
        '{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\\"ci"}}',
        '{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta",'
        '"partial_json":"ty\\": \\"Rome\\"}"}}',
        '{"type":"content_block_stop","index":2}',
        '{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":3,'
        '"output_tokens":9,"output_tokens_details":{"thinking_tokens":4}}}',
        '{"type":"message_stop"}',
    ]
    assert body.decode().replace(SEAL.signature("Hm"), "SIGNATURE") == "".join(
        f"event: {json.loads(data)['type']}\ndata: {data}\nid: {MESSAGE}.{number}\n\n"
        for number, data in enumerate(expected)
    )
    assert new_fold().keep_alive() == PING == b'event: ping\ndata: {"type":"ping"}\n\n'


@pytest.mark.parametrize("batches", LOGS)
@pytest.mark.parametrize("view", ["shown", "omitted", "hidden"])
async def test_one_block_is_open_at_a_time_and_indexes_count_without_holes(
    batches: list[list[Piece]], view: ThinkingView
) -> None:
    opened = -1
    is_open = False
    for event in await events_of(batches, view=view):
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == opened + 1
                opened, is_open = opened + 1, True
            case "content_block_delta" | "content_block_stop":
                assert is_open
                assert event["index"] == opened
                is_open = event["type"] == "content_block_delta"


@pytest.mark.parametrize("batches", LOGS)
@pytest.mark.parametrize("ending", [COMPLETED, LIMITED, None])
@pytest.mark.parametrize("view", ["shown", "omitted", "hidden"])
async def test_a_resume_after_any_event_is_the_rest_of_the_body(
    batches: list[list[Piece]], ending: object, view: ThinkingView
) -> None:
    log = make_log(batches, ending)
    whole = await body_of(log, view=view)
    blocks = [block + b"\n\n" for block in whole.split(b"\n\n")[:-1]]
    for number in range(len(blocks)):
        assert await body_of(log, number, view) == b"".join(blocks[number + 1 :])
    with pytest.raises(CursorAheadError) as caught:
        await body_of(log, len(blocks), view)
    assert (caught.value.after, caught.value.head) == (len(blocks), len(blocks) - 1)


@given(st.lists(st.sampled_from([Text("a"), Reasoning("b"), Refusal("c")]), max_size=8), st.data())
async def test_the_split_into_reads_changes_nothing(pieces: list[Piece], data: st.DataObject) -> None:
    log = make_log([[piece] for piece in pieces])
    frames = log.read(0)
    cut = data.draw(st.integers(0, len(frames)))
    dialect = await open_after(log, new_fold())
    assert dialect.feed(frames[:cut]) + dialect.feed(frames[cut:]) == await body_of(log)


@pytest.mark.parametrize(
    ("batches", "ending", "expected"),
    [
        (DEEP, COMPLETED, "end_turn"),
        ([], COMPLETED, "end_turn"),
        (CALLS, COMPLETED, "tool_use"),
        (DEEP, LIMITED, "max_tokens"),
        (CALLS, LIMITED, "max_tokens"),
        (DEEP, partial(StreamIncomplete, reason="log_limit", usage=USAGE, timings=TIMINGS), "max_tokens"),
        (HALF_CALL, COMPLETED, "max_tokens"),
        (HALF_CALL, LIMITED, "max_tokens"),
        ([*CALLS, [Refusal("No.")]], COMPLETED, "tool_use"),
        ([[Refusal("No.")]], COMPLETED, "refusal"),
        ([[Text("Well, ")]], FILTERED, "refusal"),
        (CALLS, FILTERED, "refusal"),
    ],
)
async def test_the_stop_reason_says_how_the_stream_ended(
    batches: list[list[Piece]], ending: object, expected: str
) -> None:
    *_, delta, stop = await events_of(batches, ending)
    assert delta["delta"] == {"stop_reason": expected, "stop_sequence": None}
    assert stop == {"type": "message_stop"}
    assert whole_message(make_log(batches, ending).read(0), new_fold()).stop_reason == expected


@pytest.mark.parametrize(
    ("batches", "expected"),
    [(DEEP, ("stop_sequence", "END")), (CALLS, ("tool_use", None)), (HALF_CALL, ("max_tokens", None))],
)
async def test_the_stop_string_is_named_if_it_ended_the_answer(
    batches: list[list[Piece]], expected: tuple[str, str | None]
) -> None:
    *_, delta, _ = await events_of(batches, partial(COMPLETED, stop_string="END"))
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == expected


@pytest.mark.parametrize("ending", [COMPLETED, LIMITED])
async def test_a_call_that_broke_off_is_never_marked_as_whole(ending: object) -> None:
    events = await events_of(HALF_CALL, ending)
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0]
    assert types_of(events)[-3:] == ["delta input_json_delta", "message_delta", "message_stop"]
    [text] = whole_message(make_log(HALF_CALL, ending).read(0), new_fold()).content
    assert text.text == "I look."  # type: ignore[union-attr]


async def test_output_after_a_call_that_broke_off_opens_a_new_block_and_the_call_stays_open() -> None:
    log = make_log([HALF_CALL[1]], None)
    recorder = Recorder(STREAM, max_bytes=10_000)
    recorder.create(mode="deep", model="tiny", created_at=0)
    log.append_nowait(recorder.add([Text("Well.")]))
    assert types_of(events_in(await body_of(log)))[-2:] == ["start text", "delta text_delta"]


@pytest.mark.parametrize(
    ("ending", "kind", "code"),
    [
        (partial(StreamIncomplete, reason="idle_deadline"), "timeout_error", "idle_deadline"),
        (partial(StreamIncomplete, reason="total_deadline"), "timeout_error", "total_deadline"),
        (partial(StreamIncomplete, reason="first_token_deadline"), "timeout_error", "first_token_deadline"),
        (partial(StreamCancelled, by="client"), "api_error", "cancelled"),
        (partial(StreamCancelled, by="disconnect"), "api_error", "cancelled"),
        (partial(StreamCancelled, by="shutdown"), "overloaded_error", "cancelled"),
        (partial(StreamFailed, error=ErrorInfo("engine_error", "Oh.", False)), "api_error", "engine_error"),
        (partial(StreamFailed, error=ErrorInfo("upstream_error", "Oh.", True, 500)), "overloaded_error", None),
        (partial(StreamFailed, error=ErrorInfo("upstream_refused", "Oh.", True, 429)), "rate_limit_error", None),
        (partial(StreamFailed, error=ErrorInfo("upstream_refused", "Oh.", False, 429)), "api_error", None),
        (
            partial(StreamFailed, error=ErrorInfo("upstream_unauthorized", "Oh.", False, 401)),
            "authentication_error",
            None,
        ),
        (partial(StreamFailed, error=ErrorInfo("upstream_rejected", "Oh.", False, 413)), "request_too_large", None),
        (partial(StreamFailed, error=ErrorInfo("upstream_rejected", "Oh.", False, 422)), "invalid_request_error", None),
        (partial(StreamFailed, error=ErrorInfo("prompt_too_long", "Oh.", False)), "invalid_request_error", None),
    ],
)
async def test_a_stream_that_ends_badly_ends_with_an_error_event(ending: Any, kind: str, code: str | None) -> None:
    events = await events_of(DEEP, partial(ending, usage=USAGE, timings=TIMINGS))
    assert types_of(events)[-2:] == ["delta text_delta", "error"]
    error = events[-1]["error"]
    assert error["type"] == kind
    assert code is None or error["code"] == code
    assert error["message"]


def test_an_upstreams_refusal_is_told_in_its_own_words() -> None:
    said = UpstreamReport("Too long.", "their_type", "context_length_exceeded", "messages")
    failed = StreamFailed(2, ErrorInfo("upstream_rejected", "It said no.", False, 400, upstream=said), USAGE, TIMINGS)
    error = error_of(failed)
    assert error is not None
    assert (error.error.type, error.error.message) == ("invalid_request_error", "Too long.")
    assert (error.error.code, error.error.param) == ("context_length_exceeded", "messages")


async def test_a_signature_fits_the_trace_of_its_block_and_only_for_its_owner() -> None:
    events = await events_of(DEEP)
    [signature] = [e["delta"]["signature"] for e in events if e.get("delta", {}).get("type") == "signature_delta"]
    trace = "First, add.Then check."
    assert SEAL.matches(trace, signature)
    assert not SEAL.matches(trace + " ", signature)
    assert not Seals("secret").of("bob").matches(trace, signature)
    assert not Seals("other").of("alice").matches(trace, signature)
    for wrong in ("", "x", "\xe9", signature[:-1], "\ud800"):
        assert not SEAL.matches(trace, wrong)
    assert not SEAL.matches("\ud800", signature)


async def test_an_omitted_trace_is_in_its_signature_alone() -> None:
    events = await events_of(DEEP, view="omitted")
    assert types_of(events)[1:5] == ["start thinking", "delta signature_delta", "stop", "start text"]
    assert SEAL.verify(events[2]["delta"]["signature"]) == "First, add.Then check."


async def test_a_hidden_trace_has_no_events() -> None:
    assert types_of(await events_of(DEEP, view="hidden"))[:3] == ["message_start", "start text", "delta text_delta"]
    interrupted: list[list[Piece]] = [[Text("a")], [Reasoning("b", 0)], [Text("c")]]
    assert types_of(await events_of(interrupted, view="hidden"))[1:5] == [
        "start text",
        "delta text_delta",
        "delta text_delta",
        "stop",
    ]


async def test_usage_that_the_engine_did_not_count_is_0_because_clients_require_numbers() -> None:
    *_, delta, _ = await events_of(DEEP, partial(StreamCompleted, finish_reason="stop", usage=Usage(), timings=TIMINGS))
    assert delta["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_a_whole_message_has_every_block() -> None:
    message = whole_message(make_log(CALLS).read(0), new_fold())
    assert msgspec.to_builtins(message.content) == [
        {"type": "thinking", "thinking": "Look.", "signature": SEAL.signature("Look.")},
        {"type": "text", "text": "I look.", "citations": None},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "call_2", "name": "now", "input": {}},
    ]


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": }', "Rome"])
def test_arguments_that_are_no_object_are_kept_as_the_model_wrote_them(arguments: str) -> None:
    log = make_log([[ToolCallStart("call_1", "weather"), ToolCallArguments(arguments), ToolCallEnd()]])
    [call] = whole_message(log.read(0), new_fold()).content
    assert call.input == {UNPARSED: arguments}  # type: ignore[union-attr]


async def test_the_sdks_models_accept_every_event_in_strict_mode() -> None:
    types = pytest.importorskip("anthropic.types")
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    for batches in LOGS:
        for event in await events_of(batches):
            adapter.validate_python(event, strict=True)
        message = msgspec.to_builtins(whole_message(make_log(batches).read(0), new_fold()))
        types.Message.model_validate(message, strict=True)


def test_ids_lead_to_the_stream_and_back() -> None:
    assert format_message_id(STREAM) == MESSAGE
    assert parse_message_id(MESSAGE) == STREAM
    assert parse_message_event_id(f"{MESSAGE}.12") == (STREAM, 12)
    for wrong in ("", STREAM, f"{MESSAGE}x", "msg_", "msg_7Q2M4kWcT0aXn3v9LzB1p\n"):
        with pytest.raises(StreamNotFoundError):
            parse_message_id(wrong)
    for wrong in (
        "",
        MESSAGE,
        f"{STREAM}.1",
        f"{MESSAGE}.",
        f"{MESSAGE}.01",
        f"{MESSAGE}.-1",
        f"msg_{MESSAGE}.1",
        f"{MESSAGE[4:]}.1",
    ):
        with pytest.raises(InvalidLastEventIdError):
            parse_message_event_id(wrong)
