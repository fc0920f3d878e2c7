"""How reading and disconnecting clients control the engine: promise 2, backpressure, and clean disconnects."""

from __future__ import annotations

import gc

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.reader import Reader

POLICIES = ("pause", "continue", "cancel")


async def test_record_1_is_sent_before_the_engine_is_called(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        await api.stream()
        assert api.journal[0].startswith("sent retry: 1000\ndata: ")
        assert '"type":"stream.created"' in api.journal[0]
        assert api.journal[1] == "engine called"


@pytest.mark.parametrize("target", ["/v1/streams", "/v1/generate?prompt=Why%3F&idempotency_key=k"])
@pytest.mark.parametrize("view", ["segments", "final", "none"])
async def test_a_body_cut_before_record_1_leaves_the_engine_uncalled_until_the_retry_with_the_same_key(
    open_api, scripted, target, view, autojump_clock: MockClock
) -> None:
    engine = scripted("a")

    def start(allowance: float):
        if target == "/v1/streams":
            body = {"input": "Why?", "trace": view}
            return api.open_stream(body, allowance=allowance, Idempotency_Key="k")
        return api.open("GET", f"{target}&trace={view}", allowance=allowance)

    async with open_api(engine=engine) as api:
        async with start(0) as cut:
            await trio.sleep(100)
            assert cut.status == 200
        await trio.sleep(100)
        assert engine.requests == []
        snapshot = (await api.get(f"/v1/streams/{cut.stream_id}")).json
        assert (snapshot["status"], snapshot["paused"], snapshot["last_seq"]) == ("running", True, 1)
        async with start(9) as retry:
            await retry.until(lambda exchange: exchange.ended)
        assert retry.stream_id == cut.stream_id
        assert retry.types == ["stream.created", "output.delta", "stream.completed"]
    assert len(engine.requests) == 1


@pytest.mark.parametrize("policy", POLICIES)
async def test_grace_ends_a_stream_cut_before_record_1_under_every_policy(
    open_api, scripted, policy, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        body = {"input": "Why?", "on_disconnect": policy, "grace_seconds": 60}
        async with api.open_stream(body, allowance=0) as cut:
            await trio.sleep(1000)  # attached: grace does not run
        await trio.sleep(59)
        assert (await api.get(f"/v1/streams/{cut.stream_id}")).json["status"] == "running"
        await trio.sleep(2)
        snapshot = (await api.get(f"/v1/streams/{cut.stream_id}")).json
        assert (snapshot["status"], snapshot["by"]) == ("cancelled", "disconnect")
    assert engine.requests == []


async def test_resuming_at_record_1_calls_an_engine_that_was_not_called_before(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        async with api.open_stream(allowance=0) as cut:
            await wait_all_tasks_blocked()
        rest = await api.get(f"/v1/streams/{cut.stream_id}/events", Last_Event_Id=f"{cut.stream_id}.1")
        assert rest.types == ["output.delta", "stream.completed"]
    assert len(engine.requests) == 1


@pytest.mark.parametrize("buffer", [1, 4, 64])
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_client_that_does_not_read_holds_the_engine_to_two_buffers_and_one_piece(
    open_api, scripted, policy, buffer, autojump_clock: MockClock
) -> None:
    engine = scripted(*["x"] * 1000)
    async with (
        open_api(engine=engine, buffer_tokens=buffer) as api,
        api.open_stream({"input": "Why?", "on_disconnect": policy}, allowance=1) as reader,
    ):
        await trio.sleep(300)
        held_at = engine.written
        assert 0 < held_at <= 2 * buffer
        # Each message that the client takes gives room for as many pieces again, and no more.
        for _ in range(3):
            reader.allow(1)
            await trio.sleep(300)
            assert held_at < engine.written <= held_at + 2 * buffer + 1
            held_at = engine.written
        reader.allow(1000)
        await reader.until(lambda exchange: exchange.ended)
        assert "".join(event.get("delta", "") for event in reader.events) == "x" * 1000


async def test_the_furthest_reader_gives_room_and_a_slower_one_loses_nothing(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted(*["x"] * 200)
    async with (
        open_api(engine=engine, buffer_tokens=2) as api,
        api.open_stream(allowance=1) as slow,
    ):
        await slow.until_event(1)
        fast = await api.get(f"/v1/streams/{slow.stream_id}/events")
        assert fast.types[-1] == "stream.completed"
        slow.allow(1000)
        await slow.until(lambda exchange: exchange.ended)
        assert slow.body == fast.body


# Disconnects


async def test_a_client_that_leaves_a_silent_stream_is_detached(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", over := trio.Event()) as api:
        async with api.open_stream() as reader:
            await reader.until_event(2)
            await trio.sleep(25)
            assert api.number("readers") == 1
        assert api.number("readers") == 0
        assert not reader.ended
        assert (await api.get(f"/v1/streams/{reader.stream_id}")).json["paused"]
        over.set()


async def test_a_reader_that_has_left_is_freed(open_api, autojump_clock: MockClock) -> None:
    def readers() -> int:
        gc.collect()
        return sum(isinstance(thing, Reader) for thing in gc.get_objects())

    async with open_api("a", trio.Event()) as api:
        before = readers()
        async with api.open_stream() as reader:
            await reader.until_event(2)
            await trio.sleep(15)
            assert readers() == before + 1
        assert readers() == before  # its heartbeat timer keeps no reference either


async def test_a_client_that_leaves_while_a_message_is_sent_is_detached(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api:
        async with api.open_stream(allowance=1):
            await wait_all_tasks_blocked()
            assert api.number("readers") == 1
        assert api.number("readers") == 0


async def test_a_message_that_was_not_taken_is_sent_again_to_the_next_reader(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", 1, "b") as api:
        async with api.open_stream(allowance=1) as cut:
            await trio.sleep(0.5)
            assert cut.types == ["stream.created"]
        rest = await api.get(f"/v1/streams/{cut.stream_id}/events", Last_Event_Id=f"{cut.stream_id}.1")
        assert [event.get("delta") for event in rest.events] == ["a", "b", None]


async def test_a_client_that_leaves_before_its_body_has_begun_holds_nothing(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        async with api.open_stream() as gone:
            gone.disconnect()
        assert gone.messages == []
        await wait_all_tasks_blocked()
        assert api.number("readers") == 0
        assert engine.requests == []


async def test_a_client_that_leaves_while_it_sends_its_request_starts_nothing(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        async with api.open("POST", "/v1/streams", [b'{"input":', 100.0], Content_Type="application/json") as gone:
            await trio.sleep(1)
            gone.disconnect()
            await trio.sleep(200)
            assert gone.status is None
        assert (await api.get("/v1/streams")).json == {"data": []}
    assert engine.requests == []


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_policy_applies_when_the_last_reader_has_left(
    open_api, scripted, policy, autojump_clock: MockClock
) -> None:
    engine = scripted(Reasoning("Hm", 0), *[step for _ in range(100) for step in ("x", 1)])
    async with open_api(engine=engine, buffer_tokens=2) as api:
        async with api.open_stream({"input": "Why?", "on_disconnect": policy}) as reader:
            await reader.until_event(4)
        await trio.sleep(110)
        snapshot = (await api.get(f"/v1/streams/{reader.stream_id}")).json
        if policy == "pause":
            assert (snapshot["status"], snapshot["paused"]) == ("running", True)
            assert engine.written <= 1 + 1 + 2 * 2 + 1
        elif policy == "continue":
            assert (snapshot["status"], snapshot["output"]) == ("completed", "x" * 100)
        else:
            assert (snapshot["status"], snapshot["by"]) == ("cancelled", "disconnect")
            assert engine.live == 0


async def test_readers_and_resumes_are_counted(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api:
        async with api.open_stream() as one, api.open_stream(Last_Event_Id="") as two:
            await one.until_event(2)
            await two.until_event(2)
            assert (api.number("readers"), api.number("resumes_total")) == (2, 0)
            async with api.open_stream(Last_Event_Id=f"{one.stream_id}.2") as three:
                await three.until(lambda exchange: exchange.messages)
                assert (api.number("readers"), api.number("resumes_total")) == (3, 1)
        assert api.number("readers") == 0
