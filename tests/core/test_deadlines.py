"""A deadline ends a stream as `incomplete`, and the log keeps everything that was written."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import StreamIncomplete
from crucible_trio.request import Deadlines, OnDisconnect, Request
from crucible_trio.stream import Stream

LIMITS = Settings(
    buffer_tokens=2,
    first_token_seconds=10,
    idle_seconds=5,
    total_seconds=100,
    grace_seconds=1000,
    max_grace_seconds=1000,
)


def assert_ended(stream: Stream, reason: str, after_seconds: float) -> None:
    terminal = stream.terminal
    assert isinstance(terminal, StreamIncomplete)
    assert terminal.reason == reason
    assert terminal.timings.total_ms == pytest.approx(after_seconds * 1000)


@asynccontextmanager
async def reader_that_keeps_up(stream: Stream) -> AsyncIterator[None]:
    """Attach a reader that keeps up, so that the stream waits only for the engine."""

    async def follow() -> None:
        async with stream.attach() as reader:
            async for _ in reader:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("steps", "reason", "after", "text"),
    [
        ([99], "first_token_deadline", 10, ""),
        ([9.9, "a", 99], "idle_deadline", 14.9, "a"),
        (["a", 4.9, "b", 4.9, "c", 99], "idle_deadline", 14.8, "abc"),
        ([Reasoning("a", 0), 99], "idle_deadline", 5, ""),
        (["a", 4, "b", 4, "", 4, ""], "idle_deadline", 9, "ab"),  # an empty piece does not restart the deadline
        (["x", 3] * 50, "total_deadline", 100, "x" * 34),
    ],
)
async def test_each_deadline_ends_the_stream_in_time_and_keeps_what_was_written(
    steps: list[str | float], reason: str, after: float, text: str, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*steps)
    async with open_pipeline(engine, LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with reader_that_keeps_up(stream):
            await trio.sleep(after - 0.01)
            assert stream.status == "running"
            await trio.sleep(0.02)
            assert_ended(stream, reason, after)
        assert stream.snapshot().output == text
        assert engine.live == 0


async def test_a_request_may_set_its_deadlines(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted(999), LIMITS) as pipeline:
        policy = {"on_disconnect": "continue"}
        first = await pipeline.start(Request("q", deadlines=Deadlines(first_token_seconds=20)), **policy)
        total = await pipeline.start(Request("q", deadlines=Deadlines(total_seconds=3)), **policy)
        await trio.sleep(30)
        assert_ended(first, "first_token_deadline", 20)
        assert_ended(total, "total_deadline", 3)
    async with open_pipeline(scripted("a", 999), LIMITS) as pipeline:
        idle = await pipeline.start(Request("q", deadlines=Deadlines(idle_seconds=0.5)), **policy)
        await trio.sleep(30)
        assert_ended(idle, "idle_deadline", 0.5)


async def test_a_stream_within_its_deadlines_completes(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted(9, "a", 4, "b", 4), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(200)
        assert stream.status == "completed"
        assert stream.terminal is not None
        assert stream.terminal.timings.first_token_ms == pytest.approx(9000)
        assert stream.terminal.timings.total_ms == pytest.approx(17000)


# Waiting for a reader


async def test_while_the_stream_waits_for_a_reader_only_the_total_counts(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*"abcdefghijkl")
    async with open_pipeline(engine, LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            for _ in range(3):
                await anext(reader)
                await trio.sleep(30)  # the buffer is full meanwhile
            assert stream.status == "running"
            await trio.sleep(9)
            assert stream.status == "running"
            await trio.sleep(2)
            assert_ended(stream, "total_deadline", 100)
            assert "".join(engine.written) == stream.snapshot().output


async def test_without_a_reader_neither_first_token_nor_idle_counts(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*"abcdef"), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(50)
        assert stream.status == "running"
        async with stream.attach() as reader:
            for _ in range(2):
                await anext(reader)
        await trio.sleep(40)
        assert stream.status == "running"
        await trio.sleep(11)
        assert_ended(stream, "total_deadline", 100)


async def test_the_wait_for_the_engine_restarts_after_a_wait_for_a_reader(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 1, "b", 33, "c"), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            for _ in range(2):
                await anext(reader)
            await trio.sleep(30)
            await anext(reader)  # "b" was buffered. From the next request on, the stream waits for the engine
            begun = trio.current_time()
            async for _ in reader:
                pass
            assert trio.current_time() - begun == pytest.approx(4)  # "c" comes before the 5 s are over
        assert stream.status == "completed"


@pytest.mark.parametrize("policy", ["pause", "continue", "cancel"])
async def test_first_token_counts_from_the_engines_call(
    policy: OnDisconnect, scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(99), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=policy, starts_with_reader=True)
        await trio.sleep(40)
        async with reader_that_keeps_up(stream):
            await trio.sleep(9.9)
            assert stream.status == "running"
            await trio.sleep(0.2)
            assert_ended(stream, "first_token_deadline", 50)


@pytest.mark.parametrize("attached", [False, True])
async def test_the_total_counts_from_acceptance_also_before_the_engine_is_called(
    attached: bool, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine, LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), starts_with_reader=True)
        if attached:
            async with stream.attach() as reader:
                await anext(reader)
                await trio.sleep(101)
        await trio.sleep(101)
        assert_ended(stream, "total_deadline", 100)
        assert engine.calls == 0


@pytest.mark.parametrize("starts_with_reader", [True, False])
@pytest.mark.parametrize("policy", ["pause", "continue", "cancel"])
async def test_the_total_ends_a_stream_whose_reader_attached_immediately_and_never_reads(
    policy: OnDisconnect, starts_with_reader: bool, scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*"abcdef"), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=policy, starts_with_reader=starts_with_reader)
        async with stream.attach():  # before the stream's task has run
            await trio.sleep(99)
            assert stream.status == "running"
            await trio.sleep(2)
            assert_ended(stream, "total_deadline", 100)


# Queueing for a model slot


def queueing(*waits: float) -> Callable:
    """An engine that queues before each piece, in four parts, and then takes 3 s to make the piece."""

    async def engine(request: Request, output: Output) -> Finish:
        for number, wait in enumerate(waits):
            for _ in range(4):
                async with output.queued():
                    await trio.sleep(wait / 4)
            await trio.sleep(3)
            await output.delta(f"{number}")
        return Finish()

    return engine


@pytest.mark.parametrize("waits", [(40,), (0, 40), (9, 44), (21, 13, 14, 15)])
async def test_queued_time_counts_only_towards_the_total(waits: tuple[float, ...], autojump_clock: MockClock) -> None:
    async with open_pipeline(queueing(*waits), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(99)
        assert stream.status == "completed"
        assert stream.snapshot().output == "".join(map(str, range(len(waits))))


@pytest.mark.parametrize("waits", [(150,), (10, 150)])
async def test_an_engine_that_queues_too_long_is_ended_by_the_total(
    waits: tuple[float, ...], autojump_clock: MockClock
) -> None:
    async with open_pipeline(queueing(*waits), LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(120)
        assert_ended(stream, "total_deadline", 100)


@pytest.mark.parametrize(
    ("first", "reason", "after"), [(False, "idle_deadline", 35), (True, "first_token_deadline", 40)]
)
async def test_after_queueing_an_engine_has_its_full_deadline_and_no_more(
    first: bool, reason: str, after: float, autojump_clock: MockClock
) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        if not first:
            await output.delta("a")
        async with output.queued():
            await trio.sleep(30)
        await trio.sleep_forever()
        raise AssertionError

    async with open_pipeline(engine, LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(after - 0.1)
        assert stream.status == "running"
        await trio.sleep(0.2)
        assert_ended(stream, reason, after)


async def test_a_deadline_does_not_wait_for_an_engine_that_ignores_cancellation(autojump_clock: MockClock) -> None:
    let_go = trio.Event()

    async def stubborn(request: Request, output: Output) -> Finish:
        await output.delta("a")
        with trio.CancelScope(shield=True):
            await let_go.wait()
        return Finish()

    async with open_pipeline(stubborn, LIMITS) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(5.1)
        assert_ended(stream, "idle_deadline", 5)
        frames = stream.log.read(0)
        let_go.set()
        await trio.sleep(1)
        assert stream.log.read(0) == frames
