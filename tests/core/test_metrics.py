from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.content import Reasoning
from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.errors import EngineError
from crucible_trio.metrics import CONTENT_TYPE, Metrics
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request


def value(pipeline: Pipeline, name: str, **labels: str) -> float:
    return pipeline.metrics.registry.get_sample_value(f"crucible_{name}", labels) or 0


async def test_metrics_follow_streams_readers_and_resumes(
    scripted: Callable, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(Reasoning("a"), 2, "b", 2, "c")) as pipeline:
        deep = await pipeline.start(Request("q", mode="deep"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_to_end, deep)
            nursery.start_soon(read_to_end, deep)
            await trio.sleep(1)
            assert value(pipeline, "readers") == 2
            assert value(pipeline, "streams_running") == 1
            assert value(pipeline, "streams_kept") == 0
            assert value(pipeline, "tokens_total", mode="deep") == 1
            assert value(pipeline, "log_bytes") == deep.size_bytes > deep.log.size_bytes
        await read_to_end(deep, 1)
        await read_to_end(deep, 2)
        assert value(pipeline, "readers") == 0
        assert value(pipeline, "resumes_total") == 2
        assert value(pipeline, "streams_running") == 0
        assert value(pipeline, "streams_kept") == 1
        assert value(pipeline, "tokens_total", mode="deep") == 3
        cancelled = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(1)
        cancelled.cancel()
        await trio.sleep(1)
        assert value(pipeline, "tokens_total", mode="standard") == 1
        assert value(pipeline, "streams_started_total", mode="deep") == 1
        assert value(pipeline, "streams_started_total", mode="standard") == 1
        assert value(pipeline, "streams_ended_total", status="completed") == 1
        assert value(pipeline, "streams_ended_total", status="cancelled") == 1
        assert value(pipeline, "log_bytes") == deep.size_bytes + cancelled.size_bytes
        assert value(pipeline, "cancel_seconds_count") == 1


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
        assert value(pipeline, "streams_ended_total", status=status) == 3
        assert value(pipeline, "cancel_seconds_count") == 0


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
        assert value(pipeline, "first_token_seconds_sum") == pytest.approx(3)
        assert value(pipeline, "cancel_seconds_sum") == pytest.approx(4)


async def test_abandoned_engine_threads_are_counted(autojump_clock: MockClock) -> None:
    class Threaded:
        info = EngineInfo(name="threaded", models=("m",))
        abandoned_threads = 2

        async def generate(self, request: Request, output: Output) -> Finish:
            return Finish()

    async with open_pipeline(Threaded()) as pipeline:
        assert value(pipeline, "abandoned_threads") == 2


async def test_metrics_render_for_prometheus_and_two_pipelines_do_not_mix(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a")) as one, open_pipeline(scripted("a")) as other:
        await one.start(Request("q"))
        await trio.sleep(1)
        assert b'crucible_streams_started_total{mode="standard"} 1.0\n' in one.metrics.render()
        assert b"crucible_streams_started_total{" not in other.metrics.render()
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_refusals_are_counted_by_their_code() -> None:
    metrics = Metrics()
    metrics.refused.labels("overloaded").inc()
    assert b'crucible_requests_refused_total{code="overloaded"} 1.0\n' in metrics.render()
