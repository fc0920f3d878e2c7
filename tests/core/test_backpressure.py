"""Promise 3: bounded memory, no dropping."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.engine import Finish, Reasoning, Request
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import AnyRecord, OutputDelta, ReasoningDelta, StreamCompleted, decode_frame

LETTERS = [f"{number:03}" for number in range(400)]


def tokens_in(frames: list[bytes]) -> int:
    """How many of `LETTERS` these frames hold."""
    records = map(decode_frame, frames)
    return sum(len(record.delta) // 3 for record in records if isinstance(record, OutputDelta | ReasoningDelta))


@pytest.mark.parametrize("buffer", [1, 2, 5, 64])
async def test_without_a_reader_a_full_buffer_and_one_in_hand_are_made(
    buffer: int, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*LETTERS)
    async with open_pipeline(engine, Settings(buffer_tokens=buffer)) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(60)
        assert len(engine.made) == buffer + 1
        assert len(engine.written) == buffer
        assert stream.paused
        assert stream.log.head == 1


@pytest.mark.parametrize("buffer", [1, 2, 5, 64])
async def test_an_engine_runs_at_most_two_buffers_and_one_ahead_of_its_reader(
    buffer: int, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*LETTERS)
    ahead, handed_over, text = [], 0, []
    async with open_pipeline(engine, Settings(buffer_tokens=buffer)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            position = 0
            while not reader.at_end:
                await reader.wait()
                taken = reader.take(1)  # one record is taken and the reader stalls with it in hand
                await wait_all_tasks_blocked()
                ahead.append(len(engine.made) - handed_over)
                text += [r.delta for r in map(decode_frame, taken) if isinstance(r, OutputDelta)]
                handed_over += tokens_in(taken)
                position += len(taken)
                reader.passed(position)
                await wait_all_tasks_blocked()
    assert max(ahead) == 2 * buffer + 1
    assert "".join(text) == "".join(LETTERS)


async def test_the_bound_holds_over_changes_between_trace_and_answer(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    pieces = [Reasoning(letter, 0) if number % 3 else letter for number, letter in enumerate(LETTERS)]
    engine = scripted(*pieces)
    handed_over = position = 0
    async with open_pipeline(engine, Settings(buffer_tokens=4)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            while not reader.at_end:
                await reader.wait()
                taken = reader.take(1)
                await wait_all_tasks_blocked()
                assert len(engine.made) - handed_over <= 2 * 4 + 1
                handed_over += tokens_in(taken)
                position += len(taken)
                reader.passed(position)
    assert handed_over == len(LETTERS)


async def test_a_slow_second_reader_never_holds_the_first(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*LETTERS)
    async with open_pipeline(engine, Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as slow:
            await anext(slow)  # and never again, for now
            async with stream.attach() as fast:
                first = [record async for record in fast]
            assert stream.status == "completed"
            rest = [record async for record in slow]  # it can catch up: nothing was dropped
        assert rest == first[1:]
        assert "".join(r.delta for r in first if isinstance(r, OutputDelta)) == "".join(LETTERS)


async def test_without_readers_continue_is_not_held(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*LETTERS)
    async with open_pipeline(engine, Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        assert not stream.paused
        assert stream.snapshot().output == "".join(LETTERS)
        assert stream.status == "completed"


async def test_a_reader_that_attaches_behind_stops_a_running_continue_until_it_has_caught_up(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    steps = [step for letter in LETTERS for step in (letter, 1.0)]
    engine = scripted(*steps)
    async with open_pipeline(engine, Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(20.5)
        assert len(engine.made) == 21
        async with stream.attach(after=10) as reader:
            await trio.sleep(100)
            held = len(engine.made)
            assert held <= 21 + 2 * 2 + 1
            for _ in range(10):
                await anext(reader)
            await trio.sleep(100)
            assert len(engine.made) == held  # the last records are not handed over yet
            for _ in range(3):
                await anext(reader)
            await trio.sleep(100)
            assert len(engine.made) > held


async def test_a_reader_that_attaches_at_the_head_does_not_stop_it(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 1, "b", 1, "c")
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach(after=1):
            await trio.sleep(0.5)
            assert stream.log.head == 2


async def test_who_keeps_up_gets_token_by_token(
    scripted: Callable, read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    engine = scripted("a", 1, "b", 1, "c", 1)
    async with open_pipeline(engine) as pipeline:
        records = await read_to_end(await pipeline.start(Request("q")))
    assert [record.delta for record in records if isinstance(record, OutputDelta)] == ["a", "b", "c"]


async def test_who_lags_gets_fewer_larger_records_and_loses_nothing(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*[step for letter in LETTERS[:100] for step in (letter, 0.1)])
    async with open_pipeline(engine, Settings(buffer_tokens=8)) as pipeline:
        stream = await pipeline.start(Request("q"))
        deltas = []
        async with stream.attach() as reader:
            async for record in reader:
                deltas += [record.delta] if isinstance(record, OutputDelta) else []
                await trio.sleep(1)
    assert "".join(deltas) == "".join(LETTERS[:100])
    assert len(deltas) < 25


async def at_once(request: Request, output: Output) -> Finish:
    """An engine of many tasks: a hundred pieces are ready in one pass of the scheduler."""
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(output.delta, "x")
    return Finish()


async def test_what_comes_in_a_burst_is_merged_into_records_of_a_buffer_at_most(
    read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    async with open_pipeline(at_once, Settings(buffer_tokens=8)) as pipeline:
        records = await read_to_end(await pipeline.start(Request("q")))
    lengths = [len(record.delta) for record in records if isinstance(record, OutputDelta)]
    assert sum(lengths) == 100
    assert max(lengths[:-1]) == 8  # the last append takes what is left
    assert len(lengths) <= 2 + 100 / 8


async def test_a_burst_that_nobody_holds_back_is_merged_too(autojump_clock: MockClock) -> None:
    async with open_pipeline(at_once) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(2)
        assert stream.snapshot().output == "x" * 100
        assert stream.log.head <= 2 + 1 + 3  # both ends, the first token, and what came behind it


async def test_what_comes_alone_waits_behind_what_is_in_the_buffer(autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        for _ in range(30):  # the scheduler's order is random: now the rest of the burst is recorded first, now not
            await output.delta("a")
            await output.delta("b")
            await trio.lowlevel.checkpoint()
            await output.delta("c")
            await trio.sleep(1)
        return Finish()

    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(60)
        assert stream.snapshot().output == "abc" * 30


async def test_a_record_never_changes_once_it_is_in_the_log(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*LETTERS)
    async with open_pipeline(engine, Settings(buffer_tokens=3)) as pipeline:
        stream = await pipeline.start(Request("q"))
        before: list[bytes] = []
        async with stream.attach() as reader:
            async for _ in reader:
                now = stream.log.read(0)
                assert now[: len(before)] == before
                before = now
    assert isinstance(decode_frame(before[-1]), StreamCompleted)
