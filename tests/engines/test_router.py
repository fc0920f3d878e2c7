"""Several engines behind one pipeline: the model decides, and capabilities and metrics stay with their engine."""

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.engine import Capabilities, EngineInfo, Finish, engine_of
from crucible_trio.engines.router import RouterEngine
from crucible_trio.errors import InvalidRequestError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request, Sampling
from crucible_trio.testing import ScriptedEngine


async def text_from(pipeline: Pipeline, request: Request) -> str:
    stream = await pipeline.start(request, on_disconnect="continue")
    async with stream.attach() as reader:
        async for _ in reader:
            pass
    assert stream.status == "completed"
    return stream.snapshot().output


@pytest.fixture
def router() -> RouterEngine:
    return RouterEngine(
        [
            ScriptedEngine("small answer", name="one", models=["small"], sampling=["seed"]),
            ScriptedEngine("large answer", name="two", models=["large", "small"]),
        ]
    )


async def test_the_model_picks_the_engine_and_the_first_engine_wins(
    router: RouterEngine, autojump_clock: MockClock
) -> None:
    async with open_pipeline(router) as pipeline:
        assert await text_from(pipeline, Request("q")) == "small answer"
        assert await text_from(pipeline, Request("q", model="small")) == "small answer"
        assert await text_from(pipeline, Request("q", model="large")) == "large answer"


async def test_a_models_capabilities_are_those_of_its_engine(router: RouterEngine, autojump_clock: MockClock) -> None:
    async with open_pipeline(router) as pipeline:
        seeded = Request("q", model="small", sampling=Sampling(seed=1))
        assert await text_from(pipeline, seeded) == "small answer"
        with pytest.raises(InvalidRequestError, match=r"large.*sampling.seed") as refusal:
            await pipeline.start(Request("q", model="large", sampling=Sampling(seed=1)))
        assert refusal.value.param == "sampling.seed"
        with pytest.raises(InvalidRequestError, match=r"'lost'. Available: small, large"):
            await pipeline.start(Request("q", model="lost"))


async def test_metrics_name_the_engine_behind_the_router(router: RouterEngine, autojump_clock: MockClock) -> None:
    async with open_pipeline(router) as pipeline:
        for model in ("small", "large", "large"):
            await text_from(pipeline, Request("q", model=model))
        await trio.sleep(1)
        assert {name: numbers.ended["completed"] for name, numbers in pipeline.metrics.engines.items()} == {
            "one": 1,
            "two": 2,
        }
        assert pipeline.metrics.engine("two").pieces["standard"] == 2


def test_a_router_may_route_to_a_router(router: RouterEngine) -> None:
    outer = RouterEngine([ScriptedEngine(name="three"), router])
    assert outer.info.models == ("three", "small", "large")
    assert engine_of(outer, "large").info.name == "two"


def test_a_model_that_appears_later_is_routed() -> None:
    class LateEngine:
        info = EngineInfo(name="late", models=())

        async def generate(self, request: Request, output: Output) -> Finish:
            raise AssertionError

    late = LateEngine()
    router = RouterEngine([ScriptedEngine(name="three"), late])
    assert router.info.models == ("three",)
    late.info = EngineInfo(name="late", models=("new",), capabilities=Capabilities(tools=True))
    assert router.info.models == ("three", "new")
    assert router.info.capabilities_of("new").tools
    assert router.engine_of("new") is late


@pytest.mark.parametrize("engines", [[], [ScriptedEngine(name="same"), ScriptedEngine(name="same", models=["other"])]])
def test_a_router_needs_engines_with_different_names(engines: list[ScriptedEngine]) -> None:
    with pytest.raises(ValueError, match="engine"):
        RouterEngine(engines)


def test_an_unknown_model_is_a_lookup_error(router: RouterEngine) -> None:
    with pytest.raises(LookupError, match="lost"):
        router.engine_of("lost")


class Changing:
    """An engine whose models come and go."""

    def __init__(self, name: str, *models: str) -> None:
        self.name = name
        self.models = models

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(name=self.name, models=self.models)

    async def generate(self, request: Request, output: Output) -> Finish:
        await output.delta("a")
        await trio.sleep(1)
        await output.delta("b")
        return Finish()


async def test_a_model_may_go_while_its_stream_runs(autojump_clock: MockClock) -> None:
    leaving = Changing("leaving", "old")
    async with open_pipeline(RouterEngine([Changing("staying", "new"), leaving])) as pipeline:
        streams = [
            await pipeline.start(Request("q", model=model), on_disconnect="continue") for model in ("new", "old")
        ]
        await trio.sleep(0.5)
        leaving.models = ()
        await trio.sleep(1)
        assert [stream.status for stream in streams] == ["completed", "completed"]
        assert pipeline.metrics.engine("leaving").ended["completed"] == 1
        assert pipeline.store.running == 0


async def test_without_any_model_a_start_is_refused(autojump_clock: MockClock) -> None:
    async with open_pipeline(RouterEngine([Changing("empty")])) as pipeline:
        with pytest.raises(InvalidRequestError) as refusal:
            await pipeline.start(Request("q"))
        assert refusal.value.param == "model"
