"""All streams of a pipeline: lifetime, ownership, limits, shutdown."""

from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.engine import Finish, as_engine
from crucible_trio.errors import (
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    OwnerLimitError,
    StreamExpiredError,
    StreamNotFoundError,
)
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import AnyRecord, StreamCancelled
from crucible_trio.request import Request, Sampling
from crucible_trio.store.memory import ANONYMOUS
from crucible_trio.stream import Stream


def cancelled_by(stream: Stream) -> str:
    assert isinstance(stream.terminal, StreamCancelled)
    return stream.terminal.by


# Lifetime


async def test_the_engine_gets_the_request_with_its_model_filled_in(autojump_clock: MockClock) -> None:
    asked: list[Request] = []

    async def engine(request: Request, output: Output) -> Finish:
        asked.append(request)
        return Finish()

    async with open_pipeline(engine) as pipeline:
        for request in (Request("q", mode="deep"), Request("q", model="engine", max_output_tokens=5)):
            await pipeline.start(request)
        await wait_all_tasks_blocked()
    assert asked == [Request("q", mode="deep", model="engine"), Request("q", model="engine", max_output_tokens=5)]


async def test_an_engine_has_the_context_variables_of_its_request(
    autojump_clock: MockClock,
) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []

    async def engine(request: Request, output: Output) -> Finish:
        seen.append(variable.get())
        return Finish()

    variable.set("pipeline")
    async with open_pipeline(engine) as pipeline:
        variable.set("request")
        await pipeline.start(Request("q"))
        await wait_all_tasks_blocked()
        assert variable.get() == "request"
    assert seen == ["request"]


async def test_start_is_a_checkpoint_and_cancelling_it_starts_nothing(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a")) as pipeline:
        with assert_checkpoints():
            await pipeline.start(Request("q"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await pipeline.start(Request("q"))
        assert len(await pipeline.list()) == 1


async def test_a_request_the_engine_does_not_support_is_refused_and_starts_nothing(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a")) as pipeline:
        with pytest.raises(InvalidRequestError):
            await pipeline.start(Request("q", sampling=Sampling(seed=1)))
        assert await pipeline.list() == []


async def test_closing_the_pipeline_ends_every_stream_and_leaves_no_task(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 999)
    before = trio.lowlevel.current_statistics().tasks_living
    async with open_pipeline(engine, Settings(buffer_tokens=1)) as pipeline:
        streams = [await pipeline.start(Request("q"), starts_with_reader=number % 2 == 0) for number in range(9)]
        await wait_all_tasks_blocked()
        streams.append(await pipeline.start(Request("q")))  # its task has not run yet
        assert trio.lowlevel.current_statistics().tasks_living > before
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert [cancelled_by(stream) for stream in streams] == ["shutdown"] * 10
    assert engine.live == 0


async def test_an_ended_stream_leaves_no_task(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a", 1)) as pipeline:
        before = trio.lowlevel.current_statistics().tasks_living
        await pipeline.start(Request("q"))
        (await pipeline.start(Request("q"))).cancel()
        await trio.sleep(2)
        assert trio.lowlevel.current_statistics().tasks_living == before


@pytest.mark.parametrize("error", [ValueError("mine"), ExceptionGroup("mine", [ValueError("mine")])])
async def test_an_exception_in_the_body_propagates_unwrapped(
    error: Exception, scripted: Callable, autojump_clock: MockClock
) -> None:
    streams: list[Stream] = []

    async def body() -> None:
        async with open_pipeline(scripted("a", 999)) as pipeline:
            streams.append(await pipeline.start(Request("q")))
            await wait_all_tasks_blocked()
            raise error

    with pytest.raises(type(error)) as seen:
        await body()
    assert seen.value is error
    assert cancelled_by(streams[0]) == "shutdown"


class Interrupt(BaseException):
    """Like KeyboardInterrupt: the pipeline must not handle it."""


async def test_an_interrupt_in_the_body_propagates(scripted: Callable, autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(Interrupt, flatten_subgroups=True):
        async with open_pipeline(scripted("a", 999)) as pipeline:
            stream = await pipeline.start(Request("q"))
            raise Interrupt
    assert cancelled_by(stream) == "shutdown"


async def test_a_cancelled_pipeline_ends_its_streams_and_propagates_the_cancellation(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 999)
    before = trio.lowlevel.current_statistics().tasks_living
    with trio.move_on_after(5) as scope:
        async with open_pipeline(engine) as pipeline:
            stream = await pipeline.start(Request("q"))
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert cancelled_by(stream) == "shutdown"
    assert engine.live == 0
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_a_pipeline_run_in_a_nursery_is_ready_when_nursery_start_returns(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    pipeline = Pipeline(as_engine(scripted("a", 999)), Settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(pipeline.run)
        stream = await pipeline.start(Request("q"))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert cancelled_by(stream) == "shutdown"


async def test_a_pipeline_that_is_not_running_starts_nothing(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    pipeline = Pipeline(as_engine(engine), Settings())
    with pytest.raises(trio.ClosedResourceError):
        await pipeline.start(Request("q"))
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
    with pytest.raises(trio.ClosedResourceError):
        await pipeline.start(Request("q"))
    assert await pipeline.list() == [stream]
    assert await pipeline.find(stream.id) is stream


# Ownership


@pytest.mark.parametrize("finished", [False, True])
async def test_only_its_owner_finds_a_stream(finished: bool, scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a", 5)) as pipeline:
        stream = await pipeline.start(Request("q"), owner="alice", on_disconnect="continue")
        await trio.sleep(10 if finished else 1)
        assert (stream.status == "completed") == finished
        assert await pipeline.find(stream.id, owner="alice") is stream
        assert await pipeline.find(stream.id, owner=None) is stream  # the caller has checked access in another way
        for other_owner in ("bob", ANONYMOUS):
            with pytest.raises(StreamNotFoundError):
                await pipeline.find(stream.id, owner=other_owner)
            assert await pipeline.list(owner=other_owner) == []
        with pytest.raises(StreamNotFoundError):
            await pipeline.find(stream.id)
        assert await pipeline.list(owner="alice") == [stream]
        with pytest.raises(StreamNotFoundError):
            await pipeline.find("str_7Q2M4kWcT0aXn3v9LzB1pg", owner=None)


async def test_an_owners_streams_are_listed_newest_first_running_or_not(
    scripted: Callable, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("crucible_trio.pipeline.time", SimpleNamespace(time=trio.current_time))
    async with open_pipeline(scripted("a", 5)) as pipeline:
        started = []
        for owner in ("alice", "bob", "alice", "alice"):
            started.append(await pipeline.start(Request("q"), owner=owner, on_disconnect="continue"))
            await trio.sleep(4)
        assert [stream.status for stream in started] == ["completed"] * 3 + ["running"]
        assert await pipeline.list(owner="alice") == [started[3], started[2], started[0]]
        assert await pipeline.list(owner="bob") == [started[1]]


# Limits


async def test_only_an_owner_at_the_limit_is_refused(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a", 5), Settings(max_streams_per_owner=2)) as pipeline:
        for _ in range(2):
            running = await pipeline.start(Request("q"), owner="alice")
        with pytest.raises(OwnerLimitError):
            await pipeline.start(Request("q"), owner="alice")
        await pipeline.start(Request("q"), owner="bob")
        for _ in range(3):  # anonymous clients share one owner, which only the overall limit bounds
            await pipeline.start(Request("q"))
        running.cancel()
        await wait_all_tasks_blocked()
        await pipeline.start(Request("q"), owner="alice")  # finished streams do not count


async def test_starts_are_refused_when_all_owners_together_reach_the_limit(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 5), Settings(max_streams=2)) as pipeline:
        running = [await pipeline.start(Request("q"), owner=owner) for owner in ("alice", "bob")]
        for owner in ("alice", ANONYMOUS):
            with pytest.raises(OverloadedError):
                await pipeline.start(Request("q"), owner=owner)
        assert len(await pipeline.list(owner="alice")) == 1
        await trio.sleep(6)
        assert [stream.status for stream in running] == ["completed"] * 2
        await pipeline.start(Request("q"))


# Deleting


async def test_a_deleted_stream_is_cancelled_and_not_found_but_its_readers_get_the_terminal_record(
    scripted: Callable, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    ends: list[AnyRecord] = []
    async with open_pipeline(scripted("a", 999), Settings(retention_seconds=100)) as pipeline:
        stream = await pipeline.start(Request("q"))

        async def follow() -> None:
            ends.append((await read_to_end(stream))[-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.sleep(1)
            await pipeline.forget(stream)
            for _ in range(2):  # while the stream ends, and afterwards
                with pytest.raises(StreamNotFoundError):
                    await pipeline.find(stream.id)
                with pytest.raises(StreamNotFoundError):
                    await pipeline.find(stream.id, owner=None)
                assert await pipeline.list() == []
                await wait_all_tasks_blocked()
        assert ends == [stream.terminal]
        assert cancelled_by(stream) == "client"
        assert pipeline.store.log_bytes == 0


async def test_a_finished_stream_can_be_deleted_and_is_not_found_rather_than_expired(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a"), Settings(retention_seconds=10)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        await pipeline.forget(stream)
        assert stream.status == "completed"
        for pause in (0, 20, 4000):
            await trio.sleep(pause)
            with pytest.raises(StreamNotFoundError):
                await pipeline.find(stream.id)
        assert pipeline.store.log_bytes == 0


# Shutdown


async def test_while_draining_running_streams_may_finish(
    scripted: Callable, read_to_end: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 5, "b"), Settings(drain_seconds=30)) as pipeline:
        stream = await pipeline.start(Request("q"))
        texts: list[str] = []

        async def follow(after: int) -> None:
            texts.append(text_of(await read_to_end(stream, after)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, 0)
            await trio.sleep(1)
            assert not pipeline.draining
            nursery.start_soon(pipeline.drain)
            await trio.sleep(1)
            assert pipeline.draining
            assert stream.log.readers == 1  # the reader stays attached
            with pytest.raises(DrainingError):
                await pipeline.start(Request("q"))
            nursery.start_soon(follow, 1)  # a reader that was cut may attach again
            with trio.fail_after(4):
                await pipeline.drain()  # a second call is harmless
        assert texts == ["ab", "ab"]
        assert stream.status == "completed"


@pytest.mark.parametrize("timeout", [None, 3, 0])
async def test_after_the_drain_timeout_running_streams_are_cancelled_and_readers_get_the_terminal_record(
    timeout: float | None, scripted: Callable, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 999)
    async with open_pipeline(engine, Settings(drain_seconds=7)) as pipeline:
        stream = await pipeline.start(Request("q"))
        unread = await pipeline.start(Request("q"), starts_with_reader=True)
        ends: list[AnyRecord] = []

        async def follow() -> None:
            ends.append((await read_to_end(stream))[-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await wait_all_tasks_blocked()
            begun = trio.current_time()
            await pipeline.drain(timeout)
            assert trio.current_time() - begun == pytest.approx(7 if timeout is None else timeout)
        assert ends == [stream.terminal]
        assert cancelled_by(stream) == cancelled_by(unread) == "shutdown"
        assert engine.live == 0


async def test_draining_wakes_every_reader_without_a_new_record(scripted: Callable, autojump_clock: MockClock) -> None:
    woken: list[Stream] = []
    async with open_pipeline(scripted("a", 9), Settings(drain_seconds=30)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()

        async def follow() -> None:
            async with stream.attach(stream.log.head) as reader:
                await reader.wait()
                assert reader.take(1) == []
                woken.append(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await wait_all_tasks_blocked()
            nursery.start_soon(pipeline.drain)
            await wait_all_tasks_blocked()
            assert woken == [stream]


async def test_drain_does_not_wait_forever_for_an_engine_that_ignores_cancellation(autojump_clock: MockClock) -> None:
    let_go = trio.Event()

    async def stubborn(request: Request, output: Output) -> Finish:
        with trio.CancelScope(shield=True):
            await let_go.wait()
        return Finish()

    async with open_pipeline(stubborn, Settings(flush_seconds=4)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        await pipeline.drain(10)
        assert trio.current_time() - begun == pytest.approx(14)
        assert cancelled_by(stream) == "shutdown"
        assert stream.terminal is not None
        assert stream.terminal.timings.total_ms == pytest.approx(10_000)
        let_go.set()


async def test_drain_returns_when_nothing_runs_and_is_a_checkpoint(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a")) as pipeline:
        await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        with assert_checkpoints():
            await pipeline.drain()
        assert trio.current_time() == begun


async def test_after_a_cancelled_drain_new_streams_are_still_refused(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 99)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        with trio.move_on_after(1):
            await pipeline.drain()
        with pytest.raises(DrainingError):
            await pipeline.start(Request("q"))
        assert stream.status == "running"


async def test_streams_are_found_while_draining_and_expire_as_usual(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a"), Settings(retention_seconds=10)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        await pipeline.drain()
        assert await pipeline.find(stream.id) is stream
        await trio.sleep(11)
        with pytest.raises(StreamExpiredError):
            await pipeline.find(stream.id)
