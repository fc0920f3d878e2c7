"""An idempotency key starts one stream, however often its request is sent."""

import tracemalloc
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.errors import (
    DrainingError,
    IdempotencyConflictError,
    InvalidRequestError,
    OverloadedError,
    StreamExpiredError,
    StreamNotFoundError,
)
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.request import Request, Sampling
from crucible_trio.store.idempotency import IdempotencyKeys, digest_of
from crucible_trio.stream import Stream

ANY = Request("q")


async def start(
    pipeline: Pipeline, key: str | None, request: Request = ANY, owner: str = "alice"
) -> tuple[Stream, bool]:
    return await pipeline.start_or_join(request, key, owner=owner, on_disconnect="continue", starts_with_reader=False)


async def test_the_same_key_joins_the_stream_it_started(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted("a", 5)
    async with open_pipeline(engine) as pipeline:
        with assert_no_checkpoints():  # no other task may run between looking a key up and storing it
            stream, joined = await start(pipeline, "key")
            assert not joined
            assert await start(pipeline, "key") == (stream, True)
        await trio.sleep(1)
        assert await start(pipeline, "key", Request("q")) == (stream, True)
        await trio.sleep(10)
        assert stream.status == "completed"
        assert await start(pipeline, "key") == (stream, True)
        assert engine.calls == 1


async def test_requests_without_a_key_or_with_different_keys_start_separate_streams(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 5)) as pipeline:
        started = [await start(pipeline, key) for key in (None, None, "one", "two")]
        assert not any(joined for _, joined in started)
        assert len({stream.id for stream, _ in started}) == 4


@pytest.mark.parametrize("other", [Request("other"), Request("q", mode="deep"), Request("q", max_output_tokens=5)])
async def test_a_different_request_with_the_same_key_is_a_conflict(
    other: Request, scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 5)) as pipeline:
        stream, _ = await start(pipeline, "key")
        with pytest.raises(IdempotencyConflictError):
            await start(pipeline, "key", other)
        assert await pipeline.list(owner="alice") == [stream]
        assert await start(pipeline, "key") == (stream, True)


async def test_two_owners_may_use_the_same_key(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a", 5)) as pipeline:
        stream, _ = await start(pipeline, "key", owner="alice")
        other, joined = await start(pipeline, "key", Request("other"), owner="bob")
        assert not joined
        assert other is not stream


async def test_a_refused_start_leaves_no_key(scripted: Callable, autojump_clock: MockClock) -> None:
    async with open_pipeline(scripted("a", 5), Settings(max_streams=1)) as pipeline:
        with pytest.raises(InvalidRequestError):
            await start(pipeline, "key", Request("q", sampling=Sampling(seed=1)))
        running, _ = await start(pipeline, None)
        with pytest.raises(OverloadedError):
            await start(pipeline, "key")
        running.cancel()
        await wait_all_tasks_blocked()
        assert not (await start(pipeline, "key"))[1]


async def test_a_key_still_finds_its_stream_when_new_streams_are_refused(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 5), Settings(max_streams=1)) as pipeline:
        stream, _ = await start(pipeline, "key")
        assert await start(pipeline, "key") == (stream, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipeline.drain)
            await trio.sleep(1)
            assert await start(pipeline, "key") == (stream, True)
            with pytest.raises(DrainingError):
                await start(pipeline, "other")


async def test_a_key_is_kept_until_an_hour_after_its_stream_expires(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine) as pipeline:
        stream, _ = await start(pipeline, "key")
        await trio.sleep(599)
        assert await start(pipeline, "key") == (stream, True)
        await trio.sleep(2)
        for pause in (0, 3590):
            await trio.sleep(pause)
            with pytest.raises(StreamExpiredError):  # never a second start
                await start(pipeline, "key")
            with pytest.raises(IdempotencyConflictError):
                await start(pipeline, "key", Request("other"))
        assert engine.calls == 1
        await trio.sleep(20)
        assert not (await start(pipeline, "key"))[1]
        await wait_all_tasks_blocked()
        assert engine.calls == 2


async def test_the_key_of_a_deleted_stream_finds_nothing_for_an_hour(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 5)) as pipeline:
        stream, _ = await start(pipeline, "key")
        await pipeline.forget(stream)
        for pause in (0, 1, 3590):
            await trio.sleep(pause)
            with pytest.raises(StreamNotFoundError):
                await start(pipeline, "key")
        await trio.sleep(700)
        assert not (await start(pipeline, "key"))[1]


async def test_a_key_stores_a_hash_of_the_request_and_not_the_request(autojump_clock: MockClock) -> None:
    keys = IdempotencyKeys()
    tracemalloc.start()
    try:
        for n in range(20):
            digest = digest_of(Request(f"{n}" + "x" * 200_000), {})
            assert await keys.claim("alice", f"key {n}", digest, f"stream {n}") == f"stream {n}"
            keys.started("alice", f"key {n}", f"stream {n}")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000
    digest = digest_of(Request("7" + "x" * 200_000), {})
    assert await keys.claim("alice", "key 7", digest, "another stream") == "stream 7"
