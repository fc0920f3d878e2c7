"""The numbers of a pipeline as Prometheus reads them."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from crucible_trio.apis.operations.prometheus import PipelineCollector, families, render, render_families
from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.engines.router import RouterEngine
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request
from crucible_trio.testing import ScriptedEngine
from crucible_trio.totals import add


class ThreadedEngine:
    """An engine that left two threads behind."""

    info = EngineInfo(name="threaded", models=("slow",))
    abandoned_threads = 2

    async def generate(self, request: Request, output: Output) -> Finish:
        return Finish()


def samples(pipeline: Pipeline) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(render(pipeline).decode())
    return {
        (sample.name.removeprefix("crucible_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


async def test_engines_behind_a_router_have_their_own_numbers(autojump_clock: MockClock) -> None:
    router = RouterEngine([ScriptedEngine("a", "b", name="fast", models=["small"]), ThreadedEngine()])
    async with open_pipeline(router) as pipeline:
        for model in ("small", "small", "slow"):
            stream = await pipeline.start(Request("q", model=model))
            async with stream.attach() as reader:
                assert [record async for record in reader]
        numbers = samples(pipeline)
    assert numbers["streams_started_total", "fast", "standard"] == 2
    assert numbers["streams_started_total", "threaded", "standard"] == 1
    assert numbers["streams_ended_total", "fast", "completed"] == 2
    assert numbers["pieces_total", "fast", "standard"] == 4
    assert numbers["pieces_total", "threaded", "standard"] == 0
    assert (numbers["abandoned_threads", "fast"], numbers["abandoned_threads", "threaded"]) == (0, 2)
    assert numbers["first_token_seconds_count", "fast"] == 2
    assert numbers["first_token_seconds_bucket", "fast", "0.05"] == 2
    assert numbers["first_token_seconds_bucket", "fast", "+Inf"] == 2
    assert numbers["first_token_seconds_count", "threaded"] == 0
    assert not any(name[1:2] == ("router",) for name in numbers)


async def test_engines_with_one_name_behind_nested_routers_share_their_numbers(autojump_clock: MockClock) -> None:
    inner = RouterEngine([ThreadedEngine()])
    router = RouterEngine([ThreadedEngine(), inner])
    async with open_pipeline(router) as pipeline:
        lines = render(pipeline).decode().splitlines()
        assert samples(pipeline)["abandoned_threads", "threaded"] == 4
    assert len({line.partition(" ")[0] for line in lines if not line.startswith("#")}) == len(
        [line for line in lines if not line.startswith("#")]
    )


async def test_an_engine_that_loses_all_its_models_keeps_its_numbers(autojump_clock: MockClock) -> None:
    leaving = ScriptedEngine("a", name="leaving", models=["old"])
    router = RouterEngine([ThreadedEngine(), leaving])
    async with open_pipeline(router) as pipeline:
        stream = await pipeline.start(Request("q", model="old"))
        async with stream.attach() as reader:
            assert [record async for record in reader]
        leaving.info = EngineInfo(name="leaving", models=(), is_up=False)
        numbers = samples(pipeline)
        assert numbers["pieces_total", "leaving", "standard"] == 1
        assert numbers["abandoned_threads", "leaving"] == 0
        assert numbers["upstream_up", "leaving"] == 0
        assert ("upstream_up", "threaded") not in numbers
        router.engines = router.engines[:1]
        assert samples(pipeline)["pieces_total", "leaving", "standard"] == 1


async def test_an_engine_without_a_model_has_its_numbers_too(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(name="late")
    engine.info = EngineInfo(name="late", models=())
    async with open_pipeline(engine) as pipeline:
        assert samples(pipeline)["pieces_total", "late", "deep"] == 0


async def test_plain_values_render_as_the_collector_itself(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine("a", "b")
    engine.info = EngineInfo(name='b\n"c\\', models=("m",), is_up=True)
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            assert [record async for record in reader]
        pipeline.metrics.refused["not_found"] += 2
        registry = CollectorRegistry()
        registry.register(PipelineCollector(pipeline))
        assert render(pipeline) == generate_latest(registry)


async def test_the_metrics_of_two_processes_add_up(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine("a", "b")
    engine.info = EngineInfo(name="e", models=("m",), is_up=True)
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            assert [record async for record in reader]
        up = families(pipeline)
        engine.info = EngineInfo(name="e", models=("m",), is_up=False)
        text = render_families(add(up, families(pipeline))).decode()
    lines = text.splitlines()
    assert 'crucible_pieces_total{engine="e",mode="standard"} 4.0' in lines
    assert 'crucible_first_token_seconds_bucket{engine="e",le="+Inf"} 2.0' in lines
    assert 'crucible_upstream_up{engine="e"} 0.0' in lines
    assert "# TYPE crucible_upstream_up gauge" in lines
    assert "crucible_streams_kept 2.0" in lines
