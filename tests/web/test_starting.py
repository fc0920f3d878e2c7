"""`POST /v1/streams`: requests that start a stream or join one, and their responses."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.request import Deadlines, Message, Request, Sampling

BODY = {"input": "Why?"}
SSE = "text/event-stream"


@pytest.mark.parametrize(
    "accept",
    [
        SSE,
        "Text/Event-Stream",
        "text/event-stream; charset=utf-8",
        "text/event-stream;q=0.1",
        "application/json, text/event-stream;q=0.5, */*",
    ],
)
async def test_an_accept_that_names_the_event_stream_gets_one_from_record_1(
    open_api, accept, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        answer = await api.post(body=BODY, Accept=accept)
        assert answer.status == 200
        assert answer.header("content-type") == f"{SSE}; charset=utf-8"
        assert answer.header("location") == f"/v1/streams/{answer.stream_id}"
        assert answer.header("crucible-stream") == answer.events[0]["stream"]
        assert not answer.has_header("crucible-replayed")
        assert answer.types == ["stream.created", "output.delta", "stream.completed"]


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/*", "application/json", "text/event-stream;q=0", "text/event-stream;q=0.0, */*", ";,;"]
)
async def test_any_other_accept_gets_json_and_the_engine_runs_immediately(
    open_api, accept, autojump_clock: MockClock
) -> None:
    async with open_api(trio.Event()) as api:
        headers = {"Accept": accept} if accept else {}
        answer = await api.post(body={"input": "Why?", "mode": "deep", "model": "other"}, **headers)
        await wait_all_tasks_blocked()
        assert answer.status == 201
        assert "engine called" in api.journal
        body = answer.json
        assert answer.header("location") == f"/v1/streams/{body['id']}"
        assert answer.header("cache-control") == "no-store"
        assert body == {
            "id": body["id"],
            "status": "running",
            "mode": "deep",
            "model": "other",
            "events_url": f"/v1/streams/{body['id']}/events",
            "cancel_url": f"/v1/streams/{body['id']}/cancel",
            "created_at": (await api.pipeline.find(body["id"])).created_at,
        }


async def test_every_field_of_the_body_reaches_the_engine(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a", sampling=["temperature", "top_p", "seed", "stop"])
    async with open_api(engine=engine) as api:
        body = {
            "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            "mode": "deep",
            "model": "other",
            "max_output_tokens": 7,
            "sampling": {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"]},
            "trace": "final",
            "on_disconnect": "cancel",
            "grace_seconds": 5,
            "deadlines": {"first_token_seconds": 1, "idle_seconds": 2.5, "total_seconds": 3},
        }
        assert (await api.stream(body)).status == 200
    assert engine.requests == [
        Request(
            (Message("system", "Be brief."), Message("user", "Why?")),
            mode="deep",
            model="other",
            max_output_tokens=7,
            sampling=Sampling(temperature=0.5, top_p=0.9, seed=1, stop=("x",)),
            trace="final",
            on_disconnect="cancel",
            grace_seconds=5,
            deadlines=Deadlines(first_token_seconds=1, idle_seconds=2.5, total_seconds=3),
        )
    ]


async def test_the_model_is_the_engines_first_unless_named(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        assert (await api.stream()).events[0]["model"] == "scripted"
    assert engine.requests[0].model == "scripted"


@pytest.mark.parametrize(
    ("accept", "mode", "policy"),
    [
        ("*/*", "standard", "continue"),
        ("*/*", "deep", "continue"),
        (SSE, "standard", "pause"),
        (SSE, "deep", "continue"),
    ],
)
async def test_the_default_policy_depends_on_how_the_stream_was_started(
    open_api, accept, mode, policy, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        answer = await api.post(body={"input": "Why?", "mode": mode}, Accept=accept)
        assert (await api.pipeline.find(answer.stream_id)).on_disconnect == policy
        answer = await api.post(body={"input": "Why?", "mode": mode, "on_disconnect": "cancel"}, Accept=accept)
        assert (await api.pipeline.find(answer.stream_id)).on_disconnect == "cancel"


# Idempotency keys


async def test_the_same_key_and_body_join_the_stream_over_sse(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a", over := trio.Event())
    async with open_api(engine=engine) as api, api.open_stream(BODY, Idempotency_Key="k") as first:
        await first.until_event(2)
        async with api.open_stream(BODY, Idempotency_Key="k") as second:
            await second.until_event(2)
            over.set()
            await second.until(lambda exchange: exchange.ended)
            await first.until(lambda exchange: exchange.ended)
        third = await api.stream(BODY, Idempotency_Key="k")
        assert first.body == second.body == third.body
        assert not first.has_header("crucible-replayed")
        assert second.header("crucible-replayed") == third.header("crucible-replayed") == "true"
        assert second.header("location") == first.header("location")
    assert len(engine.requests) == 1


async def test_the_same_key_and_body_get_200_in_json(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        first = await api.post(body=BODY, Idempotency_Key="k")
        # The parsed bodies are equal, the bytes are not.
        second = await api.post(
            body=b' {"mode":"standard", "input":"Why?"} ', Idempotency_Key="k", Content_Type="application/json"
        )
        assert (first.status, second.status) == (201, 200)
        assert second.stream_id == first.stream_id
        assert second.header("location") == first.header("location")
        assert second.header("crucible-replayed") == "true"
        assert not first.has_header("crucible-replayed")
    assert len(engine.requests) == 1


async def test_concurrent_requests_with_one_key_start_one_stream(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        answers = []

        async def post(accept: str) -> None:
            answers.append(await api.post(body=BODY, Idempotency_Key="k", Accept=accept))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(post, SSE)
                nursery.start_soon(post, "*/*")
        assert len({answer.stream_id for answer in answers}) == 1
        assert sum(not answer.has_header("crucible-replayed") for answer in answers) == 1
    assert len(engine.requests) == 1


async def test_a_key_used_with_another_body_is_a_conflict(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        await api.post(body=BODY, Idempotency_Key="k")
        for accept in ("*/*", SSE):
            answer = await api.post(body={"input": "Why not?"}, Idempotency_Key="k", Accept=accept)
            assert answer.status == 422
            assert answer.error["code"] == "idempotency_conflict"
        assert api.number("requests_refused_total", code="idempotency_conflict") == 2


async def test_two_owners_can_use_the_same_key(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    async with open_api(engine=engine, keys={"alice": "a-key", "bob": "b-key"}) as api:
        one = await api.post(body=BODY, Idempotency_Key="k", Authorization="Bearer a-key")
        two = await api.post(body={"input": "Else?"}, Idempotency_Key="k", Authorization="Bearer b-key")
        assert (one.status, two.status) == (201, 201)
        assert one.stream_id != two.stream_id


async def test_a_key_outlives_its_stream_and_never_starts_a_second(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine, retention_seconds=60) as api:
        await api.stream(BODY, Idempotency_Key="k")
        await trio.sleep(61)
        for accept in ("*/*", SSE):
            answer = await api.post(body=BODY, Idempotency_Key="k", Accept=accept)
            assert answer.status == 410
            assert answer.error["code"] == "stream_expired"
        assert len(engine.requests) == 1
        await trio.sleep(3600)
        assert (await api.stream(BODY, Idempotency_Key="k")).status == 200


async def test_a_refused_start_leaves_its_key_free(open_api, autojump_clock: MockClock) -> None:
    async with open_api(over := trio.Event(), max_streams=1) as api:
        await api.post(body=BODY)
        assert (await api.post(body=BODY, Idempotency_Key="k")).status == 503
        assert (await api.post(body={"input": "Why?", "model": "none"}, Idempotency_Key="k")).status == 400
        over.set()
        await wait_all_tasks_blocked()
        assert (await api.post(body=BODY, Idempotency_Key="k")).status == 201


@pytest.mark.parametrize("key", ["", "a b", " ", "ä", "a\tb", "a\x7f", "k" * 256])
async def test_a_key_must_be_1_to_255_visible_ascii_characters(open_api, key, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.post(body=BODY, Idempotency_Key=key)
        assert answer.status == 400
        assert answer.error["code"] == "invalid_request"
        assert answer.error["param"] == "Idempotency-Key"
        assert (await api.get("/v1/streams")).json == {"data": []}


@pytest.mark.parametrize("key", ["k", "!~", "k" * 255])
async def test_a_key_may_be_any_visible_ascii(open_api, key, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        assert (await api.post(body=BODY, Idempotency_Key=key)).status == 201
        assert (await api.post(body=BODY, Idempotency_Key=key)).status == 200


async def test_the_key_of_a_deleted_stream_neither_finds_nor_starts_one(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        answer = await api.post(body=BODY, Idempotency_Key="k")
        await api.ask("DELETE", f"/v1/streams/{answer.stream_id}")
        assert (await api.post(body=BODY, Idempotency_Key="k")).status == 404
    assert len(engine.requests) == 1


# A start that is refused starts nothing


@pytest.mark.parametrize("query", ["trace=x", "trace=", "trace=Final", "done=x", "done=", "trace=none&done=1"])
@pytest.mark.parametrize("accept", ["*/*", SSE])
async def test_a_start_with_a_bad_query_starts_nothing(
    open_api, scripted, accept, query, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        answer = await api.post(f"/v1/streams?{query}", BODY, Accept=accept, Idempotency_Key="k")
        assert answer.status == 400
        assert answer.error["param"] in {"trace", "done"}
        assert (await api.get("/v1/streams")).json == {"data": []}
        assert (await api.post(body=BODY, Idempotency_Key="k")).status == 201
    assert len(engine.requests) == 1
