"""A response after its start: resuming, cancelling, retention and ownership."""

from __future__ import annotations

import pytest
import trio
from openai.types.responses import Response
from trio.testing import wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.records import Usage
from crucible_trio.testing import ScriptedEngine

DEEP = (Reasoning("Hm", 0), Reasoning("so", 1), "Hel", "lo", Finish(usage=Usage(3, 9, 4)))
ASK = {"model": "scripted", "input": "Why?"}
LIVE = ASK | {"stream": True}
BACKGROUND = ASK | {"background": True}
PATH = "/v1/responses"


def blocks_in(body: bytes) -> list[bytes]:
    """The complete events of a partial body, without heartbeats."""
    return [block.removeprefix(b":\n") + b"\n\n" for block in body.split(b"\n\n")[:-1]]


async def until_event(exchange: object, count: int) -> None:
    await exchange.until(lambda exchange: exchange.body.count(b"\n\n") >= count)


def text_of(response: dict[str, object]) -> str:
    return Response.model_validate(response).output_text


def text_of_message(response: dict[str, object]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


# Resuming


async def test_every_resume_is_the_tail_of_the_whole_and_the_last_is_empty(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        whole = await api.post(PATH, LIVE)
        blocks = blocks_in(whole.body)
        response_id = whole.events[0]["response"]["id"]
        for number in range(len(blocks)):
            answer = await api.get(f"{PATH}/{response_id}?stream=true&starting_after={number}")
            assert answer.status == 200
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.body == b"".join(blocks[number + 1 :])


@pytest.mark.parametrize(
    "query",
    [
        "stream=true",
        "stream=true&include_obfuscation=false",
        "stream=true&include=reasoning.encrypted_content",
        "stream=true&include[]=reasoning.encrypted_content",
    ],
)
async def test_a_replay_from_the_beginning_is_the_same_bytes(query: str, open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        whole = await api.post(PATH, LIVE)
        response_id = whole.events[0]["response"]["id"]
        assert (await api.get(f"{PATH}/{response_id}?{query}")).body == whole.body


async def test_a_client_that_is_cut_repeatedly_gets_every_event_once(open_api, autojump_clock) -> None:
    letters = [step for letter in "abcdefgh" for step in (letter, 1)]
    async with open_api(*letters) as api:
        response_id = (await api.post(PATH, BACKGROUND)).json["id"]
        seen: list[dict[str, object]] = []
        while not seen or seen[-1]["type"] != "response.completed":
            after = f"&starting_after={len(seen) - 1}" if seen else ""
            async with api.open("GET", f"{PATH}/{response_id}?stream=true{after}") as exchange:
                with trio.move_on_after(1.5):
                    await exchange.until(lambda exchange: exchange.ended)
            seen += exchange.events
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert "".join(event.get("delta", "") for event in seen) == "abcdefgh"
        assert b"".join(blocks_in((await api.get(f"{PATH}/{response_id}?stream=true")).body)).endswith(exchange.body)


async def test_a_resume_at_the_head_waits_for_new_events(open_api, autojump_clock) -> None:
    gate = trio.Event()
    async with open_api("a", gate, "b") as api:
        response_id = (await api.post(PATH, BACKGROUND)).json["id"]
        async with api.open("GET", f"{PATH}/{response_id}?stream=true") as exchange:
            await until_event(exchange, 5)
        async with api.open("GET", f"{PATH}/{response_id}?stream=true&starting_after=4") as exchange:
            await wait_all_tasks_blocked()
            assert (exchange.status, exchange.body) == (200, b"")
            gate.set()
            await exchange.until(lambda exchange: exchange.ended)
    assert exchange.events[0]["delta"] == "b"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("starting_after=3", "starting_after"),
        ("stream=false&starting_after=3", "starting_after"),
        ("stream=true&starting_after=1000", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=", "starting_after"),
        ("stream=true&starting_after=1.5", "starting_after"),
        ("stream=true&starting_after=%D9%A1", "starting_after"),
        (f"stream=true&starting_after={'9' * 5000}", "starting_after"),
        ("stream=yes", "stream"),
        ("stream=true&after=3", "after"),
        ("include=message.more", "include"),
        ("include[]=reasoning.encrypted_content&include[]=reasoning.more", "include"),
    ],
)
async def test_an_invalid_retrieval_query_is_400(query: str, param: str, open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        response_id = (await api.post(PATH, ASK)).json["id"]
        answer = await api.get(f"{PATH}/{response_id}?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)
    assert answer.error["type"] == "invalid_request_error"


async def test_a_head_request_attaches_no_reader(open_api, autojump_clock) -> None:
    async with open_api("a", 100, "b", idle_seconds=1_000) as api:
        response_id = (await api.post(PATH, BACKGROUND)).json["id"]
        answer = await api.ask("HEAD", f"{PATH}/{response_id}?stream=true")
        assert (answer.status, answer.body) == (200, b"")
        assert api.number("readers") == 0


async def test_one_retrieval_too_many_is_refused_before_the_status_line(open_api, autojump_clock) -> None:
    async with open_api("a", 100, "b", idle_seconds=1_000, max_readers_per_stream=1) as api:
        response_id = (await api.post(PATH, BACKGROUND)).json["id"]
        async with api.open("GET", f"{PATH}/{response_id}?stream=true") as exchange:
            await until_event(exchange, 2)
            answer = await api.get(f"{PATH}/{response_id}?stream=true")
            assert (answer.status, answer.error["code"]) == (429, "too_many_readers")
            assert "retry-after" in answer.headers


# Cancelling


async def test_cancel_returns_the_cancelled_response_and_may_be_repeated(open_api, autojump_clock) -> None:
    async with open_api("a", 1_000, "b", idle_seconds=10_000) as api:
        response_id = (await api.post(PATH, BACKGROUND)).json["id"]
        async with api.open("GET", f"{PATH}/{response_id}?stream=true") as exchange:
            await until_event(exchange, 5)
            first = await api.post(f"{PATH}/{response_id}/cancel")
            await exchange.until(lambda exchange: exchange.ended)
        again = await api.post(f"{PATH}/{response_id}/cancel")
    assert (first.status, first.json["status"], text_of_message(first.json)) == (200, "cancelled", "a")
    last = exchange.events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"] == first.json == again.json


async def test_cancelling_a_complete_response_changes_nothing(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        whole = await api.post(PATH, ASK)
        answer = await api.post(f"{PATH}/{whole.json['id']}/cancel")
    assert (answer.status, answer.json) == (200, whole.json)


async def test_a_client_waiting_without_stream_gets_an_http_error_on_cancel(open_api, autojump_clock) -> None:
    async with open_api("a", 1_000, "b", idle_seconds=10_000) as api, api.open("POST", PATH, ASK) as exchange:
        await trio.sleep(10)
        [stream] = await api.pipeline.list()
        await api.post(f"{PATH}/{stream.id.replace('str_', 'resp_')}/cancel")
        await exchange.until(lambda exchange: exchange.ended)
    assert exchange.error["code"]
    assert exchange.headers["x-should-retry"] == "false"


async def test_a_deleted_response_is_stopped_and_gone(open_api, autojump_clock) -> None:
    engine = ScriptedEngine("a", 1_000, "b")
    async with open_api(engine=engine, idle_seconds=10_000) as api:
        response_id = (await api.post(PATH, BACKGROUND)).json["id"]
        await trio.sleep(10)
        answer = await api.ask("DELETE", f"{PATH}/{response_id}")
        assert (answer.status, answer.json) == (200, {"id": response_id, "object": "response", "deleted": True})
        await wait_all_tasks_blocked()
        assert engine.live == 0
        for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
            assert (await api.ask(method, f"{PATH}/{response_id}{path}")).status == 404


# Retention


async def test_a_response_is_kept_for_the_retention(open_api, autojump_clock) -> None:
    async with open_api(*DEEP, retention_seconds=100) as api:
        response_id = (await api.post(PATH, ASK)).json["id"]
        await trio.sleep(99)
        assert (await api.get(f"{PATH}/{response_id}")).status == 200
        await trio.sleep(2)
        answer = await api.get(f"{PATH}/{response_id}?stream=true")
        assert (answer.status, answer.error["code"]) == (410, "stream_expired")
        await trio.sleep(4_000)
        assert (await api.get(f"{PATH}/{response_id}")).status == 404


@pytest.mark.parametrize("ask", [ASK, LIVE])
async def test_an_unstored_response_is_forgotten_at_its_end(ask: dict[str, object], open_api, autojump_clock) -> None:
    async with open_api("a", 10, "b") as api:
        async with api.open("POST", PATH, ask | {"store": False}) as exchange:
            await trio.sleep(5)
            [stream] = await api.pipeline.list()
            response_id = stream.id.replace("str_", "resp_")
            for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
                assert (await api.ask(method, f"{PATH}/{response_id}{path}")).status == 404
            await exchange.until(lambda exchange: exchange.ended)
        response = exchange.json if ask == ASK else exchange.events[-1]["response"]
        assert (text_of(response), response["store"]) == ("ab", False)
        await wait_all_tasks_blocked()
        assert await api.pipeline.list() == []
        assert (await api.get(exchange.headers["location"])).status == 404
        assert api.number("log_bytes") == 0


@pytest.mark.parametrize("ask", [ASK, LIVE])
async def test_an_unstored_response_is_forgotten_when_its_client_leaves(
    ask: dict[str, object], open_api, autojump_clock
) -> None:
    async with open_api("a", 10, "b") as api:
        async with api.open("POST", PATH, ask | {"store": False}):
            await trio.sleep(5)
        await wait_all_tasks_blocked()
        assert await api.pipeline.list() == []
        assert api.number("log_bytes") == 0


async def test_an_unstored_response_is_found_only_by_a_retry_with_its_key(open_api, autojump_clock) -> None:
    async with open_api(*DEEP) as api:
        first = await api.post(PATH, LIVE | {"store": False}, Idempotency_Key="k")
        again = await api.post(PATH, LIVE | {"store": False}, Idempotency_Key="k")
        assert first.body == again.body
        response_id = first.events[0]["response"]["id"]
        assert (await api.get(f"{PATH}/{response_id}")).status == 404


# Ownership


async def test_only_its_owner_finds_a_response(open_api, autojump_clock) -> None:
    alice, bob = {"Authorization": "Bearer key-a"}, {"Authorization": "Bearer key-b"}
    async with open_api("a", 1_000, "b", keys={"alice": "key-a", "bob": "key-b"}, idle_seconds=10_000) as api:
        response_id = (await api.post(PATH, BACKGROUND, **alice)).json["id"]
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")):
            foreign = await api.ask(method, f"{PATH}/{response_id}{path}", **bob)
            unknown = await api.ask(method, f"{PATH}/resp_{'x' * 22}{path}", **bob)
            assert (foreign.status, foreign.json) == (404, unknown.json)
            anonymous = await api.ask(method, f"{PATH}/{response_id}{path}")
            assert (anonymous.status, anonymous.error["code"]) == (401, "invalid_api_key")
        assert (await api.get(f"{PATH}/{response_id}", **alice)).json["status"] == "in_progress"


@pytest.mark.parametrize("response_id", ["x", "str_" + "x" * 22, "resp_" + "x" * 22, "resp_" + "x" * 23, "resp_%00"])
async def test_an_unknown_id_is_404(response_id: str, open_api, autojump_clock) -> None:
    async with open_api() as api:
        for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel"), ("DELETE", "")):
            answer = await api.ask(method, f"{PATH}/{response_id}{path}")
            assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{PATH}/resp_{'x' * 22}/input_items", 404),
        ("GET", PATH, 405),
        ("PUT", f"{PATH}/resp_{'x' * 22}", 405),
    ],
)
async def test_an_unknown_route_or_method_is_refused_in_openais_format(
    method: str, path: str, status: int, open_api, autojump_clock
) -> None:
    async with open_api() as api:
        answer = await api.ask(method, path)
    assert answer.status == status
    assert answer.error
