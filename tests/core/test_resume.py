"""Promises 1 and 2: a reader gets every record once, and a stream is resumable as soon as it is accepted."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.errors import CursorAheadError, TooManyReadersError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import AnyRecord, StreamCreated
from crucible_trio.request import Request
from crucible_trio.stream import Stream

STEPS = [
    *(step for letter in "First" for step in (Reasoning(letter, 0), 0.2)),
    *(step for letter in "then" for step in (Reasoning(letter, 1), 0.1)),
    *(step for letter in "abcdefgh\ud83d\ude00ij" for step in (letter, 0.25)),
    Reasoning("second thoughts", 1),
    "!",
]
TEXT = "Firstthenabcdefgh😀ijsecond thoughts!"


async def read_in_cuts(stream: Stream, lengths: Callable[[], float]) -> list[AnyRecord]:
    """Cancel the reader repeatedly, and attach it again after the last record that it got."""
    seen: list[AnyRecord] = []
    while not stream.finished_before(len(seen)):
        with trio.move_on_after(lengths()):
            async with stream.attach(after=len(seen)) as reader:
                async for record in reader:
                    seen.append(record)  # noqa: PERF401 - the loop is cancelled in the middle
    return seen


@pytest.mark.parametrize("policy", ["pause", "continue"])
@pytest.mark.parametrize("length", [0.03, 0.1, 0.3, 0.7, 1.1, 99])
async def test_a_reader_cut_repeatedly_reads_the_same_records_as_an_uncut_one(
    length: float,
    policy: str,
    scripted: Callable,
    read_to_end: Callable[..., Awaitable[list[AnyRecord]]],
    text_of: Callable,
    autojump_clock: MockClock,
) -> None:
    async with open_pipeline(scripted(*STEPS), Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=policy)
        cut = await read_in_cuts(stream, lambda: length)
        assert text_of(cut) == TEXT
        assert [record.seq for record in cut] == list(range(1, len(cut) + 1))
        assert cut == await read_to_end(stream)


async def test_readers_cut_at_random_all_read_the_same(
    scripted: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*STEPS), Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"))
        read: list[list[AnyRecord]] = []

        async def one(seed: int) -> None:
            chance = random.Random(seed)
            await trio.sleep(chance.random() * 3)
            read.append(await read_in_cuts(stream, lambda: chance.choice([0.01, 0.2, 0.9])))

        async with trio.open_nursery() as nursery:
            for seed in range(12):
                nursery.start_soon(one, seed)
    assert len(read) == 12
    assert all(records == read[0] for records in read)
    assert text_of(read[0]) == TEXT


async def test_a_finished_stream_can_be_read_from_every_offset(
    scripted: Callable, read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*STEPS)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(100)
        whole = await read_to_end(stream)
        for after in range(len(whole) + 1):
            assert await read_to_end(stream, after) == whole[after:]
            assert stream.finished_before(after) == (after == len(whole))
        with pytest.raises(CursorAheadError):
            await read_to_end(stream, len(whole) + 1)


async def test_record_1_is_in_the_log_when_start_returns_and_before_the_engine_is_called(
    autojump_clock: MockClock,
) -> None:
    heads: list[int] = []
    pipelines: list[Pipeline] = []

    async def curious(request: Request, output: Output) -> Finish:
        [stream] = await pipelines[0].list()
        heads.append(stream.log.head)
        return Finish()

    async with open_pipeline(curious) as pipeline:
        pipelines.append(pipeline)
        stream = await pipeline.start(Request("q", mode="deep"))
        assert (stream.log.head, heads) == (1, [])
        await wait_all_tasks_blocked()
        assert heads == [1]
        async with stream.attach() as reader:
            assert await anext(reader) == StreamCreated(1, stream.id, "deep", "curious", stream.created_at)


async def test_finished_before_is_true_only_at_the_end_of_a_finished_stream(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 1, "b")) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        assert not stream.finished_before(stream.log.head)
        await trio.sleep(2)
        assert stream.finished_before(stream.log.head)
        assert not stream.finished_before(stream.log.head - 1)


async def test_a_snapshot_matches_the_records_up_to_its_last_seq(
    scripted: Callable, records_in: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*STEPS)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        while stream.status == "running":
            snapshot = stream.snapshot()
            records = records_in(stream)
            assert snapshot.last_seq == len(records)
            assert sorted("".join(snapshot.trace) + snapshot.output) == sorted(text_of(records))
            assert (snapshot.id, snapshot.status) == (stream.id, "running")
            await trio.sleep(0.17)
        snapshot = stream.snapshot()
        assert (snapshot.status, snapshot.finish_reason) == ("completed", "stop")
        assert snapshot.trace == ["First", "thensecond thoughts"]
        assert snapshot.output == "abcdefgh😀ij!"


async def test_one_reader_too_many_is_refused_and_changes_nothing(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 1, "b"), Settings(max_readers_per_stream=2)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach(), stream.attach():
            assert not stream.takes_readers
            with pytest.raises(TooManyReadersError):
                async with stream.attach():
                    raise AssertionError
            assert stream.log.readers == 2
        assert stream.takes_readers
        async with stream.attach():
            pass
