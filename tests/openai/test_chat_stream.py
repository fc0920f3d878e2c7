"""A streamed chat completion: its bytes, its ends, and a client that leaves."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit import starting
from crucible_trio.apis.kit.failures import CLIENTS_FAULT
from crucible_trio.apis.openai.chat.fold import ChatDialect
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.testing import Gate, Repeat

USAGE = Usage(3, 9, 4)
DEEP = (Reasoning("First, ", 0), 1, Reasoning("then.", 1), 1, "Hel", 1, "lo.", Finish(usage=USAGE))
ERROR = {"param": None, "type": "server_error"}
KEY = {"Idempotency_Key": "key"}


def texts(events: list[Any], name: str = "content") -> str:
    return "".join(event["choices"][0]["delta"].get(name, "") for event in events if event != "[DONE]")


async def test_a_stream_has_the_documented_bytes(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*DEEP) as api:
        answer = await api.chat(stream=True, reasoning_effort="high", stream_options={"include_usage": True})
        stream = (await api.pipeline.list())[0]
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["crucible-stream"] == stream.id
    assert answer.headers["location"] == f"/v1/streams/{stream.id}"
    assert "crucible-replayed" not in answer.headers
    head = (
        f'data: {{"id":"chatcmpl-{stream.id[4:]}","object":"chat.completion.chunk","created":{int(stream.created_at)},'
        '"model":"scripted","choices":['
    )
    tail = '],"usage":null}\n\n'
    deltas = [
        '{"role":"assistant","content":""},"finish_reason":null',
        '{"reasoning_content":"First, "},"finish_reason":null',
        '{"reasoning_content":"then."},"finish_reason":null',
        '{"content":"Hel"},"finish_reason":null',
        '{"content":"lo."},"finish_reason":null',
        '{},"finish_reason":"stop"',
    ]
    usage = (
        '{"prompt_tokens":3,"completion_tokens":9,"total_tokens":12,"completion_tokens_details":{"reasoning_tokens":4}}'
    )
    assert answer.body.decode() == (
        "".join(f'{head}{{"index":0,"delta":{delta}}}{tail}' for delta in deltas)
        + f'{head}],"usage":{usage}}}\n\n'
        + "data: [DONE]\n\n"
    )


async def test_usage_is_sent_only_on_request(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*DEEP) as api:
        for options in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
            answer = await api.chat(stream=True, **options)
            assert b"usage" not in answer.body
            assert answer.events[-1] == "[DONE]"
            assert answer.events[-2]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("usage", [Usage(), Usage(input_tokens=3), Usage(output_tokens=9, reasoning_tokens=4)])
async def test_usage_that_the_engine_did_not_count_is_left_out(open_api, usage, autojump_clock: MockClock) -> None:
    async with open_api("a", Finish(usage=usage)) as api:
        answer = await api.chat(stream=True, stream_options={"include_usage": True})
        assert [event["usage"] for event in answer.events[:-1]] == [None] * 3
        assert all(event["choices"] for event in answer.events[:-1])


async def test_usage_without_reasoning_has_no_details(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", Finish(usage=Usage(3, 9))) as api:
        answer = await api.chat(stream=True, stream_options={"include_usage": True})
        assert answer.events[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}


async def test_every_line_splitter_finds_the_same_lines(open_api, autojump_clock: MockClock) -> None:
    text = "a\u2028b\u2029c\x85d\r\ne"
    async with open_api(Reasoning(text), text) as api:
        answer = await api.chat(stream=True)
        assert len(answer.body.decode().splitlines()) == 2 * len(answer.events)
        assert texts(answer.events) == texts(answer.events, "reasoning_content") == text


TRACE_FIELDS = [
    ("reasoning_content", {"reasoning_content"}),
    ("reasoning", {"reasoning"}),
    ("both", {"reasoning_content", "reasoning"}),
]


@pytest.mark.parametrize(("setting", "names"), TRACE_FIELDS)
async def test_the_trace_has_the_names_of_the_setting(open_api, setting, names, autojump_clock: MockClock) -> None:
    async with open_api(*DEEP, openai_trace_field=setting) as api:
        streamed = await api.chat(stream=True)
        message = (await api.chat()).json["choices"][0]["message"]
    deltas = [event["choices"][0]["delta"] for event in streamed.events[:-1]]
    assert deltas[1:3] == [dict.fromkeys(names, "First, "), dict.fromkeys(names, "then.")]
    assert message == {"role": "assistant", "content": "Hello.", "refusal": None} | dict.fromkeys(names, "First, then.")


async def test_silence_is_filled_with_chunks_that_have_no_content(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", 25, "b", heartbeat_seconds=10) as api:
        answer = await api.chat(KEY, stream=True, stream_options={"include_usage": True})
        replay = await api.chat(KEY, stream=True, stream_options={"include_usage": True})
    first, again, once_more, second = answer.events[1:5]
    assert [event["choices"][0]["delta"] for event in (first, second)] == [{"content": "a"}, {"content": "b"}]
    assert again == once_more == first | {"choices": [{"index": 0, "delta": {}, "finish_reason": None}]}
    assert [event for event in answer.events if event != again] == replay.events
    assert b":\n\n" not in answer.body


async def test_a_silence_over_the_idle_deadline_ends_with_an_error(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", 1000, "b", heartbeat_seconds=10, idle_seconds=25) as api, api.open_chat(stream=True) as it:
        began = trio.current_time()
        await it.until(lambda it: it.ended)
    *_, last, first_silence, second_silence, end = it.events
    assert last["choices"][0]["delta"] == {"content": "a"}
    assert [event["choices"][0]["delta"] for event in (first_silence, second_silence)] == [{}, {}]
    assert end["error"]["code"] == "idle_deadline"
    assert [time - began for time in it.times[-3:]] == [10, 20, 25]


async def test_a_draining_server_sends_nothing_extra_to_a_chat_client(open_api, autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_api("a", gate, "b") as api, trio.open_nursery() as nursery:
        async with api.open_chat(stream=True) as answer:
            await answer.until_sent(b'"a"')
            nursery.start_soon(api.pipeline.drain, 100)
            await wait_all_tasks_blocked()
            gate.open()
            await answer.until(lambda answer: answer.ended)
        assert texts(answer.events) == "ab"
        assert b"server." not in answer.body
        assert b"retry:" not in answer.body


# Ends


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (["a"], "stop"),
        ([Finish()], "stop"),
        (["a", Finish("length")], "length"),
        (["a", Finish("content_filter")], "content_filter"),
        (["a", Finish("an unknown reason")], "stop"),
        ([Repeat("a")], "length"),  # over the server's limit
        ([Repeat("x" * 4000)], "length"),  # over the log's limit
    ],
)
async def test_a_normal_end_has_a_finish_reason(open_api, steps, reason, autojump_clock: MockClock) -> None:
    async with open_api(*steps, max_output_tokens=50, stream_log_bytes=40_000) as api:
        answer = await api.chat(stream=True)
        assert [event["choices"][0]["finish_reason"] for event in answer.events[:-1]] == [
            *[None] * (len(answer.events) - 2),
            reason,
        ]
        assert answer.events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("steps", "code", "message"),
    [
        ([EngineError("model_failed", "It broke.")], "model_failed", "It broke."),
        ([ValueError("secret")], "engine_error", "The engine failed."),
        ([1000, "b"], "idle_deadline", "The model stopped in the middle."),
        ([Repeat([1, "b"])], "total_deadline", "The answer was not finished in time."),
    ],
)
async def test_a_failed_stream_ends_with_an_error_and_never_looks_complete(
    open_api, steps, code, message, autojump_clock: MockClock
) -> None:
    async with open_api("a", *steps, total_seconds=200, idle_seconds=100) as api:
        answer = await api.chat(stream=True, stream_options={"include_usage": True})
        *chunks, last = answer.events
        assert texts(chunks).startswith("a")
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
        assert last == {"error": {"message": message, "code": code} | ERROR}
        assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("code", sorted(CLIENTS_FAULT))
async def test_an_error_caused_by_the_request_is_an_invalid_request_error(
    open_api, code, autojump_clock: MockClock
) -> None:
    async with open_api(EngineError(code, "No.")) as api:
        answer = await api.chat(stream=True)
        assert answer.events[-1] == {
            "error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": code}
        }


async def test_a_missed_first_token_deadline_is_an_error(open_api, autojump_clock: MockClock) -> None:
    async with open_api(1000, first_token_seconds=5) as api:
        answer = await api.chat(stream=True)
        assert answer.events[1:] == [
            {"error": {"message": "The model did not begin in time.", "code": "first_token_deadline"} | ERROR}
        ]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("client", "The stream was cancelled."),
        ("shutdown", "The server is shutting down."),
        ("disconnect", "The stream was cancelled, because its client had left."),
    ],
)
async def test_a_cancelled_stream_is_an_error(open_api, by, message, autojump_clock: MockClock) -> None:
    async with open_api("a", Gate()) as api, api.open_chat(stream=True) as answer:
        await answer.until_sent(b'"a"')
        (await api.pipeline.list())[0].cancel(by)
        await answer.until(lambda answer: answer.ended)
        assert answer.events[-1] == {"error": {"message": message, "code": "cancelled"} | ERROR}
        assert b"[DONE]" not in answer.body


# The client leaves


async def test_a_client_that_leaves_stops_the_engine(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", gate := Gate(), "b") as api:
        async with api.open_chat(stream=True) as answer:
            await answer.until_sent(b'"a"')
            await gate.wait_reached()
        await wait_all_tasks_blocked()
        [stream] = await api.pipeline.list()
        assert (stream.status, stream.snapshot().by) == ("cancelled", "disconnect")
        assert [run.end for run in api.engine.runs] == ["cancelled"]


async def test_with_a_key_the_stream_pauses_and_a_retry_gets_the_whole_stream(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", gate := Gate(), "b") as api:
        async with api.open_chat(KEY, stream=True) as first:
            await first.until_sent(b'"a"')
            await gate.wait_reached()
        await wait_all_tasks_blocked()
        [stream] = await api.pipeline.list()
        assert (stream.status, stream.paused) == ("running", True)
        gate.open()
        answer = await api.chat(KEY, stream=True)
        assert answer.headers["crucible-replayed"] == "true"
        assert answer.headers["crucible-stream"] == first.headers["crucible-stream"] == stream.id
        assert answer.body.startswith(first.body)
        assert texts(answer.events) == "ab"
        assert api.engine.calls == 1


async def test_a_replay_is_the_same_bytes(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*DEEP) as api:
        first = await api.chat(KEY, stream=True)
        autojump_clock.jump(100)
        assert (await api.chat(KEY, stream=True)).body == first.body
        assert api.engine.calls == 1


async def test_a_key_with_a_different_question_is_refused(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        await api.chat(KEY, stream=True)
        answer = await api.chat(KEY, stream=True, messages=[{"role": "user", "content": "Who?"}])
        assert (answer.status, answer.error["code"]) == (422, "idempotency_conflict")


@pytest.mark.parametrize("key", ["", "ä", "a b", "x" * 256])
async def test_an_invalid_key_is_refused_and_starts_nothing(open_api, key, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for stream in (True, False):
            answer = await api.chat({"Idempotency_Key": key}, stream=stream)
            assert (answer.status, answer.error["param"]) == (400, "Idempotency-Key")
        assert await api.pipeline.list() == []


async def test_the_same_stream_can_be_read_natively_at_the_same_time(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", gate := Gate(), "b") as api, api.open_chat(stream=True) as answer:
        await answer.until_sent(b'"a"')
        location = answer.headers["location"]
        async with api.open("GET", f"{location}/events") as native:
            await native.until_sent(b'"delta":"a"')
            gate.open()
            await native.until(lambda native: native.ended)
            await answer.until(lambda answer: answer.ended)
        assert b"stream.completed" in native.body
        assert b"id: " in native.body
        assert texts(answer.events) == "ab"
        assert (await api.get(location)).json["output"] == "ab"


async def test_one_reader_too_many_is_refused_before_the_status_line(open_api, autojump_clock: MockClock) -> None:
    gate = Gate()
    async with (
        open_api("a", gate, max_readers_per_stream=1) as api,
        api.open_chat(KEY, stream=True) as first,
    ):
        await first.until_sent(b'"a"')
        for stream in (True, False):
            answer = await api.chat(KEY, stream=stream)
            assert (answer.status, answer.error["code"]) == (429, "too_many_readers")
            assert answer.error["type"] == "rate_limit_error"
        gate.open()
        await first.until(lambda first: first.ended)


async def test_a_reader_refused_after_the_status_line_gets_no_end(
    open_api, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Two readers want the last place at the same time. Both status lines are sent before either one is attached."""
    monkeypatch.setattr(starting, "check_room", lambda *_: None)
    gate = Gate()
    async with open_api("a", gate, max_readers_per_stream=1) as api, api.open_chat(KEY, stream=True) as first:
        await first.until_sent(b'"a"')
        async with api.open_chat(KEY, stream=True) as second:
            await wait_all_tasks_blocked()
        assert (second.status, second.body, second.ended) == (200, b"", False)
        gate.open()
        await first.until(lambda first: first.ended)
        assert texts(first.events) == "a"


# The fold


async def test_the_chunks_of_a_record_depend_only_on_earlier_records(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*DEEP) as api:
        await api.chat(stream=True)
        frames = (await api.pipeline.list())[0].log.read(0)
        whole = ChatDialect(include_usage=True).feed(frames)
        for cut in range(len(frames) + 1):
            fold = ChatDialect(include_usage=True)
            assert fold.feed(frames[:cut]) + fold.feed(frames[cut:]) == whole
        ids = {json.loads(line[6:])["id"] for line in whole.decode().split("\n\n")[:-2]}
        assert len(ids) == 1
