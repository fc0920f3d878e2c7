"""Streams without a reader: the disconnect policies, grace, and streams that wait for their first reader."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import StreamCancelled
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.stream import Stream

POLICIES: list[OnDisconnect] = ["pause", "continue", "cancel"]
TICKS = [step for number in range(1000) for step in (f"{number} ", 1.0)]


async def start_with_reader(pipeline: Pipeline, policy: OnDisconnect = "pause") -> Stream:
    stream, joined = await pipeline.start_or_join(
        Request("q"), None, owner="", on_disconnect=policy, starts_with_reader=True
    )
    assert not joined
    return stream


def assert_cancelled_by_disconnect(stream: Stream, after_seconds: float) -> None:
    terminal = stream.terminal
    assert isinstance(terminal, StreamCancelled)
    assert terminal.by == "disconnect"
    assert terminal.timings.total_ms == pytest.approx(after_seconds * 1000)


# The policies


async def test_pause_holds_the_engine_until_a_reader_comes_back(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*TICKS)
    async with open_pipeline(engine, Settings(buffer_tokens=2, grace_seconds=60)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="pause")
        async with stream.attach() as reader:
            for _ in range(5):
                await anext(reader)
            assert not stream.paused
        await trio.sleep(50)
        assert stream.paused
        assert stream.snapshot().paused
        held = len(engine.made)
        assert held <= 5 + 2 * 2 + 1
        async with stream.attach(after=5) as reader:
            assert not stream.paused
            for _ in range(20):
                await anext(reader)
        assert len(engine.made) > held
        assert engine.calls == 1


async def test_continue_runs_to_the_end_and_ignores_grace(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*TICKS)
    async with open_pipeline(engine, Settings(grace_seconds=1)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        async with stream.attach() as reader:
            await anext(reader)
        assert not stream.paused
        await trio.sleep(1001)
        assert stream.status == "completed"
        assert stream.snapshot().output == "".join(step for step in TICKS if isinstance(step, str))


async def test_cancel_stops_the_engine_when_the_last_reader_has_left(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*TICKS)
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="cancel")
        async with stream.attach() as reader:
            async with stream.attach():
                await trio.sleep(1)
            await anext(reader)
            await trio.sleep(1)
            assert stream.status == "running"
        left_at = trio.current_time()
        await wait_all_tasks_blocked()
        assert trio.current_time() == left_at
        assert engine.live == 0
        assert_cancelled_by_disconnect(stream, 2)


async def test_cancel_waits_for_the_grace_period_until_the_first_reader_attaches(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*TICKS)
    async with open_pipeline(engine, Settings(grace_seconds=20, buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="cancel")
        await trio.sleep(19.9)
        assert stream.paused
        assert len(engine.made) == 3  # the same bound as under `pause`
        await trio.sleep(0.2)
        assert_cancelled_by_disconnect(stream, 20)
        assert engine.live == 0


async def test_the_requests_policy_wins_over_the_one_given_to_start(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a")) as pipeline:
        assert (await pipeline.start(Request("q"))).on_disconnect == "pause"
        for policy in POLICIES:
            assert (await pipeline.start(Request("q"), on_disconnect=policy)).on_disconnect == policy
            stream = await pipeline.start(Request("q", on_disconnect=policy), on_disconnect="continue")
            assert stream.on_disconnect == policy


# Grace


async def test_grace_ends_a_paused_stream_and_keeps_what_was_written(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*TICKS)
    async with open_pipeline(engine, Settings(grace_seconds=20, buffer_tokens=4)) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(21)
        assert_cancelled_by_disconnect(stream, 20)
        assert stream.snapshot().output == "".join(engine.written) != ""
        assert engine.live == 0


async def test_an_attached_reader_stops_grace_and_a_leaving_reader_restarts_it(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*TICKS), Settings(grace_seconds=20)) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(19)
        async with stream.attach():  # attached, although it does not read
            await trio.sleep(100)
            assert stream.status == "running"
        await trio.sleep(19)
        async with stream.attach(), stream.attach():
            await trio.sleep(10)
        assert stream.status == "running"
        await trio.sleep(19.9)
        assert stream.status == "running"
        await trio.sleep(0.2)
        assert_cancelled_by_disconnect(stream, 19 + 100 + 19 + 10 + 20)


async def test_grace_does_not_start_while_another_reader_is_attached(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*TICKS), Settings(grace_seconds=20)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach():
            async with stream.attach():
                pass
            await trio.sleep(100)
            assert stream.status == "running"


async def test_a_request_may_set_its_grace(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted(*TICKS), Settings(grace_seconds=20)) as pipeline:
        longer = await pipeline.start(Request("q", grace_seconds=30))
        none = await pipeline.start(Request("q", grace_seconds=0))
        await trio.sleep(40)
        assert_cancelled_by_disconnect(longer, 30)
        assert_cancelled_by_disconnect(none, 0)


async def test_a_paused_stream_whose_engine_has_finished_is_completed_not_cancelled(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 5, "b", 5, "c")
    async with open_pipeline(engine, Settings(grace_seconds=20, buffer_tokens=4)) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(9)
        assert stream.paused
        await trio.sleep(2)
        assert not stream.paused
        await trio.sleep(100)
        assert stream.status == "completed"
        assert stream.snapshot().output == "abc"


@pytest.mark.parametrize("policy", POLICIES)
async def test_leaving_a_finished_stream_changes_nothing(
    policy: OnDisconnect, scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a"), Settings(grace_seconds=20)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=policy)
        async with stream.attach() as reader:
            async for _ in reader:
                pass
        frames = stream.log.read(0)
        async with stream.attach():
            pass
        await trio.sleep(100)
        assert stream.log.read(0) == frames
        assert stream.status == "completed"


# Streams that wait for their first reader


async def test_an_engine_is_called_immediately_unless_its_stream_waits_for_a_reader(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine) as pipeline:
        await pipeline.start(Request("q"))
        await wait_all_tasks_blocked()
        assert engine.calls == 1


async def test_the_engine_is_called_when_a_readers_cursor_has_passed_record_1(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine) as pipeline:
        stream = await start_with_reader(pipeline)
        async with stream.attach() as reader:
            await reader.wait()
            [created] = reader.take(10_000)
            assert created == stream.log.read(0)[0]
            await trio.sleep(10)
            assert engine.calls == 0  # the reader took it, but has not acknowledged it
            reader.passed(1)
            await wait_all_tasks_blocked()
            assert engine.calls == 1


async def test_a_reader_that_has_record_1_already_calls_the_engine(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine) as pipeline:
        stream = await start_with_reader(pipeline)
        async with stream.attach(after=1):
            await wait_all_tasks_blocked()
            assert engine.calls == 1


@pytest.mark.parametrize("policy", POLICIES)
async def test_until_the_engine_is_called_grace_runs_under_every_policy(
    policy: OnDisconnect, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine, Settings(grace_seconds=20)) as pipeline:
        stream = await start_with_reader(pipeline, policy)
        await trio.sleep(10)
        assert stream.paused
        async with stream.attach() as reader:
            await anext(reader)
            await trio.sleep(50)
            assert not stream.paused
        await trio.sleep(19.9)
        assert stream.status == "running"  # a reader that was cut before record 1 may still come back for it
        await trio.sleep(0.2)
        assert_cancelled_by_disconnect(stream, 10 + 50 + 20)
        assert engine.calls == 0


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_reader_that_comes_back_within_grace_for_record_1_gets_the_whole_stream(
    policy: OnDisconnect, scripted: Callable, read_to_end: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 1, "b")
    async with open_pipeline(engine, Settings(grace_seconds=20)) as pipeline:
        stream = await start_with_reader(pipeline, policy)
        for _ in range(3):
            async with stream.attach():
                pass
            await trio.sleep(15)
        assert text_of(await read_to_end(stream)) == "ab"
        assert stream.status == "completed"
        assert engine.calls == 1


async def test_after_the_engine_is_called_the_policy_applies_again(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engines = {policy: scripted(*TICKS) for policy in POLICIES}
    for policy, engine in engines.items():
        async with open_pipeline(engine, Settings(grace_seconds=20)) as pipeline:
            stream = await start_with_reader(pipeline, policy)
            async with stream.attach(after=1):
                await trio.sleep(1)
            await wait_all_tasks_blocked()
            assert stream.status == ("cancelled" if policy == "cancel" else "running")
            assert stream.paused == (policy == "pause")
            await trio.sleep(30)
            assert stream.status == ("running" if policy == "continue" else "cancelled")


async def test_a_reader_that_takes_record_1_and_leaves_immediately_cancels_before_the_engine_is_called(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine) as pipeline:
        stream = await start_with_reader(pipeline, "cancel")
        await wait_all_tasks_blocked()
        async with stream.attach(after=1):
            pass
        await wait_all_tasks_blocked()
        assert_cancelled_by_disconnect(stream, 0)
        assert engine.calls == 0
