"""The promises of one process hold across processes. Each pipeline here acts as a process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol, TypeAlias

import pytest
import trio
import trio.lowlevel

from crucible_trio.engine import Finish
from crucible_trio.errors import (
    CursorAheadError,
    IdempotencyConflictError,
    LogUnavailableError,
    OwnerLimitError,
    StreamExpiredError,
    StreamNotFoundError,
)
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import (
    AnyRecord,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    Usage,
)
from crucible_trio.request import Request
from crucible_trio.snapshot import SnapshotToolCall
from crucible_trio.store.redis import scripts
from crucible_trio.store.redis.connection import RedisDownError
from crucible_trio.stream import Stream
from crucible_trio.testing import Gate, ScriptedEngine

OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]
ReadToEnd: TypeAlias = Callable[..., Awaitable[list[AnyRecord]]]
Until: TypeAlias = Callable[[Callable[[], object]], Awaitable[None]]


class RedisServer(Protocol):
    """See `conftest.py`."""

    port: int
    url: str

    def command(self, *words: str) -> str: ...

    def keys(self) -> int: ...


# A key that was not given back would lapse after this time, and no test waits as long.
LONG_LEASE = 600.0


async def every_kind(request: Request, output: Output) -> Finish:
    """An engine that writes every kind of content."""
    for letter in "Hmm":
        await output.reasoning(letter, 0)
        await trio.sleep(0.002)
    for letter in "Look":
        await output.delta(letter)
        await trio.sleep(0.001)
    async with output.tool_call("call_1", "weather") as call:
        for piece in ['{"city":', '"Os', 'lo"', "}"]:
            await call.arguments(piece)
            await trio.sleep(0.002)
    await output.reasoning("So", 1)
    for letter in "rain\ud83d\ude00!":
        await output.delta(letter)
        await trio.sleep(0.001)
    await output.refusal("No.")
    return Finish("tool_calls", Usage(1, 2, 3))


def check_content(stream: Stream) -> None:
    snapshot = stream.snapshot()
    assert (snapshot.status, snapshot.finish_reason, snapshot.usage) == ("completed", "tool_calls", Usage(1, 2, 3))
    assert snapshot.trace == ["Hmm", "So"]
    assert (snapshot.output, snapshot.refusal) == ("Lookrain😀!", "No.")
    whole = SnapshotToolCall(index=0, id="call_1", name="weather", arguments='{"city":"Oslo"}', complete=True)
    assert snapshot.tool_calls == [whole]


async def start(pipeline: Pipeline, text: str = "q", key: str | None = None, **fields: Any) -> tuple[Stream, bool]:
    options: dict[str, Any] = {"owner": "", "on_disconnect": "continue", "starts_with_reader": False}
    return await pipeline.start_or_join(Request(text), key, **(options | fields))


# Reading


@pytest.mark.parametrize("policy", ["pause", "continue", "cancel"])
async def test_a_reader_in_another_process_gets_every_record(
    open_over: OpenPipeline, read_to_end: ReadToEnd, policy: str
) -> None:
    async with open_over(every_kind) as here, open_over(every_kind) as there:
        stream, _ = await start(here, on_disconnect=policy, starts_with_reader=True)
        found = await there.find(stream.id)
        records = await read_to_end(found)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert isinstance(records[-1], StreamCompleted)
        check_content(found)
        await stream.log.wait_finished()  # a reader elsewhere may be ahead of the acknowledgement
        assert found.log.read(0) == stream.log.read(0)
        assert found.facts == stream.facts


async def test_a_stream_that_is_cut_at_every_record_and_resumed_elsewhere_reads_as_if_it_had_not_been(
    open_over: OpenPipeline,
) -> None:
    async with open_over(every_kind) as here, open_over(every_kind) as there:
        for first, second in ((here, there), (there, here)):
            stream = await here.start(Request("q"), on_disconnect="continue")
            records: list[AnyRecord] = []
            while not (stream.log.finished and len(records) == stream.log.head):
                process = (first, second)[len(records) % 2]
                found = await process.find(stream.id)
                await found.log.reached(len(records))
                async with found.attach(len(records)) as reader:
                    async for record in reader:
                        records.append(record)
                        break
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            assert len(records) > 15
            check_content(stream)


async def test_a_long_log_is_read_in_pages_and_shared_by_concurrent_readers(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine([f"{number} " * 40 for number in range(3000)])
    async with open_over(engine, buffer_tokens=4) as here, open_over(engine) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.wait_finished()
        assert stream.log.head > 600
        found: list[Stream] = []

        async def find() -> None:
            found.append(await there.find(stream.id))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(find)
        assert found[0] is found[1] is found[2]
        assert found[0].log.read(0) == stream.log.read(0)
        assert there.store.log_bytes == stream.log.size_bytes


async def test_an_offset_that_nothing_has_reached_is_refused_everywhere(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.reached(2)
        for process in (here, there):
            found = await process.find(stream.id)
            await found.log.reached(9)
            with pytest.raises(CursorAheadError):
                async with found.attach(9):
                    pass


async def test_finished_streams_are_read_after_all_processes_have_been_restarted(open_over: OpenPipeline) -> None:
    async with open_over(every_kind) as pipeline:
        stream, _ = await start(pipeline, key="k")
        await stream.log.wait_finished()
        frames = stream.log.read(0)
    async with open_over(every_kind) as pipeline:
        found = await pipeline.find(stream.id)
        assert found.log.read(0) == frames
        assert (await start(pipeline, key="k"))[0] is found
        [listed] = await pipeline.list()
        assert (listed.id, listed.status) == (stream.id, "completed")


# Backpressure and presence


@pytest.mark.slow
async def test_a_stalled_reader_elsewhere_holds_the_engine(open_over: OpenPipeline, until: Until) -> None:
    engine = ScriptedEngine([f"{number} " for number in range(5000)])
    slack, buffer = 8, 4
    options = {"log_slack_tokens": slack, "buffer_tokens": buffer}
    async with open_over(engine, **options) as here, open_over(engine, **options) as there:
        stream, _ = await start(here, on_disconnect="pause", starts_with_reader=True)
        found = await there.find(stream.id)
        async with found.attach() as reader:
            for _ in range(4):
                record = await anext(reader)
            await until(lambda: engine.runs and stream.log.pending_head > record.seq)
            made = -1
            while made != len(engine.runs[0].made):  # until it stands still
                made = len(engine.runs[0].made)
                await trio.sleep(0.2)
            read = sum(len(getattr(each, "delta", "").split()) for each in await _records_up_to(found, record.seq))
            assert made <= read + 2 * buffer + 1 + slack + buffer
            assert not stream.paused
        await until(lambda: stream.paused)
        async with found.attach(record.seq) as reader:
            async for _ in reader:
                pass
        assert found.snapshot().output == "".join(f"{number} " for number in range(5000))


async def _records_up_to(stream: Stream, seq: int) -> list[AnyRecord]:
    async with stream.attach() as reader:
        return [await anext(reader) for _ in range(seq)]


async def test_the_lazy_start_waits_for_a_reader_of_any_process(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stream, _ = await start(here, starts_with_reader=True)
        found = await there.find(stream.id)
        assert (engine.calls, stream.paused) == (0, True)
        async with found.attach() as reader:
            await anext(reader)
            await anext(reader)
            assert (engine.calls, stream.paused, found.paused) == (1, False, False)


async def test_cancel_on_disconnect_ends_a_stream_whose_only_reader_was_elsewhere(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stream = await here.start(Request("q"), on_disconnect="cancel")
        found = await there.find(stream.id)
        async with found.attach() as reader:
            await anext(reader)
            await anext(reader)
        await stream.log.wait_finished()
        assert isinstance(stream.terminal, StreamCancelled)
        assert stream.terminal.by == "disconnect"


async def test_grace_runs_while_no_process_has_a_reader(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stream = await here.start(Request("q", grace_seconds=0.3), on_disconnect="pause")
        found = await there.find(stream.id)
        async with found.attach() as reader:
            await anext(reader)
            await trio.sleep(0.6)
            assert stream.status == "running"
        await stream.log.wait_finished()
        assert isinstance(stream.terminal, StreamCancelled)
        assert stream.terminal.by == "disconnect"


async def test_a_process_that_falls_silent_has_no_readers(
    open_over: OpenPipeline, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crucible_trio.store.redis.presence._SILENCE_SECONDS", 0.5)
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stream = await here.start(Request("q"), on_disconnect="pause")
        found = await there.find(stream.id)
        async with found.attach() as reader:
            await anext(reader)
            await until(lambda: not stream.paused)
            await until(lambda: stream.paused)  # its next report would come after 5 s


# Ending


@pytest.mark.parametrize("has_reader", [True, False])
async def test_a_stream_is_cancelled_from_another_process(open_over: OpenPipeline, has_reader: bool) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there, AsyncExitStack() as stack:
        stream = await here.start(Request("q"), on_disconnect="continue")
        found = await there.find(stream.id)
        if has_reader:
            await stack.enter_async_context(found.attach())
        found.cancel()
        await found.log.wait_finished()
        await stream.log.wait_finished()  # a reader elsewhere may have it before this process has Redis' answer
        assert isinstance(found.terminal, StreamCancelled)
        assert found.terminal.by == "client"
        assert stream.terminal == found.terminal
        assert engine.live == 0


async def test_a_stream_that_is_deleted_elsewhere_is_found_by_no_process(open_over: OpenPipeline, until: Until) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there, open_over(engine) as third:
        stream, _ = await start(here, key="k")
        following = await third.find(stream.id)
        async with following.attach() as reader:
            await there.forget(await there.find(stream.id))
            assert isinstance([record async for record in reader][-1], StreamCancelled)
        await stream.log.wait_finished()
        await until(lambda: not here.store.running)
        for process in (here, there, third):
            with pytest.raises(StreamNotFoundError):
                await process.find(stream.id)
            assert await process.list() == []


async def test_a_finished_stream_can_be_deleted_from_any_process(open_over: OpenPipeline, until: Until) -> None:
    async with open_over(ScriptedEngine("a")) as here, open_over(ScriptedEngine("a")) as there:
        for deleting in (here, there):
            stream = await here.start(Request("q"), on_disconnect="continue")
            await stream.log.wait_finished()
            await until(lambda: not here.store.running)
            await deleting.forget(await deleting.find(stream.id))
            for process in (there, here):
                with trio.fail_after(5):  # the process that has it is told by a message
                    while True:
                        try:
                            await process.find(stream.id)
                        except StreamNotFoundError:
                            break
                        await trio.sleep(0.01)


async def test_a_drain_ends_the_streams_of_its_own_process_and_no_reader_elsewhere_misses_the_end(
    open_over: OpenPipeline, read_to_end: ReadToEnd
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as there:
        async with open_over(engine) as here:
            stream = await here.start(Request("q"), on_disconnect="continue")
            found = await there.find(stream.id)
            await here.drain(0)
        terminal = (await read_to_end(found))[-1]
        assert isinstance(terminal, StreamCancelled)
        assert terminal.by == "shutdown"


async def test_a_pipeline_that_closes_leaves_an_end_for_readers_elsewhere(
    open_over: OpenPipeline, read_to_end: ReadToEnd
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as there:
        async with open_over(engine) as here:
            stream = await here.start(Request("q"), on_disconnect="continue")
        terminal = (await read_to_end(await there.find(stream.id)))[-1]
        assert isinstance(terminal, StreamCancelled)
        assert terminal.by == "shutdown"


# Starting


async def test_starts_with_one_key_in_many_processes_start_one_generation(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(open_over(engine)) for _ in range(3)]
        started: list[tuple[Stream, bool]] = []

        async def begin(process: Pipeline) -> None:
            started.append(await start(process, key="a:b"))

        async with trio.open_nursery() as nursery:
            for process in processes * 4:
                nursery.start_soon(begin, process)
        assert len({stream.id for stream, _ in started}) == 1
        assert [joined for _, joined in started].count(False) == 1
        assert engine.calls == 1
        with pytest.raises(IdempotencyConflictError):
            await start(processes[1], "another", key="a:b")
        other, joined = await start(processes[1], key="a:b", owner="x")
        assert not joined
        assert other.id != started[0][0].id


def answer_start_late(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Redis knows a stream, and the first event is set. Its process hears of it when the second is set."""
    store: Any = pipeline.store
    call = store._link.patient
    is_executed, may_answer = trio.Event(), trio.Event()

    async def answer_late(script: object, *arguments: object) -> object:
        answer = await call(script, *arguments)
        if script is scripts.START:
            is_executed.set()
            await may_answer.wait()
        return answer

    monkeypatch.setattr(store._link, "patient", answer_late)
    return is_executed, may_answer


async def test_a_repeat_finds_a_stream_that_redis_knows_before_its_process_does(
    open_over: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_over(ScriptedEngine("a", Gate())) as here:
        is_executed, may_answer = answer_start_late(here, monkeypatch)
        started: list[tuple[Stream, bool]] = []
        found: list[Stream | None] = []

        async def begin() -> None:
            started.append(await start(here, key="k", label="chat"))

        async def find() -> None:
            found.append(await here.find_labelled("chat"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            await is_executed.wait()
            for _ in range(3):
                nursery.start_soon(begin)
            nursery.start_soon(find)
            await trio.sleep(0.3)
            assert (started, found) == ([], [])
            may_answer.set()
        assert len({stream.id for stream, _ in started}) == 1
        assert [joined for _, joined in started].count(False) == 1
        assert found == [started[0][0]]


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_stream_can_be_ended_elsewhere_before_its_process_knows_that_it_has_started(
    open_over: OpenPipeline, until: Until, monkeypatch: pytest.MonkeyPatch, is_deleted: bool
) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        is_executed, may_answer = answer_start_late(here, monkeypatch)
        started: list[Stream] = []

        async def begin() -> None:
            started.append((await start(here, key="k"))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            await is_executed.wait()
            found, joined = await start(there, key="k")
            assert joined
            if is_deleted:
                await there.forget(found)
            else:
                found.cancel()
            await trio.sleep(0.3)
            may_answer.set()
        await started[0].log.wait_finished()
        assert isinstance(started[0].terminal, StreamCancelled)
        await until(lambda: not here.store.running)
        for process in (here, there):
            assert len(await process.list()) == (0 if is_deleted else 1)


async def test_a_refused_start_leaves_no_key_in_any_process(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    options = {"max_streams_per_owner": 1, "log_lease_seconds": LONG_LEASE}
    async with open_over(engine, **options) as here, open_over(engine, **options) as there:
        first, _ = await start(here, owner="alice")
        for process in (there, here):
            with pytest.raises(OwnerLimitError):
                await start(process, owner="alice", key="k")
        await start(there, owner="bob", key="k")
        first.cancel()
        await first.log.wait_finished()
        stream, joined = await start(there, owner="alice", key="k")
        assert not joined
        assert stream.owner == "alice"


@pytest.mark.slow
async def test_a_claim_whose_process_died_lapses(open_over: OpenPipeline) -> None:
    async with open_over(ScriptedEngine("a")) as pipeline:
        digest_of_another_start: Any = b"d" * 32
        store: Any = pipeline.store
        assert await store.claim("", "k", digest_of_another_start, "str_dead") == "str_dead"
        with trio.fail_after(20):
            assert await store.claim("", "k", digest_of_another_start, "str_next") == "str_next"


async def test_a_cancelled_start_leaves_nothing(open_over: OpenPipeline, redis: RedisServer, until: Until) -> None:
    engine = ScriptedEngine("a")
    async with open_over(engine, log_lease_seconds=LONG_LEASE) as pipeline:
        await until(lambda: redis.keys() == 2)  # the process's own
        for steps in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, steps, scope)
                    stream, _ = await start(pipeline, owner="alice", key="k")
                    nursery.cancel_scope.cancel()
            if not scope.cancelled_caught:
                await stream.log.wait_finished()
                await pipeline.discard(stream, "k")
        await until(lambda: not pipeline.store.running)
        stream, joined = await start(pipeline, owner="alice", key="k")
        assert not joined


async def _cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


# Owners, lists, expiry


async def test_only_its_owner_finds_a_stream_in_another_process(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stream, _ = await start(here, owner="alice")
        with pytest.raises(StreamNotFoundError):
            await there.find(stream.id, owner="bob")
        assert (await there.find(stream.id, owner="alice")).id == stream.id
        assert (await there.find(stream.id, owner=None)).id == stream.id
        with pytest.raises(StreamNotFoundError):
            await there.find(stream.id, owner="bob")
        assert await there.list(owner="bob") == []


async def test_every_process_lists_all_streams_of_an_owner_newest_first(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine(lambda request: ["a", Gate()] if request.input == "wait" else ["a"])
    async with open_over(engine) as here, open_over(engine) as there:
        ids = []
        for number in range(4):
            stream, _ = await start((here, there)[number % 2], "wait" if number == 3 else "q", owner="alice")
            ids.append(stream.id)
            if number < 3:
                await stream.log.wait_finished()
        for process in (here, there):
            listed = await process.list(owner="alice")
            assert [stream.id for stream in listed] == ids[::-1]
            assert [stream.status for stream in listed] == ["running", *["completed"] * 3]
        other = next(each for each in await here.list(owner="alice") if each.id == ids[3])
        with pytest.raises(LogUnavailableError):
            async with other.attach():
                pass
        other.cancel()
        await stream.log.wait_finished()
        assert stream.status == "cancelled"


async def test_an_expired_stream_is_told_from_one_that_never_was(
    open_over: OpenPipeline, until: Until, redis: RedisServer
) -> None:
    engine = ScriptedEngine("a")
    options = {"retention_seconds": 0.2}
    async with open_over(engine, **options) as here, open_over(engine, **options) as there:
        stream, _ = await start(here, owner="alice")
        await stream.log.wait_finished()
        log = f"{{crucible:{stream.id}}}:log"
        await until(lambda: redis.command("EXISTS", log) == ":0" and not here.store.running and not here.store.kept)
        for process in (there, here):
            with pytest.raises(StreamExpiredError):
                await process.find(stream.id, owner="alice")
            with pytest.raises(StreamNotFoundError):
                await process.find(stream.id, owner="bob")
            assert await process.list(owner="alice") == []


async def test_a_failed_stream_fails_for_every_reader(open_over: OpenPipeline, read_to_end: ReadToEnd) -> None:
    engine = ScriptedEngine("a", ValueError("secret"))
    async with open_over(engine) as here, open_over(engine) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        terminal = (await read_to_end(await there.find(stream.id)))[-1]
        assert isinstance(terminal, StreamFailed)
        assert terminal.error.code == "engine_error"


async def test_every_key_expires_and_mirrors_are_dropped(
    open_over: OpenPipeline, redis: RedisServer, until: Until, read_to_end: ReadToEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crucible_trio.store.redis.mirrors._LINGER_SECONDS", 0.1)
    options = {"retention_seconds": 0.3}
    async with open_over(every_kind, **options) as here, open_over(every_kind, **options) as there:
        for number in range(5):
            stream, _ = await start(here, key=f"k{number}", owner="alice")
            await read_to_end(await there.find(stream.id, owner="alice"))
        # Two keys of each process, the ids that are remembered, their idempotency keys, the list of the owner.
        await until(lambda: redis.keys() == 2 * 2 + 2 * 5 + 1)
        assert await there.list(owner="alice") == []
        assert redis.keys() == 2 * 2 + 2 * 5
        for key in ("gone", "log", "meta", "lease"):
            assert redis.command("TTL", f"{{crucible:{stream.id}}}:{key}") != ":-1"
        await until(lambda: not there.store.log_bytes and not here.store.log_bytes)


async def test_a_label_leads_to_its_newest_stream_in_every_process(open_over: OpenPipeline) -> None:
    engine = ScriptedEngine("a", Gate())
    async with open_over(engine) as here, open_over(engine) as there:
        stores: list[Any] = [here.store, there.store]
        labels: list[Stream] = []
        for process in (here, there):
            stream = (await start(process, owner="alice", label="chat:1"))[0]
            labels.append(stream)
            for store in stores:
                found = await store.find_labelled("alice", "chat:1")
                assert found.id == stream.id
                assert await store.find_labelled("alice", "chat") is None
                assert await store.find_labelled("bob", "chat:1") is None
        first, newest = labels
        assert await stores[0].count_readers(newest.id) == 1  # the client that started it
        assert await stores[1].count_readers(newest.id, attached=1, away=-1) == 1
        assert await stores[0].count_readers(newest.id, attached=1, away=-1) == 2
        assert await stores[1].count_readers(newest.id, attached=-2) == 0
        await there.forget(await there.find(first.id, owner="alice"))
        assert (await stores[0].find_labelled("alice", "chat:1")).id == newest.id
        await here.forget(await here.find(newest.id, owner="alice"))
        for store in stores:
            assert await store.find_labelled("alice", "chat:1") is None
        assert await stores[0].count_readers(newest.id) == 0


async def test_a_reader_is_counted_once_if_redis_counts_it_and_its_answer_is_lost(
    open_over: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_over(ScriptedEngine("a", Gate())) as pipeline:
        store: Any = pipeline.store
        stream, _ = await start(pipeline, label="chat")
        run = store._link.script
        answers: list[object] = []

        async def lose_every_other(script: object, *arguments: object) -> object:
            answer = await run(script, *arguments)
            if script is scripts.COUNT_READERS:
                answers.append(answer)
                if len(answers) % 2:
                    raise RedisDownError
            return answer

        monkeypatch.setattr(store._link, "script", lose_every_other)
        assert await store.count_readers(stream.id, attached=1, away=-1) == 1
        assert await store.count_readers(stream.id, attached=1, away=-1) == 2
        assert await store.count_readers(stream.id, attached=-1) == 1
        assert await store.count_readers(stream.id) == 1
        assert answers == [1, 1, 2, 2, 1, 1, 1, 1]


@pytest.mark.slow
async def test_a_mirror_that_was_dropped_counts_no_more_bytes(
    open_over: OpenPipeline, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crucible_trio.store.redis.mirrors._LINGER_SECONDS", 0.0)
    monkeypatch.setattr("crucible_trio.store.redis.following._BLOCK_MILLISECONDS", 5000)
    engine = ScriptedEngine("a", Gate(), "b")
    async with open_over(engine) as here, open_over(engine) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await there.find(stream.id)
        await until(lambda: not there.store.log_bytes)  # dropped, while the read that waits still has it
        stream.cancel()
        await stream.log.wait_finished()
        again = await there.find(stream.id)
        assert again.log.read(0) == stream.log.read(0)
        await until(lambda: not there.store.log_bytes)
        assert there.store.log_bytes == 0
