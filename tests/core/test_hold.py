"""Held streams: a client waits for the engine's answer before it attaches a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.engines.router import RouterEngine
from crucible_trio.errors import EngineError, StreamNotFoundError
from crucible_trio.hold import Hold
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import StreamCancelled, StreamCompleted, StreamCreated, StreamFailed, StreamIncomplete
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.stream import Stream
from crucible_trio.testing import ScriptedEngine

REFUSED = EngineError("upstream_refused", "Busy.", retryable=True, status=429)


class WaitingEngine:
    """An engine that declares that it waits for an upstream. It accepts after the first step of its script.

    Attributes:
        accepted: How many calls have been accepted.
        client_retries: `Output.client_retries` of each call.
    """

    def __init__(self, *steps: Any, before: Any = 0) -> None:
        self.scripted = ScriptedEngine(*steps)
        self._before = ScriptedEngine(before)
        self.info = replace(self.scripted.info, waits_for_upstream=True)
        self.accepted = 0
        self.client_retries: list[bool] = []

    async def generate(self, request: Request, output: Output) -> Finish:
        self.client_retries.append(output.client_retries)
        await self._before.generate(request, output)
        output.accepted()
        self.accepted += 1
        return await self.scripted.generate(request, output)


async def start(
    pipeline: Pipeline,
    policy: OnDisconnect = "cancel",
    key: str | None = None,
    model: str | None = None,
    may_hold: bool = True,
    **options: Any,
) -> tuple[Stream, bool]:
    return await pipeline.start_or_join(
        Request("q", model=model),
        key,
        owner="",
        on_disconnect=policy,
        starts_with_reader=True,
        may_hold=may_hold,
        **options,
    )


async def hold_of(pipeline: Pipeline, policy: OnDisconnect = "cancel") -> tuple[Stream, Hold]:
    stream, _ = await start(pipeline, policy)
    assert stream.hold is not None
    return stream, stream.hold


async def waited(hold: Hold, seconds: float = inf) -> float:
    begin = trio.current_time()
    await hold.wait(seconds)
    return trio.current_time() - begin


# Which streams are held


async def test_a_held_stream_calls_its_engine_without_a_reader(
    records_in: Callable, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(WaitingEngine("a", before=3)) as pipeline:
        stream, hold = await hold_of(pipeline)
        assert [type(record) for record in records_in(stream)] == [StreamCreated]
        assert await waited(hold) == 3
        assert isinstance((await read_to_end(stream))[-1], StreamCompleted)
        assert stream.snapshot().output == "a"


@pytest.mark.parametrize("engine", [ScriptedEngine("a"), WaitingEngine("a")], ids=["local", "upstream"])
async def test_without_the_engines_and_the_callers_word_a_stream_is_not_held(
    engine: Any, autojump_clock: MockClock
) -> None:
    async with open_pipeline(engine) as pipeline:
        stream, _ = await start(pipeline, may_hold=isinstance(engine, ScriptedEngine))
        await wait_all_tasks_blocked()
        assert stream.hold is None
        assert getattr(engine, "scripted", engine).calls == 0


async def test_a_router_passes_on_which_engine_waits(autojump_clock: MockClock) -> None:
    local = ScriptedEngine("a", name="local")
    waiting = WaitingEngine("b")
    async with open_pipeline(RouterEngine([local, waiting])) as pipeline:
        for model, is_held in (("local", False), ("scripted", True)):
            stream, _ = await pipeline.start_or_join(
                Request("q", model=model),
                None,
                owner="",
                on_disconnect="cancel",
                starts_with_reader=True,
                may_hold=True,
            )
            assert (stream.hold is not None) == is_held


@pytest.mark.parametrize("client_retries", [True, False])
async def test_the_engine_knows_whether_the_client_retries(client_retries: bool, autojump_clock: MockClock) -> None:
    engine = WaitingEngine("a")
    async with open_pipeline(engine) as pipeline:
        await start(pipeline, client_retries=client_retries)
        await wait_all_tasks_blocked()
    assert engine.client_retries == [client_retries]


# What ends the hold


@pytest.mark.parametrize(
    ("before", "seconds"),
    [
        ([3], 3),  # accepted
        ([4, "a", inf], 4),
        ([4, Reasoning("a"), inf], 4),
        ([2, REFUSED], 2),
        ([2, ValueError()], 2),
        ([inf], 10),
    ],
)
@pytest.mark.parametrize("policy", ["pause", "continue", "cancel"])
async def test_the_hold_ends_with_the_engines_answer_or_after_its_time(
    policy: OnDisconnect, before: list[Any], seconds: float, autojump_clock: MockClock
) -> None:
    async with open_pipeline(WaitingEngine("b", inf, before=before)) as pipeline:
        stream, hold = await hold_of(pipeline, policy)
        assert await waited(hold, 10) == seconds
        assert isinstance(stream.terminal, StreamFailed) == isinstance(before[-1], Exception)


async def test_a_cancelled_stream_ends_the_hold(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine(before=inf)) as pipeline:
        stream, hold = await hold_of(pipeline)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold.wait, 100)
            await wait_all_tasks_blocked()
            stream.cancel()
        assert trio.current_time() < 1
        assert isinstance(stream.terminal, StreamCancelled)


async def test_the_first_token_deadline_counts_in_the_hold(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine(before=inf), Settings(first_token_seconds=5)) as pipeline:
        stream, hold = await hold_of(pipeline)
        assert await waited(hold, 10) == 5
        assert isinstance(stream.terminal, StreamIncomplete)
        assert stream.terminal.reason == "first_token_deadline"


async def test_an_engine_that_writes_in_the_hold_waits_for_the_reader(autojump_clock: MockClock) -> None:
    engine = WaitingEngine(before=["x"] * 100)
    async with open_pipeline(engine, Settings(buffer_tokens=2)) as pipeline:
        stream, hold = await hold_of(pipeline)
        await hold.wait(10)
        await wait_all_tasks_blocked()
        assert len(engine._before.written) == 2
        async with stream.attach() as reader:
            assert [record.seq async for record in reader][-1] > 2
        assert stream.snapshot().output == "x" * 100


# The client in the hold


async def test_a_client_that_leaves_the_hold_stops_the_engine_now_or_starts_the_grace_period(
    autojump_clock: MockClock,
) -> None:
    for policy, ended_after in (("cancel", 1), ("pause", 61), ("continue", None)):
        engine = WaitingEngine(inf, before=inf)
        async with open_pipeline(engine, Settings(grace_seconds=60)) as pipeline:
            stream, hold = await hold_of(pipeline, policy)  # type: ignore[arg-type]
            assert not stream.paused
            with trio.move_on_after(1):
                await hold.wait(100)
            assert stream.paused == (policy == "pause")
            await trio.sleep(100)
            if ended_after is None:
                assert stream.status == "running"
            else:
                assert isinstance(stream.terminal, StreamCancelled)
                assert stream.terminal.by == "disconnect"
                assert stream.terminal.timings.total_ms == pytest.approx(ended_after * 1000)
                assert engine._before.live == 0


@pytest.mark.parametrize("policy", ["pause", "cancel"])
@pytest.mark.parametrize("before", [inf, 1])
async def test_a_short_grace_period_ends_no_held_stream_before_its_reader_comes(
    policy: OnDisconnect, before: float, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(WaitingEngine("a", before=before), Settings(grace_seconds=0)) as pipeline:
        stream, hold = await hold_of(pipeline, policy)
        await hold.wait(2)
        await trio.sleep(4)
        async with stream.attach() as reader:
            await anext(reader)
            await trio.sleep(10)
            assert stream.status != "cancelled"
        if before == inf:
            await trio.sleep(1)
            assert stream.status == "cancelled"


@pytest.mark.parametrize(("policy", "grace", "seconds"), [("pause", 0, 7), ("pause", 60, 62), ("cancel", 60, 7)])
async def test_a_held_stream_whose_reader_never_comes_ends(
    policy: OnDisconnect, grace: float, seconds: float, autojump_clock: MockClock
) -> None:
    async with open_pipeline(WaitingEngine(before=inf), Settings(grace_seconds=grace)) as pipeline:
        stream, hold = await hold_of(pipeline, policy)
        await hold.wait(2)
        await trio.sleep(100)
        assert isinstance(stream.terminal, StreamCancelled)
        assert stream.terminal.timings.total_ms == pytest.approx(seconds * 1000)


async def test_the_last_of_several_clients_decides(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine("a", inf, before=50), Settings(grace_seconds=0)) as pipeline:
        stream, hold = await hold_of(pipeline)
        hold.join()
        with trio.move_on_after(1):
            await hold.wait(100)
        await trio.sleep(1)
        assert stream.status == "running"
        with trio.move_on_after(1):
            await hold.wait(100)
        await trio.sleep(1)
        assert stream.status == "cancelled"


async def test_a_client_that_joins_a_hold_stops_the_grace_period(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine("a", before=100), Settings(grace_seconds=10)) as pipeline:
        stream, hold = await hold_of(pipeline, "pause")
        with trio.move_on_after(1):
            await hold.wait(200)
        await trio.sleep(9)
        hold.join()
        assert await waited(hold, 200) == 90
        assert stream.status == "completed"


async def test_a_reader_of_another_api_keeps_a_held_stream_whose_client_leaves(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine("a", before=5)) as pipeline:
        stream, hold = await hold_of(pipeline)
        async with stream.attach() as reader:
            with trio.move_on_after(1):
                await hold.wait(100)
            assert [record.seq async for record in reader] == [1, 2, 3]
        assert stream.status == "completed"


async def test_a_client_that_is_cancelled_in_the_pass_of_the_answer_has_left(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine("a", inf)) as pipeline:
        stream, hold = await hold_of(pipeline)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await hold.wait(10)
        await wait_all_tasks_blocked()
        assert stream.status == "cancelled"


# Discarding


async def test_a_discarded_stream_is_gone_and_its_key_is_free(autojump_clock: MockClock) -> None:
    engine = WaitingEngine(before=[1, REFUSED])
    async with open_pipeline(engine) as pipeline:
        first, _ = await start(pipeline, "pause", "key")
        await first.log.wait_finished()
        same, joined = await start(pipeline, "pause", "key")
        assert (same, joined) == (first, True)
        await pipeline.discard(first, "key")
        with pytest.raises(StreamNotFoundError):
            await pipeline.find(first.id)
        assert await pipeline.list() == []
        second, joined = await start(pipeline, "pause", "key")
        assert not joined
        await pipeline.discard(first, "key")  # a second client that was refused too
        assert await start(pipeline, "pause", "key") == (second, True)
        assert pipeline.store.log_bytes > 0
        await second.log.wait_finished()
        await pipeline.discard(second, "key")
    assert pipeline.store.log_bytes == 0
    assert len(engine.client_retries) == 2


async def test_a_discard_without_a_key_forgets_the_stream(autojump_clock: MockClock) -> None:
    async with open_pipeline(WaitingEngine(before=REFUSED)) as pipeline:
        stream, _ = await start(pipeline)
        await stream.log.wait_finished()
        with trio.CancelScope() as scope:
            scope.cancel()
            await pipeline.discard(stream, None)
        assert await pipeline.list() == []
