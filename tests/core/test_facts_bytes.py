"""The memory of the requests that are kept with logs: counted as it is, shared messages once, and released in time."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from crucible_trio import Finish, Output, Settings, open_pipeline
from crucible_trio.errors import OverloadedError
from crucible_trio.request import Message, Parameters, Request, Sampling, Tool
from crucible_trio.store.facts_bytes import FactsBytes, held_bytes
from crucible_trio.stream import StreamFacts


def facts_of(stream_id: str, request: Request, *, keeps_input: bool = True, **more: Any) -> StreamFacts:
    return StreamFacts(
        id=stream_id, owner="", request=request, on_disconnect="pause", created_at=1.0, keeps_input=keeps_input, **more
    )


def add(account: FactsBytes, stream_id: str, *messages: Message, keeps_input: bool = True) -> int:
    return account.add(stream_id, account.measure(facts_of(stream_id, Request(messages), keeps_input=keeps_input)))


def many_tools() -> tuple[Tool, ...]:
    return tuple(Tool(f"f{number}", f"{number}" * 50, {"x": [number]}) for number in range(500))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Request("a" * 100_000),
        lambda: Request("a" * 100_000 + "\N{GRINNING FACE}"),
        lambda: Request("a" * 100_000 + "\N{CJK UNIFIED IDEOGRAPH-8336}"),
        lambda: Request("a", extra={"x": [{} for _ in range(5_000)]}),
        lambda: Request("a", extra={"x": [f"text {number}" for number in range(5_000)]}),
        lambda: Request("a", parameters=Parameters(tools=many_tools())),
        lambda: Request(tuple(Message("user", f"text {number}") for number in range(2_000))),
        lambda: Request("a", sampling=Sampling(logit_bias={str(number): number + 0.5 for number in range(3_000)})),
    ],
    ids=["ascii", "emoji", "chinese", "objects", "texts", "tools", "messages", "numbers"],
)
def test_a_request_counts_as_the_memory_that_it_takes(make: Callable[[], Request]) -> None:
    make()
    gc.collect()
    tracemalloc.start()
    try:
        request = make()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    counted = FactsBytes().measure(facts_of("s", request)).new_bytes
    assert 0.6 * taken < counted < 1.7 * taken


def test_facts_of_apis_count_by_their_length() -> None:
    plain, more = (facts_of("s", Request("a"), for_apis={"x": msgspec.Raw(b"1" * size)}) for size in (1, 5_001))
    assert FactsBytes().measure(more).new_bytes - FactsBytes().measure(plain).new_bytes == 5_000


def test_a_shared_message_counts_once_until_its_last_holder_is_gone() -> None:
    account = FactsBytes()
    first, second = Message("user", "a" * 1_000), Message("user", "b" * 2_000)
    alone = add(account, "1", first)
    both = add(account, "2", first, second)
    assert alone > held_bytes(first) > 1_000
    assert 2_000 < both < 3_000
    assert account.remove("1") == alone - held_bytes(first)
    assert account.remove("1") == 0
    assert account.remove("2") == both + held_bytes(first)


def test_an_equal_message_and_one_that_is_not_kept_count_again() -> None:
    account = FactsBytes()
    message = Message("user", "a" * 1_000)
    alone = add(account, "1", message)
    assert add(account, "2", Message("user", "a" * 1_000)) == alone
    assert add(account, "3", message, keeps_input=False) == pytest.approx(alone, abs=100)
    assert account.remove("3") == pytest.approx(alone, abs=100)


@pytest.mark.parametrize("keeps_input", [False, True])
async def test_a_request_is_released_when_its_generation_has_ended(
    keeps_input: bool, autojump_clock: MockClock
) -> None:
    held: list[Request] = []

    async def engine(request: Request, output: Output) -> Finish:
        await output.delta("a")
        await trio.sleep(10)
        held.append(request)
        return Finish()

    async with open_pipeline(engine, Settings(retention_seconds=100)) as pipeline:
        stream, _ = await pipeline.start_or_join(
            Request("q" * 5_000),
            None,
            owner="",
            on_disconnect="continue",
            starts_with_reader=False,
            keeps_input=keeps_input,
        )
        await trio.sleep(5)
        assert pipeline.store.log_bytes > 5_000
        assert stream.request.input == "q" * 5_000
        await trio.sleep(10)
        assert (pipeline.store.log_bytes > 5_000) is keeps_input
        assert len(stream.request.messages) == keeps_input
        assert stream.request.model == stream.facts.request.model == held[0].model
        assert held[0].input == "q" * 5_000
        await trio.sleep(100)
        assert pipeline.store.log_bytes == 0


async def test_a_message_whose_last_other_holder_is_evicted_counts_for_the_new_stream(
    autojump_clock: MockClock,
) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        return Finish()

    shared = Message("user", "a" * 20_000)
    async with open_pipeline(engine, Settings(total_log_bytes=50_000)) as pipeline:
        await pipeline.start(Request((shared,)), on_disconnect="continue")
        await trio.sleep(1)
        assert 20_000 < pipeline.store.log_bytes < 22_000
        with pytest.raises(OverloadedError):
            await pipeline.start(Request((shared, Message("user", "b" * 35_000))), on_disconnect="continue")
        assert (await pipeline.list(), pipeline.store.log_bytes) == ([], 0)
        await pipeline.start(Request((shared, Message("user", "b" * 15_000))), on_disconnect="continue")
        assert 35_000 < pipeline.store.log_bytes < 37_000
