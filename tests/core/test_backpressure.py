"""Promise 3: memory is bounded, and nothing is dropped."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import AnyRecord, OutputDelta, ReasoningDelta, StreamCompleted, decode_frame
from crucible_trio.request import Request

LETTERS = [f"{number:03}" for number in range(400)]


def pieces_in(frames: list[bytes]) -> int:
    """How many of `LETTERS` these frames hold."""
    records = map(decode_frame, frames)
    return sum(len(record.delta) // 3 for record in records if isinstance(record, OutputDelta | ReasoningDelta))


@pytest.mark.parametrize("buffer", [1, 2, 5, 64])
async def test_without_a_reader_an_engine_makes_a_full_buffer_and_one_piece_more(
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
    ahead, acknowledged, text = [], 0, []
    async with open_pipeline(engine, Settings(buffer_tokens=buffer)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            position = 0
            while not reader.at_end:
                await reader.wait()
                taken = reader.take(1)  # the reader takes one record and stalls before it acknowledges it
                await wait_all_tasks_blocked()
                ahead.append(len(engine.made) - acknowledged)
                text += [r.delta for r in map(decode_frame, taken) if isinstance(r, OutputDelta)]
                acknowledged += pieces_in(taken)
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
    acknowledged = position = 0
    async with open_pipeline(engine, Settings(buffer_tokens=4)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            while not reader.at_end:
                await reader.wait()
                taken = reader.take(1)
                await wait_all_tasks_blocked()
                assert len(engine.made) - acknowledged <= 2 * 4 + 1
                acknowledged += pieces_in(taken)
                position += len(taken)
                reader.passed(position)
    assert acknowledged == len(LETTERS)


async def test_a_slow_second_reader_never_slows_the_first(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*LETTERS)
    async with open_pipeline(engine, Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as slow:
            await anext(slow)  # this reader now stalls
            async with stream.attach() as fast:
                first = [record async for record in fast]
            assert stream.status == "completed"
            rest = [record async for record in slow]  # the slow reader catches up, because nothing was dropped
        assert rest == first[1:]
        assert "".join(r.delta for r in first if isinstance(r, OutputDelta)) == "".join(LETTERS)


async def test_continue_without_readers_runs_to_the_end(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*LETTERS)
    async with open_pipeline(engine, Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        assert not stream.paused
        assert stream.snapshot().output == "".join(LETTERS)
        assert stream.status == "completed"


async def test_a_reader_that_attaches_behind_the_head_holds_a_continue_stream_until_it_has_caught_up(
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
            assert len(engine.made) == held  # the last records are not acknowledged yet
            for _ in range(3):
                await anext(reader)
            await trio.sleep(100)
            assert len(engine.made) > held


async def test_a_reader_that_attaches_at_the_head_does_not_hold_the_engine(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 1, "b", 1, "c")
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach(after=1):
            await trio.sleep(0.5)
            assert stream.log.head == 2


async def test_a_reader_that_keeps_up_gets_one_record_per_piece(
    scripted: Callable, read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    engine = scripted("a", 1, "b", 1, "c", 1)
    async with open_pipeline(engine) as pipeline:
        records = await read_to_end(await pipeline.start(Request("q")))
    assert [record.delta for record in records if isinstance(record, OutputDelta)] == ["a", "b", "c"]


async def test_a_reader_that_lags_gets_fewer_larger_records_and_loses_nothing(
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


async def burst(request: Request, output: Output) -> Finish:
    """An engine with 100 tasks that write 100 pieces in one pass of the scheduler."""
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(output.delta, "x")
    return Finish()


async def test_a_burst_is_merged_into_records_of_at_most_one_buffer(
    read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    async with open_pipeline(burst, Settings(buffer_tokens=8)) as pipeline:
        records = await read_to_end(await pipeline.start(Request("q")))
    lengths = [len(record.delta) for record in records if isinstance(record, OutputDelta)]
    assert sum(lengths) == 100
    assert max(lengths[:-1]) == 8  # the last append takes all remaining pieces
    assert len(lengths) <= 2 + 100 / 8


async def test_a_burst_without_backpressure_is_merged_too(autojump_clock: MockClock) -> None:
    async with open_pipeline(burst) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(2)
        assert stream.snapshot().output == "x" * 100
        assert stream.log.head <= 2 + 1 + 3  # first and last record, the first piece, and the rest


async def test_a_single_piece_is_recorded_after_the_pieces_in_the_buffer(autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        for _ in range(30):  # the scheduler's order is random, so "b" is recorded before or after "c" is written
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
