import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from crucible_trio.checks import check_request
from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, EngineInfo, Finish, as_engine
from crucible_trio.errors import EngineError, InvalidRequestError
from crucible_trio.output import Output, Token
from crucible_trio.records import Usage
from crucible_trio.request import Deadlines, Message, Request, Sampling

INFO = EngineInfo(name="e", models=("small", "large"), capabilities=Capabilities(capabilities=Capabilities(sampling=frozenset({"seed"}))))


async def run_engine(source: Callable[..., object], **fields: object) -> tuple[Finish, list[Token]]:
    send, receive = trio.open_memory_channel[Token](99)
    finish = await as_engine(source).generate(Request("q", **fields), Output(send))  # type: ignore[arg-type]
    send.close()
    return finish, [token async for token in receive]


# Kinds of engines


async def test_an_engine_object_is_used_unchanged(scripted: Callable[..., object], autojump_clock: MockClock) -> None:
    engine = scripted("x")
    assert as_engine(engine) is engine  # type: ignore[arg-type]


async def test_a_coroutine_function_becomes_an_engine_with_one_model_named_after_it(autojump_clock: MockClock) -> None:
    async def parrot(request: Request, output: Output) -> Finish:
        await output.delta(request.messages[0].content)
        return Finish("length", Usage(1, 2))

    assert as_engine(parrot).info == EngineInfo(
        name="parrot", models=("parrot",), capabilities=Capabilities(sampling=frozenset())
    )
    assert await run_engine(parrot) == (Finish("length", Usage(1, 2)), [Token("q", None)])
    assert await run_engine(partial(parrot)) == (Finish("length", Usage(1, 2)), [Token("q", None)])


async def test_an_async_generator_yields_reasoning_text_and_optionally_a_finish(autojump_clock: MockClock) -> None:
    async def thinker(request: Request) -> AsyncIterator[str | Reasoning | Finish]:
        yield Reasoning("Hm", 0)
        yield Reasoning("!")
        yield Reasoning("So", 1)
        yield "Yes"
        if request.mode == "deep":
            yield Finish("length", Usage(1, 2, 3))
            yield "never"

    tokens = [Token("Hm", 0), Token("!", 0), Token("So", 1), Token("Yes", None)]
    assert as_engine(thinker).info.models == ("thinker",)
    assert await run_engine(thinker) == (Finish("stop", Usage()), tokens)
    assert await run_engine(thinker, mode="deep") == (Finish("length", Usage(1, 2, 3)), tokens)


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
    assert await run_engine(crowd) == (Finish("stop", Usage(output_tokens=2)), [Token("a", None), Token("b", None)])
    assert ended == [True]


@pytest.mark.parametrize("pieces", [[], [""], [Reasoning("")], ["", Reasoning("", 0)]])
async def test_a_generator_without_a_piece_fails_with_empty_output(
    pieces: list[str], autojump_clock: MockClock
) -> None:
    async def silent(request: Request) -> AsyncIterator[str]:
        for piece in pieces:
            yield piece

    with pytest.raises(EngineError) as failure:
        await run_engine(silent)
    assert failure.value.code == "empty_output"


@pytest.mark.parametrize("piece", ["x", Reasoning("x")])
async def test_one_piece_of_either_kind_counts_as_output(piece: str, autojump_clock: MockClock) -> None:
    async def terse(request: Request) -> AsyncIterator[str]:
        yield piece
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
    with pytest.raises(TypeError, match="is no engine"):
        as_engine(source)  # type: ignore[arg-type]


# Fields of a request


def test_a_request_has_the_documented_defaults() -> None:
    request = Request("q")
    assert request.messages == (Message("user", "q"),)
    assert (request.mode, request.model, request.trace) == ("standard", None, "segments")
    assert (request.max_output_tokens, request.on_disconnect, request.grace_seconds) == (None, None, None)
    assert request.sampling == Sampling()
    assert request.deadlines == Deadlines()
    conversation = (Message("system", "s"), Message("user", "u"))
    assert Request(conversation).messages == conversation


WRONG_FIELDS: list[dict[str, object]] = [
    {"input": ""},
    {"input": ()},
    {"input": (Message("user", ""),)},
    {"input": (Message("robot", "x"),)},  # type: ignore[arg-type]
    {"input": 5},
    {"mode": "quick"},
    {"max_output_tokens": 0},
    {"trace": "some"},
    {"on_disconnect": "explode"},
    {"grace_seconds": -1},
    {"deadlines": Deadlines(idle_seconds=-1)},
    {"sampling": Sampling(temperature=2.1)},
    {"sampling": Sampling(top_p=0)},
    {"sampling": Sampling(seed=-1)},
    {"sampling": Sampling(seed=2**32)},
    {"sampling": Sampling(stop=("",))},
    {"sampling": Sampling(stop=("x",) * 17)},
]


@pytest.mark.parametrize("fields", WRONG_FIELDS)
def test_a_value_out_of_its_range_is_refused_at_construction(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at `\$"):
        Request(**{"input": "q", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", WRONG_FIELDS)
def test_the_same_rules_apply_to_a_json_request(fields: dict[str, object]) -> None:
    body = msgspec.json.encode({"input": "q", **fields})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=Request)


def test_an_unknown_field_is_refused_and_named() -> None:
    for body in (b'{"input":"q","inputs":1}', b'{"input":"q","sampling":{"inputs":1}}'):
        with pytest.raises(msgspec.ValidationError, match="`inputs`"):
            msgspec.json.decode(body, type=Request)


def test_sampling_lists_the_fields_that_were_given() -> None:
    assert Sampling().given == frozenset()
    assert Sampling(temperature=0, seed=0, stop=()).given == {"temperature", "seed", "stop"}


# Requests that an engine or the server refuses


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "huge"}, "model"),
        ({"sampling": Sampling(temperature=1)}, "sampling.temperature"),
        ({"sampling": Sampling(seed=1, top_p=0.5)}, "sampling.top_p"),
        ({"max_output_tokens": 11}, "max_output_tokens"),
        ({"grace_seconds": 21}, "grace_seconds"),
        ({"deadlines": Deadlines(first_token_seconds=31)}, "deadlines.first_token_seconds"),
        ({"deadlines": Deadlines(idle_seconds=31)}, "deadlines.idle_seconds"),
        ({"deadlines": Deadlines(total_seconds=31)}, "deadlines.total_seconds"),
    ],
)
def test_an_unsupported_field_is_refused_and_named(fields: dict[str, object], param: str) -> None:
    settings = Settings(max_output_tokens=10, max_grace_seconds=20, max_deadline_seconds=30)
    with pytest.raises(InvalidRequestError, match=param) as refusal:
        check_request(Request("q", **fields), INFO, settings)  # type: ignore[arg-type]
    assert refusal.value.param == param


def test_values_at_the_maximum_are_accepted() -> None:
    settings = Settings(max_output_tokens=10, max_grace_seconds=20, max_deadline_seconds=30)
    request = Request(
        "q",
        model="large",
        max_output_tokens=10,
        grace_seconds=20,
        sampling=Sampling(seed=1),
        deadlines=Deadlines(30, 30, 30),
    )
    check_request(request, INFO, settings)
    check_request(Request("q"), INFO, settings)


@given(st.text(min_size=1), st.sampled_from(["standard", "deep"]), st.none() | st.integers(1, 100))
def test_a_request_survives_json(text: str, mode: str, limit: int | None) -> None:
    request = Request(text, mode=mode, max_output_tokens=limit, sampling=Sampling(stop=("a", "b")))  # type: ignore[arg-type]
    assert msgspec.json.decode(msgspec.json.encode(request), type=Request) == request
