"""The routes of the Messages API, in process and on virtual time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio import sse
from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, Finish
from crucible_trio.engines.upstream import open_upstream
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Request
from crucible_trio.testing import CallTool, Gate, ScriptedEngine
from tests.openai.upstream_cases import open_scripted_upstream, response

Json = dict[str, Any]

PATH = "/v1/messages"
ASK: Json = {"model": "scripted", "max_tokens": 100, "messages": [{"role": "user", "content": "Why?"}]}
STREAM: Json = ASK | {"stream": True, "thinking": {"type": "adaptive"}}
STEPS: list[Any] = [Reasoning("Hm.", 0), "Be", "cause.", Finish(usage=Usage(3, 9, 4))]
KEYS = {"alice": "alice-key", "bob": "bob-key"}
BUSY = EngineError("upstream_refused", "Busy.", retryable=True, status=429, retry_after=29.5)


class WaitingEngine:
    """An engine that waits for an upstream. A script: the steps before the upstream accepts, and those after it."""

    def __init__(self, *scripts: tuple[Any, Any]) -> None:
        self._scripts = list(scripts)
        self.info = replace(ScriptedEngine().info, waits_for_upstream=True)
        self.calls = 0

    async def generate(self, request: Request, output: Output) -> Finish:
        self.calls += 1
        before, after = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        await ScriptedEngine(before).generate(request, output)
        output.accepted()
        return await ScriptedEngine(after).generate(request, output)


def events_in(body: bytes) -> list[sse.ServerSentEvent]:
    return sse.Decoder().feed(body)


def types_in(body: bytes) -> list[str]:
    events = events_in(body)
    assert all(json.loads(event.data or "")["type"] == event.event for event in events)
    return [event.event for event in events]


def error_in(answer: Any) -> Json:
    """The error of a refused request. Checks its shape."""
    assert set(answer.json) == {"type", "error"}
    assert answer.json["type"] == "error"
    assert ("retry-after" in answer.headers) != (answer.headers.get("x-should-retry") == "false")
    return answer.json["error"]


async def test_a_stream_and_a_whole_message_have_the_same_content(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        streamed = await api.post(PATH, STREAM)
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert types_in(streamed.body)[0] == "message_start"
        assert types_in(streamed.body)[-2:] == ["message_delta", "message_stop"]
        whole = (await api.post(PATH, ASK | {"thinking": {"type": "adaptive"}})).json
        assert [block["type"] for block in whole["content"]] == ["thinking", "text"]
        assert (whole["content"][0]["thinking"], whole["content"][1]["text"]) == ("Hm.", "Because.")
        assert whole["stop_reason"] == "end_turn"
        assert whole["usage"] == {
            "input_tokens": 3,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 4},
        }


@pytest.mark.parametrize(
    ("named", "expected"), [("END", ("stop_sequence", "END")), ("<|eot|>", ("end_turn", None)), (7, ("end_turn", None))]
)
async def test_the_stop_sequence_is_the_one_that_an_upstream_names(
    named: object, expected: tuple[str, str | None], open_api: Callable
) -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": "Because."}, "stop_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": named}]},
    ]
    body = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    async with (
        open_scripted_upstream(response(200, body)) as upstream,
        open_upstream(upstream.url, model="m") as engine,
        open_api(engine=engine) as api,
    ):
        asked = ASK | {"model": "m", "stop_sequences": ["\n", "END"]}
        whole = (await api.post(PATH, asked)).json
        streamed = await api.post(PATH, asked | {"stream": True})
    assert (whole["stop_reason"], whole["stop_sequence"]) == expected
    delta = json.loads(events_in(streamed.body)[-2].data or "")["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected
    assert [block["text"] for block in whole["content"]] == ["Because."]


async def test_every_answer_names_the_stream(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        for body in (ASK, STREAM):
            answer = await api.post(PATH, body)
            stream_id = answer.headers["crucible-stream"]
            assert answer.headers["location"] == f"/v1/streams/{stream_id}"
            assert answer.headers["request-id"] == stream_id.replace("str_", "msg_")
            assert (await api.get(answer.headers["location"])).json["output"] == "Because."


@pytest.mark.parametrize("way", ["post", "get"])
async def test_a_client_resumes_after_any_event_by_its_id(
    way: str, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        whole = (await api.post(PATH, STREAM)).body
        ids = [event.id for event in events_in(whole)]
        message = str(ids[0]).rpartition(".")[0]
        blocks = [block + b"\n\n" for block in whole.split(b"\n\n")[:-1]]
        for number, event_id in enumerate(ids[:-1]):
            headers = {"Last_Event_Id": str(event_id)}
            if way == "post":
                answer = await api.post(PATH, b"not read", **headers)
            else:
                answer = await api.get(f"{PATH}/{message}/events", **headers)
            assert answer.body == b"".join(blocks[number + 1 :])
        assert len(api.engine.requests) == 1
        if way == "get":
            assert (await api.get(f"{PATH}/{message}/events")).body == whole
            assert (await api.get(f"{PATH}/{message}/events", Last_Event_Id=str(ids[-1]))).status == 204
            head = await api.ask("HEAD", f"{PATH}/{message}/events")
            assert (head.status, head.body) == (200, b"")
        else:  # the SDKs raise for 204
            assert (await api.post(PATH, b"", Last_Event_Id=str(ids[-1]))).body == blocks[-1]


async def test_a_client_whose_connection_was_cut_goes_on_while_the_stream_waits(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    gate = Gate()
    async with open_api(*STEPS[:2], gate, *STEPS[2:]) as api:
        async with api.open("POST", PATH, STREAM) as cut:
            await cut.until_sent(b'"Be"')
        await trio.sleep(60)
        [stream] = await api.pipeline.list()
        assert stream.status == "running"
        last_id = events_in(cut.body)[-1].id
        async with api.open("POST", PATH, STREAM, Last_Event_Id=last_id) as rest:
            await wait_all_tasks_blocked()
            gate.open()
            await rest.until(lambda rest: rest.ended)
        assert [event.event for event in events_in(cut.body + rest.body)][-1] == "message_stop"


@pytest.mark.parametrize(("policy", "status"), [("pause", "running"), ("cancel", "cancelled"), ("continue", "running")])
async def test_the_operator_decides_what_a_stream_does_while_its_client_is_away(
    policy: str, status: str, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api("a", trio.Event(), messages_on_disconnect=policy) as api:
        async with api.open("POST", PATH, STREAM) as exchange:
            await exchange.until_sent(b'"a"')
        await trio.sleep(1)
        [stream] = await api.pipeline.list()
        assert (stream.status, stream.on_disconnect) == (status, policy)


async def test_a_whole_message_whose_client_leaves_is_cancelled(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api:
        async with api.open("POST", PATH, ASK):
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert [stream.status for stream in await api.pipeline.list()] == ["cancelled"]


@pytest.mark.parametrize(
    ("event_id", "status", "kind"),
    [
        ("{stream}.1", 400, "invalid_request_error"),
        ("{message}", 400, "invalid_request_error"),
        ("{message}.x", 400, "invalid_request_error"),
        ("{message}.99", 400, "invalid_request_error"),
        ("msg_0000000000000000000000.1", 404, "not_found_error"),
    ],
)
async def test_an_id_that_leads_nowhere_is_refused(
    event_id: str, status: int, kind: str, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        stream = (await api.post(PATH, STREAM)).headers["crucible-stream"]
        message = stream.replace("str_", "msg_")
        headers = {"Last_Event_Id": event_id.format(stream=stream, message=message)}
        answer = await api.post(PATH, STREAM, **headers)
        assert (answer.status, error_in(answer)["type"]) == (status, kind)
        answer = await api.get(f"{PATH}/{message}/events", **headers)
        assert answer.status == (400 if status == 404 else status)  # the id of another message
        assert len(api.engine.requests) == 1


async def test_an_id_of_this_api_is_refused_on_the_native_routes(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        stream = (await api.post(PATH, STREAM)).headers["crucible-stream"]
        headers = {"Last_Event_Id": f"{stream.replace('str_', 'msg_')}.1"}
        assert (await api.get(f"/v1/streams/{stream}/events", **headers)).status == 400
        assert (await api.post("/v1/streams", {"input": "Why?"}, **headers)).status == 400


async def test_only_the_owner_of_a_message_resumes_it(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS, keys=KEYS) as api:
        started = await api.post(PATH, STREAM, X_Api_Key="alice-key")
        message = started.headers["crucible-stream"].replace("str_", "msg_")
        for path in (f"{PATH}/{message}/events", f"{PATH}/msg_0000000000000000000000/events"):
            answer = await api.get(path, X_Api_Key="bob-key")
            assert (answer.status, error_in(answer)["type"]) == (404, "not_found_error")
        answer = await api.post(PATH, STREAM, X_Api_Key="bob-key", Last_Event_Id=f"{message}.1")
        assert answer.status == 404


@pytest.mark.parametrize(
    ("headers", "is_accepted"),
    [
        ({"X_Api_Key": "alice-key"}, True),
        ({"Authorization": "Bearer alice-key"}, True),
        ({"Authorization": "Bearer alice-key", "X_Api_Key": "wrong"}, True),
        ({"Authorization": "Bearer wrong", "X_Api_Key": "alice-key"}, True),
        ({"Authorization": "Basic alice-key"}, False),
        ({"Authorization": "Bearer wrong", "X_Api_Key": "wrong"}, False),
        ({"X_Api_Key": ""}, False),
        ({}, False),
    ],
)
async def test_a_key_comes_in_either_header(
    headers: dict[str, str], is_accepted: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS, keys=KEYS) as api:
        answer = await api.post(PATH, ASK, **headers)
        assert answer.status == (200 if is_accepted else 401)
        if not is_accepted:
            assert error_in(answer)["type"] == "authentication_error"


async def test_pings_come_from_before_the_first_token_and_have_no_place_in_the_log(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(25, *STEPS) as api:
        live = await api.post(PATH, STREAM)
        assert types_in(live.body)[:4] == ["message_start", "ping", "ping", "content_block_start"]
        pings = [time for message, time in zip(live.messages, live.times, strict=True) if b"ping" in message]
        assert pings == [10, 20]
        message = live.headers["crucible-stream"].replace("str_", "msg_")
        replay = (await api.get(f"{PATH}/{message}/events")).body
        assert replay == live.body.replace(b'event: ping\ndata: {"type":"ping"}\n\n', b"")


async def test_no_ping_hides_a_model_that_has_stalled(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event(), idle_seconds=35) as api:
        answer = await api.post(PATH, STREAM)
        *_, p1, p2, p3, error = types_in(answer.body)
        assert (p1, p2, p3, error) == ("ping", "ping", "ping", "error")
        assert json.loads(events_in(answer.body)[-1].data or "")["error"]["type"] == "timeout_error"
        assert answer.times[-1] == 35
        assert (answer.ended, answer.broken) == (True, False)


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry_after"),
    [
        (EngineError("engine_error", "Oh."), 500, "api_error", None),
        (EngineError("prompt_too_long", "Oh."), 400, "invalid_request_error", None),
        (EngineError("upstream_rejected", "Oh.", status=413), 413, "request_too_large", None),
        (EngineError("upstream_rejected", "Oh.", status=404), 404, "not_found_error", None),
        (EngineError("upstream_rejected", "Oh.", status=422), 400, "invalid_request_error", None),
        (EngineError("upstream_unauthorized", "Oh.", status=401), 401, "authentication_error", None),
        (BUSY, 429, "rate_limit_error", "30"),
        (EngineError("upstream_refused", "Oh.", retryable=True, status=503), 529, "overloaded_error", "5"),
        (EngineError("upstream_error", "Oh.", retryable=True, status=500), 529, "overloaded_error", "5"),
        (EngineError("upstream_unreachable", "Oh.", retryable=True), 529, "overloaded_error", "5"),
        (EngineError("upstream_error", "Oh.", retryable=True, status=408), 400, "invalid_request_error", None),
    ],
)
@pytest.mark.parametrize("body", [ASK, STREAM], ids=["whole", "stream"])
async def test_a_refusal_before_the_status_line_is_a_status_of_anthropics(
    error: EngineError,
    status: int,
    kind: str,
    retry_after: str | None,
    body: Json,
    open_api: Callable,
    autojump_clock: MockClock,
) -> None:
    async with open_api(engine=WaitingEngine(([1, error], []))) as api:
        answer = await api.post(PATH, body)
        assert (answer.status, error_in(answer)["type"]) == (status, kind)
        assert error_in(answer)["code"] == error.code
        assert answer.headers.get("retry-after") == retry_after
        assert await api.pipeline.list() == []


async def test_a_late_failure_is_an_event_and_the_body_ends(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api(engine=WaitingEngine(([5, BUSY], []))) as api:
        answer = await api.post(PATH, STREAM)
        assert answer.status == 200
        assert types_in(answer.body) == ["message_start", "error"]
        assert json.loads(events_in(answer.body)[-1].data or "")["error"]["type"] == "rate_limit_error"
        assert (answer.ended, answer.broken) == (True, False)


@pytest.mark.parametrize(("stalls", "status"), [({"first_token_seconds": 5}, 504), ({"total_seconds": 5}, 504)])
async def test_a_deadline_of_a_whole_message_is_504_and_no_client_repeats_it(
    stalls: Json, status: int, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(trio.Event(), **stalls) as api:
        answer = await api.post(PATH, ASK)
        assert (answer.status, error_in(answer)["type"]) == (status, "timeout_error")
        assert answer.headers["x-should-retry"] == "false"


async def test_a_repeat_with_a_key_joins_and_finds_the_same_failure(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api("a", BUSY) as api:
        for replayed in (None, "true"):
            answer = await api.post(PATH, ASK, Idempotency_Key="key")
            assert (answer.status, error_in(answer)["type"]) == (500, "api_error")
            assert answer.headers.get("crucible-replayed") == replayed
            assert answer.headers["request-id"].startswith("msg_")


async def test_limits_and_a_drain_are_told_as_overload(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api(trio.Event(), max_streams=1) as api, api.open("POST", PATH, ASK):
        await wait_all_tasks_blocked()
        answer = await api.post(PATH, ASK)
        assert (answer.status, error_in(answer)) == (
            529,
            {"type": "overloaded_error", "message": error_in(answer)["message"], "code": "overloaded"},
        )
        assert answer.headers["retry-after"] == "5"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(api.pipeline.drain)
            await wait_all_tasks_blocked()
            answer = await api.post(PATH, ASK)
            assert (answer.status, error_in(answer)["code"]) == (529, "draining")


async def test_one_stream_is_read_on_every_wire_at_the_same_time(open_api: Callable, autojump_clock: MockClock) -> None:
    steps = [Reasoning("Hm.", 0), "Text.", 1, CallTool("now", ['{"a":', "1}"]), Finish("tool_calls")]
    async with open_api(engine=ScriptedEngine(*steps, capabilities=Capabilities(tools=True))) as api:
        stream = await api.start()
        message = stream.replace("str_", "msg_")
        tasks: dict[str, Any] = {}

        async def read(path: str) -> None:
            tasks[path] = await api.get(path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, f"/v1/streams/{stream}/events")
            nursery.start_soon(read, f"{PATH}/{message}/events")
            nursery.start_soon(read, f"{PATH}/{message}/events")
        live = tasks[f"{PATH}/{message}/events"].body
        assert b'"partial_json":"{\\"a\\":1}"' in live
        assert b'"thinking":"Hm."' in live
        assert (await api.get(f"{PATH}/{message}/events")).body == live
        # And the other way round.
        async with api.open("POST", PATH, STREAM) as answer, trio.open_nursery() as nursery:
            await answer.until_sent(b'"Text."')
            stream = answer.headers["crucible-stream"]
            response = f"/v1/responses/{stream.replace('str_', 'resp_')}?stream=true"
            nursery.start_soon(read, f"/v1/streams/{stream}/events")
            nursery.start_soon(read, response)
            await answer.until(lambda answer: answer.ended)
        native = tasks[f"/v1/streams/{stream}/events"].body
        assert b'"tool_call.done"' in native
        assert (await api.get(f"/v1/streams/{stream}/events")).body == native
        assert b"response.function_call_arguments.done" in tasks[response].body
        assert b'"partial_json":"{\\"a\\":1}"' in answer.body


async def test_models_are_listed_in_anthropics_form_if_its_clients_ask(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api("a", openai_models={"claude-opus": "other:deep"}) as api:
        headers = {"Anthropic_Version": "2023-06-01"}
        listed = (await api.get("/v1/models?limit=1000", **headers)).json
        assert [model["id"] for model in listed["data"]] == ["scripted", "other", "claude-opus"]
        assert listed["has_more"] is False
        assert (listed["first_id"], listed["last_id"]) == ("scripted", "claude-opus")
        assert (await api.get("/v1/models/claude-opus", **headers)).json == listed["data"][2]
        lost = await api.get("/v1/models/lost", **headers)
        assert (lost.status, error_in(lost)["type"]) == (404, "not_found_error")
        assert "object" in (await api.get("/v1/models")).json


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/scripted"])
async def test_a_wrong_key_is_refused_in_anthropics_form_if_its_clients_list_models(
    path: str, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api("a", keys=KEYS) as api:
        wrong = await api.get(path, Anthropic_Version="2023-06-01", X_Api_Key="wrong")
        assert (wrong.status, error_in(wrong)["type"]) == (401, "authentication_error")
        assert api.pipeline.metrics.refused == {"unauthorized": 1}
        usual = await api.get(path, Authorization="Bearer wrong")
        assert usual.status == 401
        assert set(usual.json) == {"error"}
        right = await api.get(path, Anthropic_Version="2023-06-01", X_Api_Key="alice-key")
        assert right.status == 200


async def test_tokens_cannot_be_counted_before_a_generation(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        answer = await api.post(f"{PATH}/count_tokens?beta=true", ASK, X_Api_Key="alice-key")
        assert (answer.status, error_in(answer)["type"]) == (404, "not_found_error")
        assert (await api.post(f"{PATH}/count_tokens", ASK)).status == 401


async def test_other_paths_and_methods_are_refused_in_anthropics_form(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        assert (await api.ask("HEAD", "/")).status == 200
        for method, path, status in (("GET", PATH, 405), ("GET", f"{PATH}/batches", 404), ("POST", f"{PATH}?x=1", 400)):
            answer = await api.ask(method, path)
            assert (answer.status, answer.json["type"]) == (status, "error")


async def test_a_reader_too_many_is_429(open_api: Callable, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event(), max_readers_per_stream=1) as api, api.open("POST", PATH, STREAM) as first:
        await first.until_sent(b'"a"')
        answer = await api.post(
            PATH, b"", Last_Event_Id=f"{first.headers['crucible-stream'].replace('str_', 'msg_')}.0"
        )
        assert (answer.status, error_in(answer)["type"]) == (429, "rate_limit_error")
