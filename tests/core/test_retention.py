"""How long a finished stream stays readable and remembered, and which streams are evicted when memory is short."""

import gc
import weakref
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.errors import OverloadedError, StreamExpiredError, StreamNotFoundError
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request
from crucible_trio.store.facts_bytes import FactsBytes
from crucible_trio.stream import Stream

MINUTE, HOUR = 60, 3600


async def finished(pipeline: Pipeline, owner: str = "") -> Stream:
    stream = await pipeline.start(Request("q"), owner=owner, on_disconnect="continue")
    await wait_all_tasks_blocked()
    assert stream.status == "completed"
    return stream


def size_of(stream: Stream) -> int:
    return stream.log.size_bytes + FactsBytes().measure(stream.facts).new_bytes


def kept_bytes(pipeline: Pipeline) -> int:
    return pipeline.store.log_bytes


async def test_a_stream_is_readable_for_ten_minutes_then_expired_for_an_hour_then_not_found(
    scripted: Callable, read_to_end: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", "b")) as pipeline:
        stream = await finished(pipeline, "alice")
        await trio.sleep(10 * MINUTE - 1)
        assert await pipeline.find(stream.id, owner="alice") is stream
        assert len(await read_to_end(stream)) == stream.log.head
        await trio.sleep(2)
        for pause in (0, HOUR - 3):
            await trio.sleep(pause)
            for owner in ("alice", None):
                with pytest.raises(StreamExpiredError):
                    await pipeline.find(stream.id, owner=owner)
            with pytest.raises(StreamNotFoundError):
                await pipeline.find(stream.id, owner="bob")
            assert await pipeline.list(owner="alice") == []
            assert kept_bytes(pipeline) == 0
        await trio.sleep(3)
        with pytest.raises(StreamNotFoundError):
            await pipeline.find(stream.id, owner="alice")


async def test_each_stream_is_forgotten_at_its_own_time(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a"), Settings(retention_seconds=10)) as pipeline:
        streams = []
        for _ in range(3):
            streams.append(await finished(pipeline))
            await trio.sleep(100)
        await trio.sleep(HOUR - 300)
        for number in range(4):  # each time one more stream is forgotten
            for stream, error in zip(
                streams, [StreamNotFoundError] * number + [StreamExpiredError] * (3 - number), strict=True
            ):
                with pytest.raises(error):
                    await pipeline.find(stream.id)
            await trio.sleep(100)


async def test_a_forgotten_stream_is_garbage_collected(scripted: Callable, autojump_clock: MockClock) -> None:
    async def one(pipeline: Pipeline, reader_leaves: str) -> weakref.ref[Stream]:
        stream = await pipeline.start(Request("q"))
        async with stream.attach():
            await wait_all_tasks_blocked()
            if reader_leaves == "after the end":
                stream.cancel()
                await wait_all_tasks_blocked()
        stream.cancel()
        await wait_all_tasks_blocked()
        await pipeline.forget(stream)
        return weakref.ref(stream)

    async with open_pipeline(scripted("a", 999)) as pipeline:
        for reader_leaves in ("before the end", "after the end"):
            stream = await one(pipeline, reader_leaves)
            await wait_all_tasks_blocked()
            gc.collect()
            assert stream() is None  # no timer keeps a reference to it


@pytest.mark.parametrize("gone", ["forgotten", "expired", "evicted"])
async def test_forgetting_a_stream_that_is_gone_changes_no_count(
    gone: str, scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a"), Settings(total_log_bytes=2_200)) as pipeline:
        stream = await finished(pipeline)
        match gone:
            case "forgotten":
                await pipeline.forget(stream)
            case "expired":
                await trio.sleep(11 * MINUTE)
            case "evicted":
                for _ in range(3):
                    await finished(pipeline)
        before = kept_bytes(pipeline)
        await pipeline.forget(stream)
        with pytest.raises(StreamNotFoundError):
            await pipeline.find(stream.id)
        assert kept_bytes(pipeline) == before == sum(map(size_of, await pipeline.list()))


async def test_retention_counts_from_the_end_and_a_running_stream_never_expires(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 50), Settings(retention_seconds=10)) as pipeline:
        first = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(5)
        second = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(54.9)
        assert await pipeline.find(first.id) is first
        await trio.sleep(0.2)
        with pytest.raises(StreamExpiredError):
            await pipeline.find(first.id)
        assert await pipeline.find(second.id) is second
        await trio.sleep(5)
        with pytest.raises(StreamExpiredError):
            await pipeline.find(second.id)


async def test_readers_attached_at_expiry_read_on_to_the_end(
    scripted: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(*"abcdef"), Settings(retention_seconds=10)) as pipeline:
        stream = await finished(pipeline)
        records = []
        async with stream.attach() as reader:
            async for record in reader:
                records.append(record)
                await trio.sleep(6)
        assert text_of(records) == "abcdef"
        with pytest.raises(StreamExpiredError):
            await pipeline.find(stream.id)


async def test_beyond_the_remembered_maximum_the_oldest_expired_streams_are_not_found(
    scripted: Callable, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    monkeypatch.setattr("crucible_trio.store.retention.MAX_REMEMBERED", 2)
    async with open_pipeline(scripted("a"), Settings(retention_seconds=10)) as pipeline:
        streams = [await finished(pipeline) for _ in range(4)]
        await trio.sleep(11)
        for stream, error in zip(streams, [StreamNotFoundError] * 2 + [StreamExpiredError] * 2, strict=True):
            with pytest.raises(error):
                await pipeline.find(stream.id)


# Memory


@pytest.fixture
def half_full(scripted: Callable) -> Callable:
    """A pipeline whose log memory holds two of the engine's streams of about 5,000 bytes, but not three."""
    return lambda *steps: open_pipeline(scripted(*(steps or ["x" * 5000])), Settings(total_log_bytes=12_000))


async def is_found(pipeline: Pipeline, stream: Stream) -> bool:
    try:
        return await pipeline.find(stream.id) is stream
    except StreamExpiredError:
        return False


async def test_when_memory_is_short_unread_finished_streams_are_evicted_oldest_first(
    half_full: Callable, autojump_clock: MockClock
) -> None:
    async with half_full() as pipeline:
        streams = []
        for number in range(1, 5):
            streams.append(await finished(pipeline))
            assert [await is_found(pipeline, stream) for stream in streams[-2:]] == [True] * min(number, 2)
            assert not any([await is_found(pipeline, stream) for stream in streams[:-2]])
            assert kept_bytes(pipeline) == sum(size_of(stream) for stream in streams[-2:])


async def test_a_long_prompt_counts_towards_the_memory_limit(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("x"), Settings(total_log_bytes=12_600)) as pipeline:
        streams = []
        for _ in range(4):
            streams.append(await pipeline.start(Request("q" * 5000), on_disconnect="continue"))
            await trio.sleep(1)
        assert [await is_found(pipeline, stream) for stream in streams] == [False, False, True, True]
        assert kept_bytes(pipeline) == sum(size_of(stream) for stream in streams[-2:])


async def test_a_finished_stream_with_a_reader_is_not_evicted(
    half_full: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    async with half_full() as pipeline:
        read, unread = await finished(pipeline), await finished(pipeline)
        async with read.attach() as reader:
            await finished(pipeline)
            assert await is_found(pipeline, read)
            assert not await is_found(pipeline, unread)
            assert text_of([record async for record in reader]) == "x" * 5000
        await finished(pipeline)
        assert not await is_found(pipeline, read)


async def test_running_streams_are_never_evicted_and_new_ones_are_refused_until_there_is_memory(
    half_full: Callable, autojump_clock: MockClock
) -> None:
    async with half_full(*["x" * 5000, 9] * 4) as pipeline:
        running = [await pipeline.start(Request("q"), on_disconnect="continue") for _ in range(2)]
        await trio.sleep(20)  # three pieces each, far above the cap
        with pytest.raises(OverloadedError):
            await pipeline.start(Request("q"))
        await trio.sleep(20)
        assert [stream.status for stream in running] == ["completed"] * 2
        assert all(len(stream.snapshot().output) == 20_000 for stream in running)
        # Finished streams are evicted as soon as a new stream needs their memory.
        assert (await pipeline.start(Request("q"))).status == "running"
        assert not any([await is_found(pipeline, stream) for stream in running])


async def test_a_request_is_counted_before_its_stream_starts(scripted: Callable, autojump_clock: MockClock) -> None:
    large = Request("x" * 6000)
    async with open_pipeline(scripted("a", 50), Settings(total_log_bytes=20_000)) as pipeline:
        for _ in range(2):
            await pipeline.start(large, on_disconnect="continue")
        await wait_all_tasks_blocked()
        before = kept_bytes(pipeline)
        with pytest.raises(OverloadedError):
            await pipeline.start(Request("x" * 12_000))
        assert kept_bytes(pipeline) == before < 20_000
        await pipeline.start(Request("q"))


async def test_finished_streams_are_evicted_for_a_large_request_unless_it_can_never_fit(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a"), Settings(total_log_bytes=20_000)) as pipeline:
        old, young = await finished(pipeline), await finished(pipeline)
        room = 20_000 - kept_bytes(pipeline)
        with pytest.raises(OverloadedError):
            await pipeline.start(Request("x" * 20_000))
        assert await pipeline.find(old.id) is old
        await pipeline.start(Request("x" * (room - 300)))
        with pytest.raises(StreamExpiredError):
            await pipeline.find(old.id)
        assert await pipeline.find(young.id) is young
        assert kept_bytes(pipeline) < 20_000


async def test_at_exactly_the_cap_a_finished_stream_is_evicted_before_a_new_one_is_refused(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("x" * 10_000, 1)) as pipeline:
        measured = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(2)
    for total in range(measured.log.size_bytes - 20, measured.log.size_bytes + 20):
        async with open_pipeline(scripted("x" * 10_000, 1), Settings(total_log_bytes=total)) as pipeline:
            await pipeline.start(Request("q"), on_disconnect="continue")
            await trio.sleep(2)
            await pipeline.start(Request("q"))
