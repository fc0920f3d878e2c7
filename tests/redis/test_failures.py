"""Redis fails, or a process does: readers get every record once, or a clear end, and never a wrong text."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import httpx
import pytest
import trio

from crucible_trio.engine import Finish
from crucible_trio.errors import LogLostError, LogUnavailableError, StreamExpiredError, StreamNotFoundError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import AnyRecord, OutputDelta, StreamCompleted, StreamFailed
from crucible_trio.request import Request
from crucible_trio.store.redis.connection import RedisDownError
from crucible_trio.store.redis.following import Follower
from crucible_trio.store.redis.heartbeat import Heartbeat
from crucible_trio.stream import Stream
from crucible_trio.testing import Gate, ScriptedEngine

OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]
OpenServed: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]
ReadToEnd: TypeAlias = Callable[..., Awaitable[list[AnyRecord]]]
Until: TypeAlias = Callable[[Callable[[], object]], Awaitable[None]]


pytestmark = pytest.mark.slow


class RedisServer(Protocol):
    """See `conftest.py`."""

    port: int
    url: str

    def command(self, *words: str) -> str: ...

    def keys(self) -> int: ...

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def frozen(self) -> AbstractAsyncContextManager[None]: ...


TEXT = "".join(f"{number} " for number in range(150))
LONG_TEXT = "".join(f"{number} " for number in range(300))


async def count_slowly(request: Request, output: Output) -> Finish:
    """Write `TEXT` in about a second and a half, or `LONG_TEXT` in three."""
    for word in (LONG_TEXT if request.input == "long" else TEXT).split():
        await output.delta(f"{word} ")
        await trio.sleep(0.01)
    return Finish()


def text_of(records: list[AnyRecord]) -> str:
    return "".join(record.delta for record in records if isinstance(record, OutputDelta))


def check_whole(records: list[AnyRecord], text: str = TEXT) -> None:
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert isinstance(records[-1], StreamCompleted)
    assert text_of(records) == text


async def read_in_both(
    streams: list[Stream], disturb: Callable[[], Awaitable[None]], *, at_record: int = 20
) -> list[list[AnyRecord]]:
    """Follow each stream to its end, and disturb once all readers have some records."""
    read: list[list[AnyRecord]] = [[] for _ in streams]
    ready = trio.Event()

    async def follow(stream: Stream, records: list[AnyRecord]) -> None:
        async with stream.attach() as reader:
            async for record in reader:
                records.append(record)
                if all(len(each) >= at_record for each in read):
                    ready.set()

    async with trio.open_nursery() as nursery:
        for stream, records in zip(streams, read, strict=True):
            nursery.start_soon(follow, stream, records)
        await ready.wait()
        await disturb()
    return read


# Redis does not answer for a while


async def _kill_connections(redis: RedisServer) -> None:
    for _ in range(5):
        redis.command("CLIENT", "KILL", "TYPE", "normal")
        await trio.sleep(0.1)


async def _freeze(redis: RedisServer) -> None:
    async with redis.frozen():
        await trio.sleep(2)


async def _restart(redis: RedisServer) -> None:
    await trio.sleep(1.2)  # acknowledged records are on disk after a second at the latest
    redis.kill()
    await trio.sleep(0.5)
    redis.start()


@pytest.mark.parametrize("disturb", [_kill_connections, _freeze, _restart])
async def test_every_record_is_read_once_however_redis_is_disturbed(
    new_redis: Callable[..., RedisServer],
    open_over: OpenPipeline,
    disturb: Callable[[RedisServer], Awaitable[None]],
) -> None:
    redis = new_redis("--appendonly", "yes", "--appendfsync", "everysec")
    async with open_over(count_slowly, url=redis.url) as here, open_over(count_slowly, url=redis.url) as there:
        stream = await here.start(Request("long"), on_disconnect="continue")
        found = await there.find(stream.id)

        async def disturb_the_stream() -> None:
            await disturb(redis)
            assert not stream.log.finished  # else it was not disturbed

        for records in await read_in_both([stream, found], disturb_the_stream):
            check_whole(records, LONG_TEXT)


async def test_a_redis_that_is_far_away_costs_latency_and_no_records(
    redis: RedisServer, open_over: OpenPipeline, delayed: Callable[[int, float], AbstractAsyncContextManager[int]]
) -> None:
    async with delayed(redis.port, 0.025) as port:
        url = f"redis://127.0.0.1:{port}/0"
        async with open_over(count_slowly, url=url) as here, open_over(count_slowly, url=url) as there:
            stream = await here.start(Request("q"), on_disconnect="pause")
            found = await there.find(stream.id)

            async def nothing() -> None:
                pass

            for records in await read_in_both([stream, found], nothing, at_record=5):
                check_whole(records)


async def test_a_slow_redis_slows_the_model_and_loses_nothing(
    redis: RedisServer, open_over: OpenPipeline, read_to_end: ReadToEnd
) -> None:
    engine = ScriptedEngine([f"{number} " for number in range(20_000)])
    async with open_over(engine, buffer_tokens=4) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        async with redis.frozen():
            await trio.sleep(0.5)
            made = -1
            while made != len(engine.runs[0].made):
                made = len(engine.runs[0].made)
                await trio.sleep(0.5)
            assert made < 20_000
        assert text_of(await read_to_end(stream)) == "".join(f"{number} " for number in range(20_000))


async def test_a_start_waits_for_redis_and_a_cancelled_one_leaves_nothing(
    redis: RedisServer, open_over: OpenPipeline
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as pipeline:
        async with redis.frozen():
            with trio.move_on_after(0.3) as scope:
                await pipeline.start_or_join(
                    Request("q"), "k", owner="", on_disconnect="continue", starts_with_reader=False
                )
            assert scope.cancelled_caught
            assert engine.calls == 0
        stream, joined = await pipeline.start_or_join(
            Request("q"), "k", owner="", on_disconnect="continue", starts_with_reader=False
        )
        assert not joined
        assert [each.id for each in await pipeline.list()] == [stream.id]


# A long outage


async def test_after_a_long_outage_streams_are_given_up_and_new_ones_start(
    redis: RedisServer, open_over: OpenPipeline, read_to_end: ReadToEnd, until: Until
) -> None:
    engine = ScriptedEngine(lambda request: ["a", Gate() if request.input == "wait" else "b"])
    options = {"log_outage_seconds": 0.5}
    async with open_over(engine, **options) as here, open_over(engine, **options) as there:
        stream = await here.start(Request("wait"), on_disconnect="continue")
        found = await there.find(stream.id)
        redis.kill()
        for each in (stream, found):
            with pytest.raises(LogLostError):
                await read_to_end(each)
        await until(lambda: not here.store.running)
        assert not here.store.ready
        assert not there.store.ready
        assert engine.live == 0
        assert here.metrics.engine("scripted").ended["failed"] == 1
        with pytest.raises(LogUnavailableError):
            await here.start(Request("q"))
        with pytest.raises(LogUnavailableError):
            await there.find(stream.id)
        redis.start()
        await until(lambda: here.store.ready and there.store.ready)
        stream = await here.start(Request("q"), on_disconnect="continue")
        assert text_of(await read_to_end(await there.find(stream.id))) == "ab"


async def test_a_full_redis_is_like_one_that_is_away(
    new_redis: Callable[..., RedisServer], open_over: OpenPipeline, read_to_end: ReadToEnd, until: Until
) -> None:
    redis = new_redis("--maxmemory", "20mb")
    options = {"log_outage_seconds": 1, "url": redis.url}
    async with open_over(count_slowly, **options) as here, open_over(count_slowly, **options) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        found = await there.find(stream.id)

        async def fill_for_a_moment() -> None:
            redis.command("CONFIG", "SET", "maxmemory", "1")
            await trio.sleep(0.5)
            redis.command("CONFIG", "SET", "maxmemory", "20mb")

        for records in await read_in_both([stream, found], fill_for_a_moment):
            check_whole(records)
        stream = await here.start(Request("q"), on_disconnect="continue")
        redis.command("CONFIG", "SET", "maxmemory", "1")
        await until(lambda: not here.store.ready)
        with pytest.raises(LogLostError):
            await read_to_end(stream)
        with pytest.raises(LogUnavailableError):
            await here.start(Request("q"))
        redis.command("CONFIG", "SET", "maxmemory", "20mb")
        await until(lambda: here.store.ready)
        await here.start(Request("q"))


# Redis loses data


async def _lose_all(redis: RedisServer, stream_id: str) -> None:
    redis.command("FLUSHALL")


async def _lose_only_the_head(redis: RedisServer, stream_id: str) -> None:
    redis.command("DEL", f"{{crucible:{stream_id}}}:meta")


async def _lose_only_the_records(redis: RedisServer, stream_id: str) -> None:
    redis.command("DEL", f"{{crucible:{stream_id}}}:log")


@pytest.mark.parametrize("lose", [_lose_all, _lose_only_the_head, _lose_only_the_records])
async def test_what_redis_has_lost_is_written_again_while_its_process_lives(
    redis: RedisServer, open_over: OpenPipeline, lose: Callable[[RedisServer, str], Awaitable[None]]
) -> None:
    async with open_over(count_slowly) as here, open_over(count_slowly) as there:
        stream, _ = await here.start_or_join(
            Request("q"), "k", owner="alice", on_disconnect="continue", starts_with_reader=False
        )
        found = await there.find(stream.id, owner="alice")
        for records in await read_in_both([stream, found], lambda: lose(redis, stream.id)):
            check_whole(records)
        async with open_over(count_slowly) as third:
            again = await third.find(stream.id, owner="alice")
            assert again.log.read(0) == stream.log.read(0)
            joined, was_there = await third.start_or_join(
                Request("q"), "k", owner="alice", on_disconnect="continue", starts_with_reader=False
            )
            assert (joined, was_there) == (again, True)
            assert [each.id for each in await third.list(owner="alice")] == [stream.id]


async def test_a_stream_that_redis_refuses_stops_no_other_stream(
    redis: RedisServer, open_over: OpenPipeline, read_to_end: ReadToEnd, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_over(count_slowly) as pipeline:
        streams = [await pipeline.start(Request("q"), on_disconnect="continue") for _ in range(4)]
        await streams[0].log.reached(2)
        key = f"{{crucible:{streams[0].id}}}:log"
        redis.command("XADD", key, "9-1", "f", "of another program")
        for stream in streams[1:]:
            check_whole(await read_to_end(stream))
        assert streams[0].status == "running"
        assert "internal error while storing records" in caplog.text
        redis.command("XDEL", key, "9-1")
        redis.command("XSETID", key, f"1-{streams[0].log.head}")
        check_whole(await read_to_end(streams[0]))


async def test_a_finished_stream_that_redis_has_lost_is_written_again(
    redis: RedisServer, open_over: OpenPipeline, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crucible_trio.store.redis.heartbeat._BEATS_PER_LOOK", 1)
    async with open_over(count_slowly) as here, open_over(count_slowly) as there:
        kept = await here.start(Request("q"), on_disconnect="continue")
        deleted = await here.start(Request("q"), on_disconnect="continue")
        for stream in (kept, deleted):
            await stream.log.wait_finished()
        await until(lambda: not here.store.running)
        await there.forget(await there.find(deleted.id))
        redis.command("DEL", f"{{crucible:{kept.id}}}:log", f"{{crucible:{kept.id}}}:meta")
        await until(lambda: redis.command("EXISTS", f"{{crucible:{kept.id}}}:meta") == ":1")
        found = await there.find(kept.id)
        await found.log.wait_finished()  # the records are written in several calls
        assert found.log.read(0) == kept.log.read(0)
        assert redis.command("EXISTS", f"{{crucible:{deleted.id}}}:meta") == ":0"


async def test_redis_loses_everything_and_the_process_as_well(
    redis: RedisServer, open_over: OpenPipeline, serve_process: OpenServed
) -> None:
    async with serve_process("--replay-speed", "0.5") as served, open_over(count_slowly) as there:
        async with httpx.AsyncClient() as http:
            started = (await http.post(f"{served.url}/v1/streams", json={"input": "x"})).json()
        found = await there.find(started["id"])

        async def lose() -> None:
            await served.kill()
            redis.command("FLUSHALL")

        with pytest.RaisesGroup(LogLostError):
            await read_in_both([found], lose, at_record=5)
        with pytest.raises((StreamNotFoundError, StreamExpiredError)):
            await there.find(started["id"])


async def test_redis_loses_the_last_records_and_the_process_dies(
    redis: RedisServer, open_over: OpenPipeline, serve_process: OpenServed
) -> None:
    lease = {"CRUCIBLE_LOG_LEASE_SECONDS": "2"}
    async with serve_process("--replay-speed", "0.5", **lease) as served, open_over(count_slowly) as there:
        async with httpx.AsyncClient() as http:
            started = (await http.post(f"{served.url}/v1/streams", json={"input": "x"})).json()
        found = await there.find(started["id"])
        lost = 3

        async def lose() -> None:
            await served.kill()
            key = f"{{crucible:{started['id']}}}"
            head = int(redis.command("XLEN", f"{key}:log").removeprefix(":"))
            for number in range(head - lost + 1, head + 1):
                redis.command("XDEL", f"{key}:log", f"1-{number}")
            redis.command("XSETID", f"{key}:log", f"1-{head - lost}")
            redis.command("HSET", f"{key}:meta", "head", str(head - lost))

        [records] = await read_in_both([found], lose, at_record=8)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert isinstance(records[-1], StreamFailed)
        async with open_over(count_slowly) as third:
            assert (await third.find(started["id"])).log.read(0) == found.log.read(0)


# Leases


async def test_a_stream_that_is_silent_for_several_leases_is_not_ended(
    open_over: OpenPipeline, read_to_end: ReadToEnd
) -> None:
    engine = ScriptedEngine("a", 2.0, "b")
    options = {"log_lease_seconds": 0.5}
    async with open_over(engine, **options) as here, open_over(engine, **options) as there:
        stream = await here.start(Request("q"), on_disconnect="pause")
        assert isinstance((await read_to_end(await there.find(stream.id)))[-1], StreamCompleted)


async def test_leases_that_lapsed_while_redis_was_away_end_no_stream(
    redis: RedisServer, open_over: OpenPipeline
) -> None:
    options = {"log_lease_seconds": 0.5}
    async with open_over(count_slowly, **options) as here, open_over(count_slowly, **options) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        found = await there.find(stream.id)

        async def freeze() -> None:
            async with redis.frozen():
                await trio.sleep(1.5)

        for records in await read_in_both([stream, found], freeze):
            check_whole(records)


async def test_a_process_whose_stream_was_ended_stops_its_engine(
    redis: RedisServer, open_over: OpenPipeline, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine, log_lease_seconds=0.5) as there:
        store: Any = here.store
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.reached(2)
        found = await there.find(stream.id)
        with caplog.at_level(logging.WARNING):
            async with found.attach():
                # As if the process had been stopped: its lease is gone whenever the other looks.
                while not found.log.finished:
                    redis.command("DEL", f"{{crucible:{stream.id}}}:lease")
                    await trio.sleep(0.01)
            await stream.log.wait_finished()
        await until(lambda: not store.running)
        assert stream.log.read(0) == found.log.read(0)
        assert isinstance(stream.terminal, StreamFailed)
        assert stream.terminal.error.code == "producer_lost"
        assert engine.live == 0
        assert "took this one for dead" in caplog.text


async def test_a_stream_whose_process_is_lost_ends_for_a_client_that_only_asks(
    redis: RedisServer, open_over: OpenPipeline
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine, log_lease_seconds=0.5) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.reached(2)
        await there.find(stream.id)
        with trio.fail_after(20):
            while (found := await there.find(stream.id)).status == "running":
                redis.command("DEL", f"{{crucible:{stream.id}}}:lease")
                await trio.sleep(0.01)
        assert isinstance(found.terminal, StreamFailed)
        assert found.terminal.error.code == "producer_lost"


async def test_a_list_shows_the_end_of_a_stream_whose_process_is_lost(
    redis: RedisServer, open_over: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        damaged = await here.start(Request("q"), on_disconnect="continue")
        stream = await here.start(Request("q"), on_disconnect="continue")
        for each in (damaged, stream):
            await each.log.reached(2)
        monkeypatch.setattr(Heartbeat, "_beat", _beat_never)
        redis.command("XDEL", f"{{crucible:{damaged.id}}}:log", "1-1")
        statuses = ["running", "running"]
        while statuses[0] == "running":
            listed = await there.list()
            assert [each.id for each in listed] == [stream.id, damaged.id]
            statuses = [each.status for each in listed]
        assert statuses == ["failed", "running"]
        assert isinstance(listed[0].terminal, StreamFailed)
        assert listed[0].terminal.error.code == "producer_lost"
        redis.kill()
        with pytest.raises(LogUnavailableError):
            await there.list()


async def _beat_never(heartbeat: Heartbeat, streams: Sequence[object]) -> None:
    pass


async def test_a_find_that_is_cut_off_while_it_ends_a_stream_says_that_redis_is_away(
    redis: RedisServer, open_over: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine, log_lease_seconds=0.5) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.reached(2)
        await there.find(stream.id)
        store: Any = there.store

        async def cut_off(*arguments: object) -> None:
            raise RedisDownError

        monkeypatch.setattr(store.mirrors, "_seal", cut_off)
        key = f"{{crucible:{stream.id}}}:lease"

        async def find_without_lease() -> None:
            while True:  # the process renews its lease now and then
                redis.command("DEL", key)
                await there.find(stream.id)

        with trio.fail_after(60), pytest.raises(LogUnavailableError):
            await find_without_lease()


async def test_records_that_no_wake_up_announced_are_read_within_a_second_or_two(
    open_over: OpenPipeline, read_to_end: ReadToEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_over(count_slowly) as here:
        monkeypatch.setattr(Follower, "_read", _read_nothing)
        async with open_over(count_slowly) as there:
            stream = await here.start(Request("q"), on_disconnect="continue")
            check_whole(await read_to_end(await there.find(stream.id)))


async def _read_nothing(follower: Follower) -> None:
    await trio.sleep(0.1)
