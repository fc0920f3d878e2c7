"""Several engines with one model: the next one takes over while nothing has been written."""

from __future__ import annotations

import logging
import math

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.apis.operations.prometheus import render
from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, Engine, EngineInfo, Finish
from crucible_trio.engines.router import RouterEngine
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request, Sampling
from crucible_trio.stream import Stream
from crucible_trio.testing import ScriptedEngine

UNREACHABLE = EngineError("upstream_unreachable", "The upstream server is unreachable.", retryable=True)


def status(number: int) -> EngineError:
    return EngineError("upstream_rejected", f"Rejected (HTTP {number}).", status=number)


def engine(name: str, *steps: object, **options: object) -> ScriptedEngine:
    return ScriptedEngine(*steps, name=name, models=["m"], **options)  # type: ignore[arg-type]


async def run(pipeline: Pipeline, request: Request | None = None) -> Stream:
    stream = await pipeline.start(request or Request("q"), on_disconnect="continue")
    async with stream.attach() as reader:
        async for _ in reader:
            pass
    return stream


def code_of(stream: Stream) -> str:
    error = stream.snapshot().error
    assert error is not None
    return error.code


@pytest.mark.parametrize(
    "error",
    [
        UNREACHABLE,
        *map(status, (401, 403, 404, 429, 500, 503)),
        EngineError("upstream_invalid_response", "Not a stream."),
    ],
    ids=str,
)
async def test_before_the_first_piece_the_next_engine_takes_over(error: EngineError, autojump_clock: MockClock) -> None:
    first, second = engine("first", error), engine("second", "Blue")
    async with open_pipeline(RouterEngine([first, second])) as pipeline:
        stream = await run(pipeline)
    assert (stream.status, stream.snapshot().output) == ("completed", "Blue")
    assert (first.calls, second.calls) == (1, 1)


@pytest.mark.parametrize(
    "error", [*map(status, (400, 413, 422)), EngineError("upstream_rejected", "Said inside the stream.")], ids=str
)
async def test_an_error_that_blames_the_request_goes_to_the_client(
    error: EngineError, autojump_clock: MockClock
) -> None:
    second = engine("second", "Blue")
    async with open_pipeline(RouterEngine([engine("first", error), second])) as pipeline:
        assert code_of(await run(pipeline)) == "upstream_rejected"
    assert second.calls == 0


async def _tool_call(output: Output) -> None:
    async with output.tool_call("call_1", "weather"):
        raise UNREACHABLE


async def _refusal(output: Output) -> None:
    await output.refusal("I")


async def _answer(output: Output) -> None:
    await output.delta("I")


async def _logprobs(output: Output) -> None:
    await output.delta("", [{"token": ""}])


async def _trace(output: Output) -> None:
    await output.reasoning("I", 0)


@pytest.mark.parametrize("write", [_tool_call, _refusal, _answer, _logprobs, _trace])
async def test_after_the_first_piece_of_any_kind_no_other_engine_is_called(write, autojump_clock: MockClock) -> None:
    class Writing:
        info = EngineInfo(name="first", models=("m",))

        async def generate(self, request: Request, output: Output) -> Finish:
            await write(output)
            raise UNREACHABLE

    second = engine("second", "Blue")
    async with open_pipeline(RouterEngine([Writing(), second])) as pipeline:
        assert code_of(await run(pipeline)) == "upstream_unreachable"
    assert second.calls == 0


async def test_an_empty_piece_is_nothing_written(autojump_clock: MockClock) -> None:
    async with open_pipeline(RouterEngine([engine("first", "", UNREACHABLE), engine("second", "Blue")])) as pipeline:
        assert (await run(pipeline)).snapshot().output == "Blue"


async def test_the_error_of_the_last_engine_goes_to_the_client(autojump_clock: MockClock) -> None:
    last = EngineError("upstream_refused", "Overloaded.", retryable=True, status=429)
    engines = [engine("first", UNREACHABLE), engine("second", status(500)), engine("third", last)]
    async with open_pipeline(RouterEngine(engines)) as pipeline:
        assert code_of(await run(pipeline)) == "upstream_refused"


async def test_an_exception_that_is_no_engine_error_is_not_passed_on(autojump_clock: MockClock) -> None:
    second = engine("second", "Blue")
    async with open_pipeline(RouterEngine([engine("first", ValueError("a bug")), second])) as pipeline:
        assert code_of(await run(pipeline)) == "engine_error"
    assert second.calls == 0


async def test_a_cancelled_engine_is_not_replaced(autojump_clock: MockClock) -> None:
    second = engine("second", "Blue")
    async with open_pipeline(RouterEngine([engine("first", math.inf), second])) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(1)
        stream.cancel()
        await trio.sleep(1)
    assert stream.status == "cancelled"
    assert second.calls == 0


async def test_an_engine_knows_whether_another_one_is_left(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, bool]] = []

    class Failing:
        def __init__(self, name: str) -> None:
            self.info = EngineInfo(name=name, models=("m",))

        async def generate(self, request: Request, output: Output) -> Finish:
            seen.append((self.info.name, output.has_fallback))
            raise UNREACHABLE

    inner = RouterEngine([Failing("a"), Failing("b")])
    async with open_pipeline(RouterEngine([inner, Failing("c"), Failing("d")])) as pipeline:
        await run(pipeline)
    assert seen == [("a", True), ("b", True), ("c", True), ("d", False)]


async def test_an_engine_that_lacks_a_capability_does_not_take_over(autojump_clock: MockClock) -> None:
    without, able = engine("without", "Blue"), engine("able", "Red", sampling=["seed"])
    router = RouterEngine([engine("first", UNREACHABLE, sampling=["seed"]), without, able])
    async with open_pipeline(router) as pipeline:
        stream = await run(pipeline, Request("q", sampling=Sampling(seed=1)))
        assert stream.snapshot().output == "Red"
        assert without.calls == 0
        assert (await run(pipeline)).snapshot().output == "Blue"


class Late:
    """An engine whose server comes and goes."""

    def __init__(self, name: str, *, is_up: bool | None) -> None:
        self.info = EngineInfo(name=name, models=("m",), is_up=is_up)

    async def generate(self, request: Request, output: Output) -> Finish:
        await output.delta(self.info.name)
        return Finish()


@pytest.mark.parametrize(
    ("states", "chosen"),
    [((True, True), "a"), ((False, True), "b"), ((False, None), "b"), ((None, True), "a"), ((False, False), "a")],
)
async def test_a_server_that_is_down_is_asked_last(
    states: tuple[bool | None, bool | None], chosen: str, autojump_clock: MockClock
) -> None:
    engines: list[Engine] = [Late(name, is_up=is_up) for name, is_up in zip("ab", states, strict=True)]
    async with open_pipeline(RouterEngine(engines)) as pipeline:
        assert (await run(pipeline)).snapshot().output == chosen


async def test_metrics_and_log_name_the_engine_that_generated(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    secret = EngineError("upstream_error", "The upstream server failed (HTTP 500).", retryable=True, status=500)
    router = RouterEngine([engine("first", secret), engine("second", Reasoning("Hm", 0), "Blue")])
    async with open_pipeline(router) as pipeline:
        with caplog.at_level(logging.INFO):
            stream = await run(pipeline)
            await trio.sleep(1)
        first, second = pipeline.metrics.engine("first"), pipeline.metrics.engine("second")
        assert (first.started["standard"], first.failovers, sum(first.ended.values())) == (1, 1, 0)
        assert (second.started["standard"], second.failovers, second.ended["completed"]) == (0, 0, 1)
        assert (first.pieces["standard"], second.pieces["standard"]) == (0, 2)
        assert 'crucible_failovers_total{engine="first"} 1.0' in render(pipeline).decode()
    passed_on, ended = [record.getMessage() for record in caplog.records]
    assert passed_on == (
        "engine first failed before its first piece, trying the next one: "
        "upstream_error: The upstream server failed (HTTP 500)."
    )
    assert ended.startswith(f"stream {stream.id} ended: engine=second mode=standard status=completed")


async def test_a_model_that_has_gone_fails_its_stream(autojump_clock: MockClock) -> None:
    late = Late("late", is_up=True)
    async with open_pipeline(RouterEngine([late])) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue", starts_with_reader=True)
        late.info = EngineInfo(name="late", models=())
        async with stream.attach() as reader:
            assert [record async for record in reader]
    assert code_of(stream) == "engine_error"


def test_capabilities_that_both_have() -> None:
    one = Capabilities(tools=True, images=True, sampling=frozenset({"seed", "stop"}))
    other = Capabilities(tools=True, audio=True, sampling=frozenset({"seed", "top_p"}))
    assert one & other == Capabilities(tools=True, sampling=frozenset({"seed"}))
