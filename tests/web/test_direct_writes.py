"""Direct writes change neither the bytes that a client receives nor anything outside the response body."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning

EVENTS = "text/event-stream"


async def test_a_piece_for_a_client_that_keeps_up_is_written_in_the_engines_call(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    async with (
        open_api(1.0, "a", 1.0, Reasoning("b"), "c", 1.0, "d") as api,
        api.open("POST", "/v1/streams", {"input": "q"}, offers_direct_writes=True, Accept=EVENTS) as exchange,
    ):
        await exchange.until(lambda exchange: exchange.ended)
        assert exchange.types == [
            "stream.created",
            "output.delta",
            "reasoning.delta",
            "reasoning.done",
            "output.delta",
            "output.delta",
            "stream.completed",
        ]
        assert b"".join(exchange.direct).count(b"\n\n") >= 4
        assert api.pipeline.batcher.direct_writes == len(exchange.direct)
        assert api.pipeline.batcher.recorded_now >= 3


async def test_the_rest_of_a_partial_write_is_sent_before_anything_else(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    letters = [step for letter in "abcdefghij" for step in (1.0, letter)]
    async with (
        open_api(*letters, buffer_tokens=2) as api,
        api.open(
            "POST", "/v1/streams", {"input": "q"}, allowance=1, offers_direct_writes=True, Accept=EVENTS
        ) as exchange,
    ):
        for _ in range(40):
            await trio.sleep(1.3)
            exchange.allow(1)
        await exchange.until(lambda exchange: exchange.ended)
        assert "".join(str(event.get("delta", "")) for event in exchange.events) == "abcdefghij"
        assert any(not message.endswith(b"\n\n") for message in exchange.messages), "every write was complete"


async def test_the_cursor_waits_for_what_is_held(
    open_api: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(1.0, "a", 1.0, "b", 1.0, *"cdefghijkl")
    async with (
        open_api(engine=engine, buffer_tokens=2) as api,
        api.open(
            "POST", "/v1/streams", {"input": "q"}, allowance=2, offers_direct_writes=True, Accept=EVENTS
        ) as exchange,
    ):
        await wait_all_tasks_blocked()
        [stream] = await api.pipeline.list()
        await exchange.until(lambda exchange: len(exchange.messages) == 3)  # record 1, a, half of b
        await wait_all_tasks_blocked(0.01)
        assert stream.log.ever_read == 2
        assert engine.written <= 2 + 2 + 1
        exchange.allow(1)
        await wait_all_tasks_blocked(0.01)
        assert stream.log.ever_read >= 3
        exchange.allow(99)
        await exchange.until(lambda exchange: exchange.ended)
        assert "".join(str(event.get("delta", "")) for event in exchange.events) == "abcdefghijkl"


@pytest.mark.parametrize("trace", ["final", "none"])
async def test_records_that_a_dialect_omits_need_no_write(
    trace: str, open_api: Callable, autojump_clock: MockClock
) -> None:
    trace_steps = [step for _ in range(9) for step in (Reasoning("b"), 1.0)]
    async with (
        open_api(1.0, *trace_steps, "c", 1.0, "d", buffer_tokens=1) as api,
        api.open(
            "POST", f"/v1/streams?trace={trace}", {"input": "q"}, offers_direct_writes=True, Accept=EVENTS
        ) as exchange,
    ):
        await exchange.until(lambda exchange: exchange.ended)
        expected = ["stream.created", "reasoning.done", "output.delta", "output.delta", "stream.completed"]
        assert exchange.types == [name for name in expected if trace == "final" or name != "reasoning.done"]


async def test_a_frame_that_is_too_large_for_one_message_is_not_written_directly(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    trace_steps = [step for _ in range(5) for step in (Reasoning("b" * 9000), 1.0)]
    async with (
        open_api(1.0, *trace_steps, "c") as api,
        api.open(
            "POST", "/v1/streams?trace=final", {"input": "q"}, offers_direct_writes=True, Accept=EVENTS
        ) as exchange,
    ):
        await exchange.until(lambda exchange: exchange.ended)
        assert exchange.events[1]["trace"] == ["b" * 45_000]
        assert max(map(len, exchange.direct), default=0) <= 16 * 1024


async def test_a_direct_write_delays_the_next_heartbeat(open_api: Callable, autojump_clock: MockClock) -> None:
    async with (
        open_api(6.0, "a", 6.0, "b", 6.0, "c", 11.0) as api,
        api.open("POST", "/v1/streams", {"input": "q"}, offers_direct_writes=True, Accept=EVENTS) as exchange,
    ):
        await exchange.until(lambda exchange: exchange.ended)
        assert exchange.body.count(b"\n:\n") == 1
        [at] = [time for time, message in zip(exchange.times, exchange.messages, strict=True) if message == b":\n"]
        assert at - exchange.times[0] == pytest.approx(28.0)


async def test_heartbeats_are_written_directly_and_repeat(open_api: Callable, autojump_clock: MockClock) -> None:
    async with (
        open_api(35.0, "a", 5.0, "b") as api,
        api.open("POST", "/v1/streams", {"input": "q"}, offers_direct_writes=True, Accept=EVENTS) as exchange,
    ):
        await exchange.until(lambda exchange: exchange.ended)
        beats = [time for time, message in zip(exchange.times, exchange.messages, strict=True) if message == b":\n"]
        assert beats == [pytest.approx(exchange.times[0] + seconds) for seconds in (10, 20, 30)]
        assert exchange.direct.count(b":\n") == 3


@pytest.mark.parametrize("size", [10, 45_000])
@pytest.mark.parametrize("is_direct", [True, False])
async def test_a_keep_alive_of_any_size_is_sent_in_messages_of_16_kib(
    open_api: Callable, size: int, is_direct: bool, autojump_clock: MockClock
) -> None:
    asked = {"input": "q", "stream": True, "instructions": "x" * size}  # the keep-alive repeats them
    async with (
        open_api("a", 25.0, "b") as api,
        api.open("POST", "/v1/responses", asked, offers_direct_writes=is_direct) as exchange,
    ):
        await exchange.until(lambda exchange: exchange.ended)
        assert exchange.body.count(b"event: response.in_progress\n") == 3
        assert exchange.body.count(b"x" * size) == 5
        assert max(map(len, exchange.messages)) <= 16 * 1024
        assert is_direct or not exchange.direct
        assert any(b"response.in_progress" in message for message in exchange.direct) == (is_direct and size == 10)


async def test_an_error_of_the_body_does_not_reach_the_engine(
    open_api: Callable, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crucible_trio.apis.native import fold

    class Broken(fold.SegmentsDialect):
        def feed(self, frames: list[bytes]) -> bytes:
            if any(b'"b"' in frame for frame in frames):
                raise RuntimeError("our own bug")
            return b"".join(frames)

    async def open_broken(*_: object, **__: object) -> Broken:
        return Broken(0, 1000)

    monkeypatch.setattr(fold, "open_dialect", open_broken)
    async with open_api(1.0, "a", 1.0, "b", 1.0, "c") as api:
        with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
            async with api.open(
                "POST",
                "/v1/streams",
                {"input": "q", "on_disconnect": "continue"},
                offers_direct_writes=True,
                Accept=EVENTS,
            ) as exchange:
                await exchange.until_event(9)
        await trio.sleep(9)
        [stream] = await api.pipeline.list()
        assert len(exchange.direct) == 1
        assert stream.snapshot().output == "abc"
        assert stream.status == "completed"
