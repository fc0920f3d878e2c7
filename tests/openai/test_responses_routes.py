"""`POST /v1/responses`: with events, without events, in the background, and with a client that leaves."""

from __future__ import annotations

import pytest
import trio
from openai.types.responses import Response
from trio.testing import wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.testing import ScriptedEngine

DEEP = (Reasoning("Hm", 0), Reasoning("so", 1), "Hel", "lo", Finish(usage=Usage(3, 9, 4)))
ASK = {"model": "scripted", "input": "Why?"}
LIVE = ASK | {"stream": True}
BACKGROUND = ASK | {"background": True}
PATH = "/v1/responses"


def text_of(response: dict[str, object]) -> str:
    return Response.model_validate(response).output_text


# Starting, with events


async def test_a_stream_has_only_events_numbered_without_gaps(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        answer = await api.post(PATH, LIVE)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store, no-transform"
    lines = {line.partition(b":")[0] for line in answer.body.split(b"\n")}
    assert lines == {b"event", b"data", b""}  # no id and no retry, because these clients use neither
    events = answer.events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert text_of(events[-1]["response"]) == "Hello"


async def test_the_body_alone_decides_whether_it_streams(open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        events = await api.post(PATH, LIVE, Accept="application/json")
        whole = await api.post(PATH, ASK, Accept="text/event-stream")
    assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert whole.headers["content-type"] == "application/json"


async def test_events_arrive_as_soon_as_they_are_made(open_api, autojump_clock) -> None:
    async with open_api("a", 5, "b", 5, "c") as api, api.open("POST", PATH, LIVE) as exchange:
        begun = trio.current_time()
        for number, letter in enumerate(b"abc"):
            await exchange.until_sent(b'"delta":"%c"' % letter)
            assert trio.current_time() == begun + 5 * number


async def test_silence_is_filled_with_the_event_before_it(open_api, autojump_clock) -> None:
    async with open_api("a", 25, "b", heartbeat_seconds=10) as api:
        answer = await api.post(PATH, LIVE)
        response_id = answer.events[0]["response"]["id"]
        replay = await api.get(f"{PATH}/{response_id}?stream=true")
    events = answer.events
    started, (first, again, once_more, second) = events[1], events[4:8]
    assert (first["delta"], second["delta"]) == ("a", "b")
    assert started["type"] == "response.in_progress"
    # The same event, with the number of the last one: a client that resumes after this number misses nothing.
    assert again == once_more == started | {"sequence_number": first["sequence_number"]}
    assert [event for event in events if event not in (again, once_more)] == replay.events
    assert text_of(events[-1]["response"]) == "ab"


async def test_a_resumed_stream_is_kept_alive_with_the_number_of_the_last_event(open_api, autojump_clock) -> None:
    async with open_api("a", 25, "b", heartbeat_seconds=10) as api:
        started = (await api.post(PATH, BACKGROUND)).json
        await wait_all_tasks_blocked()
        answer = await api.get(f"{PATH}/{started['id']}?stream=true&starting_after=4")
    assert [(event["type"], event["sequence_number"]) for event in answer.events[:3]] == [
        ("response.in_progress", 4),
        ("response.in_progress", 4),
        ("response.output_text.delta", 5),
    ]


async def test_a_response_can_also_be_read_natively(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        answer = await api.post(PATH, LIVE)
        native = await api.get(answer.headers["location"])
    assert native.json["output"] == "Hello"
    assert native.json["trace"] == ["Hm", "so"]
    assert native.json["id"] == answer.headers["crucible-stream"]


async def test_a_native_stream_can_be_read_as_a_response(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        stream_id = (await api.post("/v1/streams", {"input": "Why?", "max_output_tokens": 50})).json["id"]
        response_id = stream_id.replace("str_", "resp_")
        answer = await api.get(f"{PATH}/{response_id}?stream=true")
        shown = await api.get(f"{PATH}/{response_id}")
    last = answer.events[-1]["response"]
    assert (last["id"], text_of(last)) == (response_id, "Hello")
    assert last["max_output_tokens"] == 50
    assert last["background"] is True  # a native start for JSON continues without readers
    assert shown.json == last


async def test_the_response_echoes_the_request(open_api, autojump_clock) -> None:
    engine = ScriptedEngine("Hi", sampling=["temperature", "top_p"])
    asked = {
        "instructions": "Be short.",
        "max_output_tokens": 20,
        "metadata": {"run": "7"},
        "temperature": 0.5,
        "top_p": 0.25,
        "reasoning": {"effort": "low", "summary": "auto"},
        "store": True,
    }
    async with open_api(engine=engine) as api:
        answer = await api.post(PATH, ASK | asked)
    assert {name: answer.json[name] for name in asked} == asked
    [run] = engine.runs
    assert [(message.role, message.content) for message in run.request.messages] == [
        ("system", "Be short."),
        ("user", "Why?"),
    ]
    assert (run.request.max_output_tokens, run.request.sampling.temperature, run.request.sampling.top_p) == (
        20,
        0.5,
        0.25,
    )


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "standard"),
        ({"reasoning": None}, "standard"),
        ({"reasoning": {"effort": "low"}}, "standard"),
        ({"reasoning": {"effort": "high", "generate_summary": "detailed"}}, "deep"),
        ({"model": "scripted:deep"}, "deep"),
    ],
)
async def test_reasoning_effort_or_model_name_selects_the_mode(
    fields: dict[str, object], mode: str, open_api, autojump_clock
) -> None:
    engine = ScriptedEngine("Hi")
    async with open_api(engine=engine) as api:
        answer = await api.post(PATH, ASK | fields)
    assert answer.json["model"] == "scripted"
    assert [run.request.mode for run in engine.runs] == [mode]


async def test_input_can_be_a_conversation_with_an_earlier_output(open_api, autojump_clock) -> None:
    engine = ScriptedEngine(*DEEP)
    async with open_api(engine=engine) as api:
        first = await api.post(PATH, ASK)
        conversation = [
            {"role": "developer", "content": "Be short."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
            *first.json["output"],
            {"role": "user", "content": "And?"},
        ]
        again = await api.post(PATH, ASK | {"input": conversation})
    assert again.status == 200, again.body
    assert [(message.role, message.content) for message in engine.runs[1].request.messages] == [
        ("system", "Be short."),
        ("user", "Why?"),
        ("assistant", "Hello"),
        ("user", "And?"),
    ]


# Starting, without events


async def test_without_stream_the_answer_is_the_object_of_the_last_event(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        answer = await api.post(PATH, ASK)
        events = (await api.get(f"{PATH}/{answer.json['id']}?stream=true")).events
    assert answer.status == 200
    assert answer.json == events[-1]["response"]
    assert answer.headers["crucible-stream"] == answer.json["id"].replace("resp_", "str_")


@pytest.mark.parametrize("steps", [("a", Finish("length")), ("a", 1000, "b")])
async def test_without_stream_an_incomplete_response_is_200_with_a_reason(
    steps: tuple[object, ...], open_api, autojump_clock
) -> None:
    async with open_api(*steps, idle_seconds=60) as api:
        answer = await api.post(PATH, ASK)
    assert (answer.status, answer.json["status"], text_of_message(answer.json)) == (200, "incomplete", "a")
    reason = "max_output_tokens" if len(steps) == 2 else "idle_deadline"
    assert answer.json["incomplete_details"] == {"reason": reason}


def text_of_message(response: dict[str, object]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


@pytest.mark.parametrize(
    ("code", "retryable", "status"),
    [("upstream_timeout", True, 503), ("upstream_timeout", False, 400), ("prompt_too_long", False, 400)],
)
async def test_without_stream_a_failure_is_an_http_error(
    code: str, retryable: bool, status: int, open_api, autojump_clock
) -> None:
    error = EngineError(code, "Too slow.", retryable=retryable)
    async with open_api("a", error) as api:
        answer = await api.post(PATH, ASK)
        shown = await api.get(f"{PATH}/{answer.headers['crucible-stream'].replace('str_', 'resp_')}")
    assert answer.status == status
    assert answer.error["code"] == code
    assert answer.error["message"] == "Too slow."
    assert ("retry-after" in answer.headers) == retryable
    assert ("x-should-retry" in answer.headers) != retryable
    # The partial output is not lost.
    assert (shown.status, shown.json["status"], text_of_message(shown.json)) == (200, "failed", "a")
    late_code = "context_length_exceeded" if code == "prompt_too_long" else code
    assert shown.json["error"] == {"code": late_code, "message": "Too slow."}


async def test_with_stream_a_failure_is_the_last_event_after_an_error(open_api, autojump_clock) -> None:
    async with open_api("a", EngineError("upstream_timeout", "Too slow.")) as api:
        answer = await api.post(PATH, LIVE)
    assert answer.status == 200
    error, last = answer.events[-2:]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "upstream_timeout", "message": "Too slow."}
    told = {"code": "upstream_timeout", "message": "Too slow.", "param": None}
    number = last["sequence_number"] - 1
    assert error == {"type": "error", "sequence_number": number, **told, "error": {"type": "server_error", **told}}


# Leaving


@pytest.mark.parametrize("ask", [ASK, LIVE])
async def test_a_client_that_leaves_cancels_its_response(ask: dict[str, object], open_api, autojump_clock) -> None:
    engine = ScriptedEngine("a", 1_000, "b")
    async with open_api(engine=engine, idle_seconds=10_000) as api:
        async with api.open("POST", PATH, ask):
            await trio.sleep(10)
            [stream] = await api.pipeline.list()
            assert (stream.status, engine.live) == ("running", 1)
        await wait_all_tasks_blocked()
        assert (stream.status, engine.live) == ("cancelled", 0)


@pytest.mark.parametrize("ask", [BACKGROUND, BACKGROUND | {"stream": True}])
async def test_a_background_response_continues_without_its_client(
    ask: dict[str, object], open_api, autojump_clock
) -> None:
    async with open_api("a", 1_000, "b", idle_seconds=10_000) as api:
        async with api.open("POST", PATH, ask) as exchange:
            await exchange.until_sent(b'"delta":"a"' if "stream" in ask else b"in_progress")
            [stream] = await api.pipeline.list()
        await trio.sleep(1_500)
        shown = await api.get(f"{PATH}/{stream.id.replace('str_', 'resp_')}")
    assert (shown.json["status"], text_of(shown.json)) == ("completed", "ab")


@pytest.mark.parametrize("ask", [ASK, LIVE])
async def test_with_a_key_a_client_that_leaves_can_come_back(ask: dict[str, object], open_api, autojump_clock) -> None:
    engine = ScriptedEngine("a", 50, "b")
    async with open_api(engine=engine) as api:
        async with api.open("POST", PATH, ask, Idempotency_Key="k"):
            await trio.sleep(10)
        await trio.sleep(10)
        [stream] = await api.pipeline.list()
        assert stream.paused
        again = await api.post(PATH, ask, Idempotency_Key="k")
    assert again.headers["crucible-replayed"] == "true"
    assert engine.calls == 1
    response = again.json if "stream" not in ask else again.events[-1]["response"]
    assert text_of(response) == "ab"


async def test_a_retry_by_key_gets_the_same_bytes(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        first = await api.post(PATH, LIVE, Idempotency_Key="k")
        again = await api.post(PATH, LIVE, Idempotency_Key="k")
    assert first.body == again.body


@pytest.mark.parametrize(
    "other", [{"input": "Who?"}, {"metadata": {"a": "b"}}, {"background": True}, {"store": False}, {"instructions": ""}]
)
async def test_a_key_with_a_different_request_is_refused(other: dict[str, object], open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        await api.post(PATH, ASK, Idempotency_Key="k")
        answer = await api.post(PATH, ASK | other, Idempotency_Key="k")
        assert (answer.status, answer.error["code"]) == (422, "idempotency_conflict")
        assert answer.headers["x-should-retry"] == "false"
        assert len(await api.pipeline.list()) == 1


# The background


async def test_a_background_response_is_answered_immediately(open_api, autojump_clock) -> None:
    async with open_api(10, *DEEP) as api:
        begun = trio.current_time()
        answer = await api.post(PATH, BACKGROUND)
        assert trio.current_time() == begun
        assert (answer.status, answer.json["status"], answer.json["output"]) == (200, "in_progress", [])
        assert answer.json["background"] is True
        await trio.sleep(5)
        assert (await api.get(f"{PATH}/{answer.json['id']}")).json == answer.json
        await trio.sleep(10)
        shown = await api.get(f"{PATH}/{answer.json['id']}")
    assert (shown.json["status"], text_of(shown.json)) == ("completed", "Hello")


async def test_a_running_response_is_shown_with_its_output_so_far(open_api, autojump_clock) -> None:
    async with open_api(Reasoning("Hm", 0), "Hel", 10, "lo") as api:
        answer = await api.post(PATH, BACKGROUND)
        await trio.sleep(5)
        shown = await api.get(f"{PATH}/{answer.json['id']}")
    assert (shown.json["status"], text_of(shown.json)) == ("in_progress", "Hel")
    assert [item["status"] for item in shown.json["output"]] == ["completed", "in_progress"]
