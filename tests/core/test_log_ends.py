"""A log that another process ends, or that is lost, stops its generation."""

from __future__ import annotations

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.engine import as_engine
from crucible_trio.errors import LogLostError
from crucible_trio.log.shared import SharedLog
from crucible_trio.pipeline import Pipeline, run_pipeline
from crucible_trio.records import ErrorInfo, StreamFailed, Timings, Usage, encode_frame
from crucible_trio.request import Request
from crucible_trio.store.memory import MemoryStore
from crucible_trio.stream import Stream
from crucible_trio.testing import Gate, ScriptedEngine
from crucible_trio.timers import Timers


class StoresNow:
    """Stores accepted records immediately."""

    def commit_later(self, log: SharedLog) -> None:
        if self.works:
            batch = log.take(1000, 1_000_000)
            log.acknowledge(batch.first + len(batch.frames) - 1, ended=batch.last)

    works = True


class SharedPipeline:
    """A pipeline whose logs are shared."""

    def __init__(self, engine: ScriptedEngine) -> None:
        settings, timers = Settings(), Timers()
        self.store = StoresNow()

        def new_log(**options: object) -> SharedLog:
            return SharedLog(self.store, **options)  # type: ignore[arg-type]

        store = MemoryStore(settings, timers, new_log=new_log)
        self.pipeline = Pipeline(as_engine(engine), settings, timers=timers, store=store)


def log_of(stream: Stream) -> SharedLog:
    assert isinstance(stream.log, SharedLog)
    return stream.log


async def test_an_end_from_another_process_stops_the_engine_and_is_the_streams_end(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine("a", Gate())
    shared = SharedPipeline(engine)
    async with run_pipeline(shared.pipeline) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        terminal = StreamFailed(3, ErrorInfo("producer_lost", "m", True), Usage(), Timings(None, 1.0))
        log_of(stream).end_elsewhere([encode_frame(stream.id, terminal)], terminal)
        await wait_all_tasks_blocked()
        assert (engine.live, pipeline.store.running, pipeline.store.kept) == (0, 0, 1)
        assert stream.terminal == terminal
        assert pipeline.metrics.engine("scripted").ended["failed"] == 1


@pytest.mark.parametrize("is_pending", [True, False])
async def test_a_lost_log_stops_the_engine(autojump_clock: MockClock, is_pending: bool) -> None:
    engine = ScriptedEngine("a", Gate())
    shared = SharedPipeline(engine)
    async with run_pipeline(shared.pipeline) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        shared.store.works = not is_pending
        await wait_all_tasks_blocked()
        log_of(stream).lose()
        await wait_all_tasks_blocked()
        assert (engine.live, pipeline.store.running) == (0, 0)
        assert pipeline.metrics.engine("scripted").ended["failed"] == 1
        with pytest.raises(LogLostError):
            async with stream.attach():
                pass


async def test_a_log_that_is_lost_while_its_end_is_pending_lets_the_stream_go(autojump_clock: MockClock) -> None:
    shared = SharedPipeline(ScriptedEngine("a"))
    async with run_pipeline(shared.pipeline) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        shared.store.works = False
        await wait_all_tasks_blocked()
        assert (log_of(stream).closed, pipeline.store.running) == (True, 1)
        log_of(stream).lose()
        await wait_all_tasks_blocked()
        assert pipeline.store.running == 0


async def test_an_end_that_is_pending_is_not_appended_again_when_the_engine_has_let_go(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine("a", Gate())
    shared = SharedPipeline(engine)
    async with run_pipeline(shared.pipeline) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        shared.store.works = False
        stream.cancel()
        log = log_of(stream)
        await wait_all_tasks_blocked()
        assert (log.closed, log.finished, engine.live, pipeline.store.running) == (True, False, 0, 1)
        shared.store.works = True
        shared.store.commit_later(log)
        await wait_all_tasks_blocked()
        assert (stream.status, pipeline.store.running) == ("cancelled", 0)
    assert "internal error" not in caplog.text


async def test_an_engine_that_waits_for_the_buffer_is_cancelled_and_not_refused(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine([f"{number}" for number in range(1000)])
    shared = SharedPipeline(engine)
    async with run_pipeline(shared.pipeline) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="pause")
        await wait_all_tasks_blocked()
        assert engine.live == 1
        log_of(stream).lose()
        await wait_all_tasks_blocked()
        assert engine.runs[-1].end == "cancelled"
    assert "the engine failed" not in caplog.text
