import json
import re
import sys
from collections.abc import Callable
from types import FrameType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio import records
from crucible_trio.errors import InvalidLastEventIdError
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    ServerBusy,
    ServerDraining,
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
    UpstreamFields,
    Usage,
    decode_event,
    decode_frame,
    encode_control,
    encode_frame,
    encode_json,
    format_event_id,
    is_deeper,
    new_stream_id,
    parse_event_id,
)
from crucible_trio.sse import Decoder, ServerSentEvent

STREAM = "str_7Q2M4kWcT0aXn3v9LzB1pg"

# Arbitrary text, and text with the characters at which the line splitters of the httpx family break.
TEXTS = st.text() | st.text(alphabet='a\x00\x1f\x7f\x80\x85\x9f\u2028\u2029\n\r"\\😀\u00a0')
SEQS = st.integers(1, 10**9)
USAGES = st.builds(Usage, *[st.none() | st.integers(0, 10**9)] * 3)
TIMINGS = st.builds(Timings, st.none() | st.floats(0, 1e9), st.floats(0, 1e9))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXTS, values, max_size=3),
    max_leaves=5,
)
RECORDS: st.SearchStrategy[AnyRecord] = st.one_of(
    st.builds(StreamCreated, SEQS, st.just(STREAM), st.sampled_from(["standard", "deep"]), TEXTS, st.floats(0, 1e10)),
    st.builds(ReasoningDelta, SEQS, st.integers(0, 1000), TEXTS),
    st.builds(ReasoningDone, SEQS, st.integers(1, 1000), st.none() | st.lists(TEXTS)),
    st.builds(OutputDelta, SEQS, TEXTS, st.none() | st.lists(JSON_VALUES, max_size=3)),
    st.builds(RefusalDelta, SEQS, TEXTS),
    st.builds(ToolCallStarted, SEQS, st.integers(0, 1000), TEXTS, TEXTS),
    st.builds(ToolCallDelta, SEQS, st.integers(0, 1000), TEXTS),
    st.builds(ToolCallDone, SEQS, st.integers(0, 1000)),
    st.builds(StreamCompleted, SEQS, TEXTS, USAGES, TIMINGS),
    st.builds(StreamIncomplete, SEQS, st.sampled_from(["log_limit", "idle_deadline"]), USAGES, TIMINGS),
    st.builds(StreamFailed, SEQS, st.builds(ErrorInfo, TEXTS, TEXTS, st.booleans()), USAGES, TIMINGS),
    st.builds(StreamCancelled, SEQS, st.sampled_from(["client", "disconnect", "shutdown"]), USAGES, TIMINGS),
)
CONTROLS = st.builds(ServerDraining, st.integers(0, 10**6)) | st.builds(ServerBusy, st.integers(0, 10**6))


@given(RECORDS)
def test_a_frame_decodes_to_its_record(record: AnyRecord) -> None:
    assert decode_frame(encode_frame(STREAM, record)) == record


@given(RECORDS)
def test_a_frame_is_one_event_with_the_records_id(record: AnyRecord) -> None:
    [event] = Decoder().feed(encode_frame(STREAM, record))
    assert event.id == f"{STREAM}.{record.seq}"
    assert event.event == ""
    assert event.data is not None
    assert decode_event(event.data) == record


@given(RECORDS)
def test_no_line_splitter_breaks_a_frame(record: AnyRecord) -> None:
    frame = encode_frame(STREAM, record)
    assert not re.search("[\x00-\x09\x0b-\x1f\x80-\x9f\u2028\u2029]", frame.decode())
    assert len(frame.decode().splitlines()) == 3  # data, id, blank


def test_characters_that_break_lines_are_escaped_and_decode_unchanged() -> None:
    text = "a\x80\x85\x9f\u2028\u2029\u00a0ü😀"
    encoded = encode_json(OutputDelta(2, text))
    assert rb"a\u0080\u0085\u009f\u2028\u2029" + "\u00a0ü😀".encode() in encoded
    assert json.loads(encoded)["delta"] == text


def test_a_record_on_the_wire_is_as_documented() -> None:
    created = StreamCreated(seq=1, stream=STREAM, mode="deep", model="smollm2-135m", created_at=1764000000.0)
    assert encode_frame(STREAM, created) == (
        b'data: {"type":"stream.created","seq":1,"stream":"str_7Q2M4kWcT0aXn3v9LzB1pg","mode":"deep",'
        b'"model":"smollm2-135m","created_at":1764000000.0}\nid: str_7Q2M4kWcT0aXn3v9LzB1pg.1\n\n'
    )
    assert encode_json(ReasoningDone(9, 2)) == b'{"type":"reasoning.done","seq":9,"segments":2}'
    assert encode_json(StreamCompleted(14, "stop", Usage(3, None, 4), Timings(None, 3411.0))) == (
        b'{"type":"stream.completed","seq":14,"finish_reason":"stop",'
        b'"usage":{"input_tokens":3,"output_tokens":null,"reasoning_tokens":4},'
        b'"timings":{"first_token_ms":null,"total_ms":3411.0}}'
    )


@pytest.mark.parametrize(
    ("record", "json_text"),
    [
        (OutputDelta(2, "a"), b'{"type":"output.delta","seq":2,"delta":"a"}'),
        (
            OutputDelta(2, "a", [{"token": "a", "logprob": -0.5}]),
            b'{"type":"output.delta","seq":2,"delta":"a","logprobs":[{"token":"a","logprob":-0.5}]}',
        ),
        (RefusalDelta(3, "I cannot"), b'{"type":"refusal.delta","seq":3,"delta":"I cannot"}'),
        (
            ToolCallStarted(4, 0, "call_1", "weather"),
            b'{"type":"tool_call.started","seq":4,"index":0,"id":"call_1","name":"weather"}',
        ),
        (ToolCallDelta(5, 0, '{"city":'), b'{"type":"tool_call.delta","seq":5,"index":0,"delta":"{\\"city\\":"}'),
        (ToolCallDone(6, 0), b'{"type":"tool_call.done","seq":6,"index":0}'),
        (StreamContinued(7, 20), b'{"type":"stream.continued","seq":7,"characters":20}'),
        (
            UpstreamFields(8, "choice", {"stop_reason": 7}),
            b'{"type":"upstream.fields","seq":8,"at":"choice","fields":{"stop_reason":7}}',
        ),
    ],
)
def test_each_kind_of_content_on_the_wire_is_as_documented(record: AnyRecord, json_text: bytes) -> None:
    assert encode_json(record) == json_text


@given(CONTROLS)
def test_an_out_of_band_event_leaves_the_clients_last_event_id_unchanged(control: ServerDraining | ServerBusy) -> None:
    decoder = Decoder()
    decoder.feed(b"data: x\nid: 7\n\n")
    [event] = decoder.feed(encode_control(control))
    assert event == ServerSentEvent(data=event.data)
    assert decoder.last_event_id == "7"
    assert event.data is not None
    assert decode_event(event.data) == control
    assert "seq" not in json.loads(event.data)


def test_records_are_immutable() -> None:
    with pytest.raises(AttributeError):
        OutputDelta(2, "x").delta = "y"


@pytest.mark.parametrize("data", ["", "x", "{}", '{"type":"unknown","seq":1}', '{"type":"output.delta","seq":"1"}'])
def test_a_client_refuses_data_that_is_not_a_valid_event(data: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(data)


def test_there_are_four_terminal_records() -> None:
    assert {record.__struct_config__.tag for record in TERMINAL} == {
        "stream.completed",
        "stream.incomplete",
        "stream.failed",
        "stream.cancelled",
    }


def test_stream_ids_hold_128_random_bits_and_only_url_safe_characters() -> None:
    ids = {new_stream_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"str_[A-Za-z0-9_-]{22}", stream_id, re.ASCII) for stream_id in ids)  # 22 x 6 > 128


@given(st.integers(0, 10**12))
def test_an_event_id_parses_back_to_its_stream_and_offset(seq: int) -> None:
    stream_id = new_stream_id()
    assert parse_event_id(format_event_id(stream_id, seq)) == (stream_id, seq)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        STREAM,
        f"{STREAM}.",
        ".5",
        f"{STREAM}.-1",
        f"{STREAM}.+1",
        f"{STREAM}. 1",
        f"{STREAM}.1 ",
        f"{STREAM}.1\n",
        f"{STREAM}.01",
        f"{STREAM}.1_0",
        f"{STREAM}.\u0661",
        f"{STREAM}.x",
        f"{STREAM}.1.2",
        f"{STREAM}x.1",
        f"{STREAM[:-1]}.1",
        f"{STREAM[:-1]}ü.1",
        f"{STREAM}.{'1' * 200}",
        f"other{STREAM[3:]}.1",
    ],
)
def test_an_id_that_no_server_can_have_sent_is_refused(text: str) -> None:
    with pytest.raises(InvalidLastEventIdError):
        parse_event_id(text)


@given(st.text())
def test_any_text_is_a_valid_id_or_is_refused(text: str) -> None:
    try:
        stream_id, seq = parse_event_id(text)
    except InvalidLastEventIdError:
        pass
    else:
        assert format_event_id(stream_id, seq) == text


def test_checking_a_value_that_is_not_nested_takes_a_few_steps_and_not_one_for_each_possible_level() -> None:
    lines: list[int] = []

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object] | None:
        if frame.f_code.co_filename != records.__file__:
            return None
        if event == "line":
            lines.append(frame.f_lineno)
        return trace

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        is_nested = [is_deeper(value) for value in (None, {}, {"a": [1]})]
    finally:
        sys.settrace(earlier)
    assert is_nested == [False, False, False]
    assert 0 < len(lines) < records.MAX_DEPTH
