from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.content import Reasoning
from crucible_trio.engine import Engine, EngineInfo, Finish
from crucible_trio.errors import EngineError
from crucible_trio.metrics import EngineMetrics, Histogram, Metrics
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.request import Request


async def test_metrics_follow_streams_readers_and_resumes(
    scripted: Callable, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(Reasoning("a"), 2, "b", 2, "c")) as pipeline:
        store, metrics, engine = pipeline.store, pipeline.metrics, pipeline.metrics.engine("scripted")
        deep = await pipeline.start(Request("q", mode="deep"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_to_end, deep)
            nursery.start_soon(read_to_end, deep)
            await trio.sleep(1)
            assert metrics.readers == 2
            assert store.running == 1
            assert store.kept == 0
            assert engine.pieces["deep"] == 1
            deep_facts = store.log_bytes - deep.log.size_bytes
            assert deep_facts > 0
        await read_to_end(deep, 1)
        await read_to_end(deep, 2)
        assert metrics.readers == 0
        assert metrics.resumes == 2
        assert store.running == 0
        assert store.kept == 1
        assert engine.pieces["deep"] == 3
        cancelled = await pipeline.start(Request("q"), on_disconnect="continue")
        cancelled_facts = store.log_bytes - deep_facts - deep.log.size_bytes - cancelled.log.size_bytes
        assert cancelled_facts > 0
        await trio.sleep(1)
        cancelled.cancel()
        await trio.sleep(1)
        assert engine.pieces["standard"] == 1
        assert engine.started == {"deep": 1, "standard": 1}
        assert engine.ended == {"completed": 1, "cancelled": 1}
        assert store.log_bytes == deep_facts + deep.log.size_bytes + cancelled_facts + cancelled.log.size_bytes
        assert sum(engine.cancel_seconds.counts) == 1


@pytest.mark.parametrize(
    ("steps", "status"),
    [([EngineError("a", "b")], "failed"), ([Finish("length")], "incomplete"), ([Finish()], "completed")],
)
async def test_streams_are_counted_by_how_they_ended(
    steps: list[object], status: str, scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*steps)) as pipeline:
        for _ in range(3):
            await pipeline.start(Request("q"))
        await trio.sleep(1)
        assert pipeline.metrics.engine("scripted").ended == {status: 3}
        assert sum(pipeline.metrics.engine("scripted").cancel_seconds.counts) == 0


async def test_first_token_and_cancel_times_are_measured(autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        await trio.sleep(3)
        await output.delta("a")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(4)
        raise AssertionError

    async with open_pipeline(engine) as pipeline:
        await trio.sleep(50)
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(10)
        stream.cancel()
        await trio.sleep(10)
        assert pipeline.metrics.engine("engine").first_token_seconds.total == pytest.approx(3)
        assert pipeline.metrics.engine("engine").cancel_seconds.total == pytest.approx(4)


async def test_two_pipelines_have_separate_metrics(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a")) as one, open_pipeline(scripted("a")) as other:
        await one.start(Request("q"))
        await trio.sleep(1)
        assert one.metrics.engine("scripted").started == {"standard": 1}
        assert other.metrics.engines == {}


async def test_a_router_counts_each_stream_for_the_engine_behind_its_model(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    class Router:
        info = EngineInfo(name="router", models=("small", "large"))
        engines = {name: scripted(name, name=name) for name in info.models}  # noqa: RUF012 - never changed

        def engine_of(self, model: str) -> Engine:
            return self.engines[model]

        async def generate(self, request: Request, output: Output) -> Finish:
            return await self.engine_of(request.model or "").generate(request, output)

    async with open_pipeline(Router()) as pipeline:
        for model in ("small", "large", "large"):
            await pipeline.start(Request("q", model=model), on_disconnect="continue")
        await trio.sleep(1)
        assert set(pipeline.metrics.engines) == {"small", "large"}
        assert pipeline.metrics.engine("small").pieces["standard"] == 1
        assert pipeline.metrics.engine("large").ended == {"completed": 2}


def test_the_numbers_of_an_engine_are_made_once() -> None:
    metrics = Metrics()
    assert metrics.engine("a") is metrics.engine("a")
    assert metrics.engine("a") is not metrics.engine("b")


def test_refusals_are_counted_by_their_code() -> None:
    metrics = Metrics()
    metrics.refused["overloaded"] += 1
    assert metrics.refused == {"overloaded": 1}


def test_a_histogram_counts_each_value_in_the_bucket_whose_bound_it_does_not_pass() -> None:
    histogram = Histogram([1, 2.5])
    for value in (0, 1, 1.1, 2.5, 2.6, 100):
        histogram.observe(value)
    assert histogram.bounds == (1, 2.5)
    assert histogram.counts == [2, 2, 2]
    assert histogram.total == pytest.approx(107.2)


def test_the_buckets_ascend() -> None:
    for histogram in (EngineMetrics().first_token_seconds, EngineMetrics().cancel_seconds):
        assert list(histogram.bounds) == sorted(histogram.bounds)
