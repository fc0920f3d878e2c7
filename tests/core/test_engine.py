import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.batching import Batcher
from crucible_trio.content import Piece, Reasoning, Refusal, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.engine import (
    Capabilities,
    CountsAbandonedThreads,
    Engine,
    EngineInfo,
    Finish,
    RoutesModels,
    as_engine,
    engine_of,
)
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Request
from crucible_trio.timers import Timers


class BufferOnly:
    """A sink that lets every piece go through the buffer."""

    def record_now(self, piece: Piece) -> bool:
        return False

    def piece_buffered(self) -> None:
        pass

    def tokens_counted(self, total: int) -> None:
        raise AssertionError


async def run_engine(
    source: Callable[..., object], written: list[Piece] | None = None, **fields: object
) -> tuple[Finish, list[Piece]]:
    """Call an engine. `written` gets its pieces even if it fails."""
    pieces: list[Piece] = [] if written is None else written
    send, receive = trio.open_memory_channel[Piece](99)
    output = Output(send, Batcher(Timers()), BufferOnly())
    try:
        finish = await as_engine(source).generate(Request("q", **fields), output)  # type: ignore[arg-type]
    finally:
        while receive.statistics().current_buffer_used:
            pieces.append(receive.receive_nowait())
    return finish, pieces


# Kinds of engines


async def test_an_engine_object_is_used_unchanged(scripted: Callable[..., object], autojump_clock: MockClock) -> None:
    engine = scripted("x")
    assert as_engine(engine) is engine  # type: ignore[arg-type]


async def test_a_coroutine_function_becomes_an_engine_with_one_model_named_after_it(autojump_clock: MockClock) -> None:
    async def parrot(request: Request, output: Output) -> Finish:
        await output.delta(request.messages[0].text)
        return Finish("length", Usage(1, 2))

    assert as_engine(parrot).info == EngineInfo(name="parrot", models=("parrot",), capabilities=Capabilities())
    assert await run_engine(parrot) == (Finish("length", Usage(1, 2)), [Text("q")])
    assert await run_engine(partial(parrot)) == (Finish("length", Usage(1, 2)), [Text("q")])


async def test_an_async_generator_yields_reasoning_text_and_optionally_a_finish(autojump_clock: MockClock) -> None:
    async def thinker(request: Request) -> AsyncIterator[str | Reasoning | Finish]:
        yield Reasoning("Hm", 0)
        yield Reasoning("!")
        yield Reasoning("So", 1)
        yield "Yes"
        if request.mode == "deep":
            yield Finish("length", Usage(1, 2, 3))
            yield "never"

    pieces = [Reasoning("Hm", 0), Reasoning("!", 0), Reasoning("So", 1), Text("Yes")]
    assert as_engine(thinker).info.models == ("thinker",)
    assert await run_engine(thinker) == (Finish("stop", Usage()), pieces)
    assert await run_engine(thinker, mode="deep") == (Finish("length", Usage(1, 2, 3)), pieces)


async def test_a_generator_is_closed_when_it_is_left_early(autojump_clock: MockClock) -> None:
    closed = []

    async def finisher(request: Request) -> AsyncIterator[str | Finish]:
        try:
            yield "x"
            yield Finish()
        finally:
            closed.append("finish")

    async def sleeper(request: Request) -> AsyncIterator[str]:
        try:
            yield "x"
            await trio.sleep_forever()
        finally:
            closed.append("cancel")

    await run_engine(finisher)
    assert closed == ["finish"]
    with trio.move_on_after(1):
        await run_engine(sleeper)
    assert closed == ["finish", "cancel"]


async def test_a_generator_that_holds_a_nursery_is_wrapped_as_a_safe_channel(autojump_clock: MockClock) -> None:
    ended = []

    @trio.as_safe_channel
    async def crowd(request: Request) -> AsyncIterator[str | Finish]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                yield "a"
                await trio.sleep(1)
                yield "b"
                yield Finish("stop", Usage(output_tokens=2))
            finally:
                ended.append(True)

    assert as_engine(crowd).info.models == ("crowd",)
    assert await run_engine(crowd) == (Finish("stop", Usage(output_tokens=2)), [Text("a"), Text("b")])
    assert ended == [True]


@pytest.mark.parametrize(
    "pieces",
    [[], [""], [Reasoning("")], ["", Reasoning("", 0)], [Text("")], [Text("", [])], [Refusal("")], [Refusal(""), ""]],
)
async def test_a_generator_without_a_piece_fails_with_empty_output(
    pieces: list[object], autojump_clock: MockClock
) -> None:
    async def silent(request: Request) -> AsyncIterator[object]:
        for piece in pieces:
            yield piece

    with pytest.raises(EngineError) as failure:
        await run_engine(silent)
    assert failure.value.code == "empty_output"


@pytest.mark.parametrize(
    "piece", ["x", Text("x"), Text("", [-0.5]), Reasoning("x"), Refusal("x"), ToolCallStart("call_1", "weather")]
)
async def test_one_piece_of_any_kind_counts_as_output(piece: object, autojump_clock: MockClock) -> None:
    async def terse(request: Request) -> AsyncIterator[object]:
        yield piece
        if isinstance(piece, ToolCallStart):
            yield ToolCallEnd()
        yield ""

    assert (await run_engine(terse))[0] == Finish()


async def test_a_generator_that_yields_a_finish_may_yield_no_piece(autojump_clock: MockClock) -> None:
    async def silent(request: Request) -> AsyncIterator[Finish]:
        yield Finish()

    assert await run_engine(silent) == (Finish(), [])


@pytest.mark.parametrize("wrong", [7, None, b"x", ["x"]])
async def test_a_generator_that_yields_a_wrong_type_breaks_the_protocol(
    wrong: object, autojump_clock: MockClock
) -> None:
    async def broken(request: Request) -> AsyncIterator[object]:
        yield wrong

    with pytest.raises(EngineError) as failure:
        await run_engine(broken)
    assert failure.value.code == "engine_protocol"
    assert failure.value.message == f"The engine yielded a {type(wrong).__name__}."


def plain(request: Request, output: Output) -> Finish:
    return Finish()


def plain_generator(request: Request) -> object:
    yield "x"


@contextlib.contextmanager
def context(request: Request) -> object:
    yield "x"


@pytest.mark.parametrize("source", [plain, plain_generator, context, None, 5, "engine", object()])
def test_an_object_that_is_not_an_engine_is_refused(source: object) -> None:
    with pytest.raises(TypeError, match="is not an engine"):
        as_engine(source)  # type: ignore[arg-type]


# Each kind of content from a generator


async def generated(*pieces: object) -> list[Piece]:
    """The output of a generator that yields these pieces."""

    async def generator(request: Request) -> AsyncIterator[object]:
        for piece in pieces:
            yield piece

    _, written = await run_engine(generator)
    return written


async def test_a_generator_yields_every_kind_of_content(autojump_clock: MockClock) -> None:
    assert await generated(
        Reasoning("Hm", 0),
        "a",
        Text("b"),
        Text("c", [{"token": "c", "logprob": -0.5}]),
        ToolCallStart("call_1", "weather"),
        ToolCallArguments('{"city":'),
        ToolCallArguments('"Oslo"}'),
        ToolCallEnd(),
        ToolCallStart("call_2", "time"),
        ToolCallEnd(),
        Refusal("No."),
    ) == [
        Reasoning("Hm", 0),
        Text("a"),
        Text("b"),
        Text("c", [{"token": "c", "logprob": -0.5}]),
        ToolCallStart("call_1", "weather"),
        ToolCallArguments('{"city":'),
        ToolCallArguments('"Oslo"}'),
        ToolCallEnd(),
        ToolCallStart("call_2", "time"),
        ToolCallEnd(),
        Refusal("No."),
    ]


@pytest.mark.parametrize("end", [[], [Finish("tool_calls")]])
async def test_a_call_that_is_open_at_the_end_is_not_whole(end: list[Finish], autojump_clock: MockClock) -> None:
    pieces = [ToolCallStart("call_1", "weather"), ToolCallArguments("{")]
    assert await generated(*pieces, *end) == pieces


async def test_a_call_that_the_generators_error_interrupts_is_not_whole(autojump_clock: MockClock) -> None:
    async def failing(request: Request) -> AsyncIterator[object]:
        yield ToolCallStart("call_1", "weather")
        yield ToolCallArguments("{")
        raise EngineError("busy", "Later.")

    written: list[Piece] = []
    with pytest.raises(EngineError, match="busy"):
        await run_engine(failing, written)
    assert written == [ToolCallStart("call_1", "weather"), ToolCallArguments("{")]


@pytest.mark.parametrize("piece", [ToolCallArguments("{"), ToolCallEnd()])
@pytest.mark.parametrize("before", [[], ["a"], [ToolCallStart("call_1", "weather"), ToolCallEnd()]])
async def test_arguments_and_an_end_without_a_start_break_the_protocol(
    piece: object, before: list[object], autojump_clock: MockClock
) -> None:
    with pytest.raises(EngineError) as failure:
        await generated(*before, piece)
    assert failure.value.code == "engine_protocol"
    assert failure.value.message == f"The engine yielded {type(piece).__name__} without ToolCallStart."


@pytest.mark.parametrize("piece", ["x", Text("x", [1]), Reasoning("x"), Refusal("x"), ToolCallStart("call_2", "time")])
async def test_anything_else_inside_a_call_is_an_error(piece: object, autojump_clock: MockClock) -> None:
    with pytest.raises(RuntimeError, match="a tool call is open"):
        await generated(ToolCallStart("call_1", "weather"), piece)


# What engines may do beyond the contract


class Alone:
    def __init__(self, name: str) -> None:
        self.info = EngineInfo(name=name, models=(name,))

    async def generate(self, request: Request, output: Output) -> Finish:
        return Finish()


class Router(Alone):
    def __init__(self, **engines: Engine) -> None:
        super().__init__("router")
        self.engines = engines

    def engine_of(self, model: str) -> Engine:
        return self.engines[model]


def test_the_engine_of_a_model_is_found_through_every_router() -> None:
    small, large = Alone("small"), Alone("large")
    router = Router(small=small, large=Router(large=large))
    assert isinstance(router, RoutesModels)
    assert not isinstance(small, RoutesModels)
    assert engine_of(router, "small") is small
    assert engine_of(router, "large") is large
    assert engine_of(small, "any") is small


def test_an_engine_may_count_the_threads_that_it_has_abandoned() -> None:
    engine = Alone("threaded")
    assert not isinstance(engine, CountsAbandonedThreads)
    engine.abandoned_threads = 2  # type: ignore[attr-defined]
    assert isinstance(engine, CountsAbandonedThreads)


def test_a_model_has_the_engines_capabilities_unless_it_declares_its_own() -> None:
    info = EngineInfo(
        name="e",
        models=("small", "large"),
        capabilities=Capabilities(logprobs=True),
        by_model={"large": Capabilities(tools=True)},
    )
    assert info.capabilities_of("small") == Capabilities(logprobs=True)
    assert info.capabilities_of("large") == Capabilities(tools=True)


def test_a_model_understands_nothing_unless_its_engine_says_so() -> None:
    capabilities = Capabilities()
    assert capabilities == EngineInfo(name="e", models=("m",)).capabilities_of("m")
    assert not any(getattr(capabilities, name) for name in capabilities.__slots__)
