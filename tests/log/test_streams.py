"""Whole streams over each kind of log: the promises of a stream do not depend on when its log commits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import count
from math import inf
from typing import Protocol, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.engine import Finish
from crucible_trio.errors import CursorAheadError, DrainingError, EngineError, TooManyReadersError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline
from crucible_trio.reader import Reader
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    ToolCallDelta,
    Usage,
)
from crucible_trio.request import Deadlines, OnDisconnect, Request
from crucible_trio.snapshot import SnapshotToolCall
from crucible_trio.stream import Stream
from crucible_trio.testing import ScriptedEngine

OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]
ReadToEnd: TypeAlias = Callable[..., Awaitable[list[AnyRecord]]]


class Committer(Protocol):
    """See `conftest.py`."""

    seconds: float

    def commit(self) -> None: ...


class LogKind(Protocol):
    """See `conftest.py`."""

    commits_later: bool
    committer: Committer


only_delayed = pytest.mark.parametrize("kind", ["delayed"], indirect=True)

SMALL = Settings(buffer_tokens=2)
ARGUMENTS = ['{"city":', '"Os', 'lo"', "}"]


async def every_kind(request: Request, output: Output) -> Finish:
    """An engine that writes every kind of content, slowly."""
    for letter in "Hmm":
        await output.reasoning(letter, 0)
        await trio.sleep(0.2)
    for letter in "Look":
        await output.delta(letter)
        await trio.sleep(0.1)
    async with output.tool_call("call_1", "weather") as call:
        for piece in ARGUMENTS:
            await call.arguments(piece)
            await trio.sleep(0.2)
    await output.reasoning("So", 1)
    for letter in "rain\ud83d\ude00!":
        await output.delta(letter)
        await trio.sleep(0.15)
    async with output.tool_call("call_2", "time") as call:
        await call.arguments("{")
        call.cut()
    await output.refusal("No.")
    return Finish("tool_calls", Usage(1, 2, 3))


def check_content(stream: Stream) -> None:
    """The log of a stream of `every_kind` is complete."""
    snapshot = stream.snapshot()
    assert (snapshot.status, snapshot.finish_reason, snapshot.usage) == ("completed", "tool_calls", Usage(1, 2, 3))
    assert snapshot.trace == ["Hmm", "So"]
    assert (snapshot.output, snapshot.refusal) == ("Lookrain😀!", "No.")
    whole = SnapshotToolCall(index=0, id="call_1", name="weather", arguments='{"city":"Oslo"}', complete=True)
    cut = SnapshotToolCall(index=1, id="call_2", name="time", arguments="{")
    assert snapshot.tool_calls == [whole, cut]


def text_of(stream: Stream, records_in: Callable[[Stream], list[AnyRecord]]) -> str:
    kinds = OutputDelta | ReasoningDelta | RefusalDelta | ToolCallDelta
    return "".join(record.delta for record in records_in(stream) if isinstance(record, kinds))


# From the start to the end


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_record_1_is_visible_when_start_returns_and_before_the_engine_is_called(
    kind: LogKind, open_pipeline_over: OpenPipeline, seconds: float, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = seconds
    called_at: list[float] = []

    async def engine(request: Request, output: Output) -> Finish:
        called_at.append(trio.current_time())
        return Finish()

    async with open_pipeline_over(engine) as pipeline:
        before = trio.current_time()
        stream = await pipeline.start(Request("q", mode="deep"))
        visible_after = seconds if kind.commits_later else 0
        assert trio.current_time() - before == pytest.approx(visible_after)
        async with stream.attach() as reader:
            assert await anext(reader) == StreamCreated(1, stream.id, "deep", "engine", stream.created_at)
        assert await pipeline.find(stream.id) is stream
        await trio.sleep(10)
        assert called_at == [pytest.approx(before + visible_after)]


@pytest.mark.parametrize("policy", ["pause", "continue", "cancel"])
async def test_a_reader_that_follows_gets_every_record(
    open_pipeline_over: OpenPipeline, policy: OnDisconnect, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(every_kind, SMALL) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=policy)
        records = await read_to_end(stream)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert isinstance(records[-1], StreamCompleted)
        check_content(stream)


async def test_the_engine_is_called_when_a_reader_has_record_1(
    open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    engine = ScriptedEngine("a")
    async with open_pipeline_over(engine) as pipeline:
        stream, _ = await pipeline.start_or_join(
            Request("q"), None, owner="", on_disconnect="continue", starts_with_reader=True
        )
        await trio.sleep(10)
        assert (engine.calls, stream.paused) == (0, True)
        await read_to_end(stream)
        assert engine.calls == 1
        assert stream.status == "completed"


async def test_two_readers_get_the_same_records(
    open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(every_kind, Settings(buffer_tokens=2, max_readers_per_stream=2)) as pipeline:
        stream = await pipeline.start(Request("q"))
        read: list[list[AnyRecord]] = []

        async def follow(pause: float) -> None:
            records = []
            async with stream.attach() as reader:
                async for record in reader:
                    records.append(record)
                    await trio.sleep(pause)
            read.append(records)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, 0)
            nursery.start_soon(follow, 0.35)
            await wait_all_tasks_blocked()
            with pytest.raises(TooManyReadersError):
                await read_to_end(stream)
        assert read[0] == read[1] == await read_to_end(stream)
        check_content(stream)


@pytest.mark.parametrize("policy", ["pause", "continue"])
@pytest.mark.parametrize("seconds", [0.0, 0.13])
async def test_a_stream_that_is_cut_and_resumed_at_every_record_reads_as_if_it_had_not_been(
    kind: LogKind,
    open_pipeline_over: OpenPipeline,
    policy: OnDisconnect,
    seconds: float,
    read_to_end: ReadToEnd,
    autojump_clock: MockClock,
) -> None:
    kind.committer.seconds = seconds
    async with open_pipeline_over(every_kind, SMALL) as pipeline:
        for cut_after in count():
            stream = await pipeline.start(Request("q"), on_disconnect=policy)
            records = []
            async with stream.attach() as reader:
                while len(records) < cut_after:
                    records.append(await anext(reader))
            await trio.sleep(0.1)
            records += await read_to_end(stream, len(records))
            assert records == await read_to_end(stream)
            check_content(stream)
            if cut_after == len(records):
                break
        assert cut_after > 15


async def test_a_reader_that_is_cancelled_repeatedly_reads_every_record_once(
    kind: LogKind, open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = 0.05
    async with open_pipeline_over(every_kind, SMALL) as pipeline:
        stream = await pipeline.start(Request("q"))
        records: list[AnyRecord] = []
        while not stream.finished_before(len(records)):
            with trio.move_on_after(0.12):
                async with stream.attach(len(records)) as reader:
                    async for record in reader:
                        records.append(record)  # noqa: PERF401 - the loop is cancelled in the middle
        assert records == await read_to_end(stream)
        check_content(stream)


async def test_an_offset_is_refused_until_its_record_is_visible(
    kind: LogKind, open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = 1
    async with open_pipeline_over(ScriptedEngine("a", 5, "b")) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(0.5)
        assert stream.log.head == (1 if kind.commits_later else 2)
        if kind.commits_later:
            with pytest.raises(CursorAheadError):
                await read_to_end(stream, 2)
        await stream.log.reached(2)
        assert len(await read_to_end(stream, 2)) == 2


# Direct writes


class DirectClient:
    """Takes every record in the middle of its commit."""

    def __init__(self, stream: Stream) -> None:
        self.reader = Reader(stream, 0)
        self.reader.listener = self
        self.written: list[bytes] = []
        self.direct = 0

    def write_appended(self) -> int:
        frames = self.reader.take(10_000)
        self.written += frames
        self.direct += len(frames)
        return self.reader.taken

    async def follow(self) -> None:
        async with self.reader:
            while not self.reader.at_end:
                self.written += self.reader.take(10_000)
                self.reader.passed(self.reader.taken)
                if not self.reader.at_end:
                    await self.reader.wait()


async def test_a_client_that_can_be_written_to_directly_gets_every_record_at_its_commit(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(every_kind, SMALL) as pipeline:
        stream = await pipeline.start(Request("q"))
        client = DirectClient(stream)
        await client.follow()
        assert client.written == stream.log.read(0)
        assert client.direct >= len(client.written) - 5
        check_content(stream)


# Backpressure


async def test_pause_holds_the_engine_without_readers(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    engine = ScriptedEngine(*(step for number in range(100) for step in (f"{number} ", 1.0)))
    async with open_pipeline_over(engine, SMALL) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="pause")
        await trio.sleep(50)
        assert stream.paused
        assert len(engine.made) == 3  # two in the buffer, and one whose call waits
        async with stream.attach() as reader:
            for _ in range(5):
                await anext(reader)
            assert not stream.paused
        await trio.sleep(50)
        assert stream.paused
        held = len(engine.made)
        assert held <= 4 + 2 * 2 + 1  # record 1 holds no piece
        await trio.sleep(10)
        assert len(engine.made) == held


async def test_a_stalled_reader_holds_the_engine(open_pipeline_over: OpenPipeline, autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(*(step for number in range(100) for step in (f"{number} ", 1.0)))
    async with open_pipeline_over(engine, SMALL) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        async with stream.attach() as reader:
            assert isinstance(await anext(reader), StreamCreated)
            assert isinstance(await anext(reader), OutputDelta)
            await trio.sleep(90)
            assert len(engine.made) <= 1 + 2 * 2 + 1
        await trio.sleep(200)
        assert len(engine.made) == 100  # without readers it continues


async def test_continue_runs_to_the_end_without_readers(
    open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(every_kind, Settings(buffer_tokens=2, grace_seconds=1)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await stream.log.wait_finished()
        check_content(stream)
        assert len(await read_to_end(stream)) == stream.log.head


async def test_a_burst_is_whole_and_in_order(
    open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    engine = ScriptedEngine([f"{number} " for number in range(1000)])
    async with open_pipeline_over(engine) as pipeline:
        for policy in ("continue", "pause"):
            stream = await pipeline.start(Request("q"), on_disconnect=policy)
            await read_to_end(stream)
            assert stream.snapshot().output == "".join(f"{number} " for number in range(1000))


# How streams end


@pytest.mark.parametrize("seconds", [0.0, 0.07])
@pytest.mark.parametrize("has_reader", [True, False])
async def test_at_whatever_time_a_stream_is_cancelled_everything_written_becomes_visible(
    kind: LogKind,
    open_pipeline_over: OpenPipeline,
    seconds: float,
    has_reader: bool,
    read_to_end: ReadToEnd,
    autojump_clock: MockClock,
) -> None:
    kind.committer.seconds = seconds
    letters = "abcdefgh"
    engine = ScriptedEngine(*(step for letter in letters for step in (letter, 0.1)))
    async with open_pipeline_over(engine) as pipeline:
        for time in range(20):
            stream = await pipeline.start(Request("q"), on_disconnect="continue")
            async with trio.open_nursery() as nursery:
                if has_reader:
                    nursery.start_soon(read_to_end, stream)
                await trio.sleep(time * 0.05 + 0.01)
                run = engine.runs[-1]
                stream.cancel()
                await stream.log.wait_finished()
            snapshot = stream.snapshot()
            assert snapshot.output.startswith("".join(run.written))
            assert letters.startswith(snapshot.output)
            assert snapshot.status == ("completed" if run.end == "finished" else "cancelled")
            assert snapshot.by == (None if run.end == "finished" else "client")
        assert engine.live == 0


@pytest.mark.parametrize(
    ("steps", "deadlines", "reason", "seconds"),
    [
        ([5, "a"], Deadlines(first_token_seconds=3), "first_token_deadline", 3),
        (["a", 1, "b", 5, "c"], Deadlines(idle_seconds=3), "idle_deadline", 4),
        (["a", 1] * 9, Deadlines(total_seconds=6.5), "total_deadline", 6.5),
    ],
)
async def test_each_deadline_ends_a_stream_at_its_time(
    open_pipeline_over: OpenPipeline,
    steps: list[object],
    deadlines: Deadlines,
    reason: str,
    seconds: float,
    read_to_end: ReadToEnd,
    autojump_clock: MockClock,
) -> None:
    engine = ScriptedEngine(*steps)  # type: ignore[arg-type]
    async with open_pipeline_over(engine) as pipeline:
        stream = await pipeline.start(Request("q", deadlines=deadlines), on_disconnect="continue")
        terminal = (await read_to_end(stream))[-1]
        assert isinstance(terminal, StreamIncomplete)
        assert terminal.reason == reason
        assert terminal.timings.total_ms == pytest.approx(seconds * 1000)
        await wait_all_tasks_blocked()
        assert stream.snapshot().output == "".join(engine.written)
        assert engine.live == 0


async def test_grace_ends_a_stream_without_readers(open_pipeline_over: OpenPipeline, autojump_clock: MockClock) -> None:
    async with open_pipeline_over(ScriptedEngine(["a", 1] * 99)) as pipeline:
        stream = await pipeline.start(Request("q", grace_seconds=5))
        async with stream.attach() as reader:
            await anext(reader)
        await trio.sleep(4.9)
        assert stream.status == "running"
        await trio.sleep(0.2)
        assert isinstance(stream.terminal, StreamCancelled)
        assert stream.terminal.by == "disconnect"


@pytest.mark.parametrize("fields", [{"deadlines": Deadlines(total_seconds=0)}, {"grace_seconds": 0}], ids=str)
@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_a_stream_whose_time_is_over_before_record_1_is_visible_can_be_read(
    kind: LogKind,
    open_pipeline_over: OpenPipeline,
    fields: dict[str, object],
    seconds: float,
    read_to_end: ReadToEnd,
    autojump_clock: MockClock,
) -> None:
    kind.committer.seconds = seconds
    async with open_pipeline_over(ScriptedEngine("a", 1)) as pipeline:
        stream = await pipeline.start(Request("q", **fields))  # type: ignore[arg-type]
        await stream.log.wait_finished()
        assert await pipeline.find(stream.id) is stream
        records = await read_to_end(stream)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert stream.status == ("incomplete" if "deadlines" in fields else "cancelled")
        await trio.sleep(1)
        assert (pipeline.store.running, pipeline.store.kept) == (0, 1)


@only_delayed
async def test_the_time_of_a_commit_is_no_silence_of_the_engine(
    kind: LogKind, open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a", 4, "b", 4, "c", 4, "d")) as pipeline:
        deadlines = Deadlines(first_token_seconds=1, idle_seconds=1)
        stream = await pipeline.start(Request("q", deadlines=deadlines), on_disconnect="continue")
        kind.committer.seconds = 3.5
        assert isinstance((await read_to_end(stream))[-1], StreamCompleted)
        assert stream.snapshot().output == "abcd"


async def test_the_log_limit_ends_a_stream_and_leaves_no_gap(
    open_pipeline_over: OpenPipeline, records_in: Callable, autojump_clock: MockClock
) -> None:
    pieces = [f"{number:99} " for number in range(1000)]
    engine = ScriptedEngine(*([piece, 1] for piece in pieces))
    async with open_pipeline_over(engine, Settings(stream_log_bytes=10_240)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await stream.log.wait_finished()
        assert isinstance(stream.terminal, StreamIncomplete)
        assert stream.terminal.reason == "log_limit"
        assert 4096 < stream.log.size_bytes <= 10_240
        text = text_of(stream, records_in)
        assert len(text) > 1000
        assert "".join(pieces).startswith(text)


async def test_the_token_limit_ends_a_stream_on_the_engines_count(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async def counting(request: Request, output: Output) -> Finish:
        for number in range(1, 100):
            await output.delta("a b ")  # two tokens
            output.count_tokens(2 * number)
            await trio.sleep(1)
        raise AssertionError

    async with open_pipeline_over(counting) as pipeline:
        stream = await pipeline.start(Request("q", max_output_tokens=6), on_disconnect="continue")
        await stream.log.wait_finished()
        assert isinstance(stream.terminal, StreamIncomplete)
        assert stream.terminal.reason == "max_output_tokens"
        assert stream.snapshot().output == "a b " * 4  # the count passed the limit with the fourth piece


# Many streams


async def test_drain_lets_streams_finish_and_stops_the_others(
    open_pipeline_over: OpenPipeline, read_to_end: ReadToEnd, autojump_clock: MockClock
) -> None:
    engine = ScriptedEngine(lambda request: ["a", float(request.messages[0].text), "b"])
    async with open_pipeline_over(engine) as pipeline:
        quick = await pipeline.start(Request("5"), on_disconnect="continue")
        slow = await pipeline.start(Request("500"), on_disconnect="continue")
        read: list[list[AnyRecord]] = []

        async def follow() -> None:
            read.append(await read_to_end(slow))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await pipeline.drain(10)
            with pytest.raises(DrainingError):
                await pipeline.start(Request("5"))
        assert isinstance(quick.terminal, StreamCompleted)
        assert isinstance(slow.terminal, StreamCancelled)
        assert slow.terminal.by == "shutdown"
        assert read[0][-1] == slow.terminal
        assert slow.snapshot().output == "a"


async def test_closing_the_pipeline_makes_every_end_visible(
    kind: LogKind, open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = 1
    engine = ScriptedEngine("a", inf)
    async with open_pipeline_over(engine) as pipeline:
        streams = [await pipeline.start(Request("q"), on_disconnect="continue") for _ in range(3)]
        await trio.sleep(0.5)
    for stream in streams:
        assert isinstance(stream.terminal, StreamCancelled)
        assert stream.terminal.by == "shutdown"
        assert stream.snapshot().output == "a"
    assert pipeline.store.running == 0
    assert pipeline.metrics.engine("scripted").ended == {"cancelled": 3}


@only_delayed
async def test_a_log_that_never_commits_keeps_a_pipeline_open_for_the_flush_time_only(
    kind: LogKind, open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a", inf), Settings(flush_seconds=3)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        kind.committer.seconds = inf
        closed_at = trio.current_time()
    assert trio.current_time() - closed_at == pytest.approx(3)
    assert not stream.log.finished
    assert stream.log.closed  # type: ignore[attr-defined] - a reader does not see this
    assert pipeline.store.running == 0
    assert pipeline.metrics.engine("scripted").ended == {"cancelled": 1}


@only_delayed
@pytest.mark.parametrize("seconds", [1.0, inf])
async def test_a_start_that_waits_while_the_pipeline_closes_raises(
    kind: LogKind, open_pipeline_over: OpenPipeline, seconds: float, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = seconds
    errors: list[Exception] = []

    async def start(pipeline: Pipeline) -> None:
        try:
            await start_with_key(pipeline, "key")
        except trio.ClosedResourceError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        async with open_pipeline_over(ScriptedEngine("a"), Settings(flush_seconds=3)) as pipeline:
            nursery.start_soon(start, pipeline)
            await trio.sleep(0.5)
        await trio.sleep(4)  # the log has `flush_seconds` for the end of the stream
        assert len(errors) == 1
        assert pipeline.store.running == 0
        assert pipeline.store.log_bytes == 0


@only_delayed
async def test_a_commit_after_the_pipeline_has_closed_does_not_start_a_stream(
    kind: LogKind, open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = 10
    failed = trio.Event()

    async def start(pipeline: Pipeline) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await start_with_key(pipeline, "key")
        failed.set()

    async with trio.open_nursery() as nursery:
        async with open_pipeline_over(ScriptedEngine("a"), Settings(flush_seconds=3)) as pipeline:
            nursery.start_soon(start, pipeline)
            await trio.sleep(0.5)
        kind.committer.commit()
        await failed.wait()
        assert await pipeline.list(owner="alice") == []
        assert (pipeline.store.running, pipeline.store.log_bytes) == (0, 0)


async def test_bytes_are_counted_and_freed(
    kind: LogKind, open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(every_kind, Settings(retention_seconds=60)) as pipeline:
        for _ in range(3):
            await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(30)
        assert (pipeline.store.running, pipeline.store.kept) == (0, 3)
        assert pipeline.store.log_bytes > 3000
        await trio.sleep(60)
        assert (pipeline.store.kept, pipeline.store.log_bytes) == (0, 0)


async def test_a_request_that_cannot_be_stored_takes_up_no_limit(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a"), Settings(max_streams=1)) as pipeline:
        with pytest.raises(UnicodeEncodeError):
            await pipeline.start(Request("half a character: \ud83d"))
        assert (pipeline.store.running, pipeline.store.log_bytes) == (0, 0)
        await pipeline.start(Request("q"))


# Idempotency keys


async def start_with_key(pipeline: Pipeline, key: str) -> tuple[Stream, bool]:
    return await pipeline.start_or_join(
        Request("q"), key, owner="alice", on_disconnect="continue", starts_with_reader=False
    )


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_starts_with_one_key_at_the_same_time_start_one_stream(
    kind: LogKind, open_pipeline_over: OpenPipeline, seconds: float, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = seconds
    engine = ScriptedEngine("a", 5)
    async with open_pipeline_over(engine) as pipeline:
        before = trio.current_time()
        results: list[tuple[Stream, bool]] = []

        async def start() -> None:
            results.append(await start_with_key(pipeline, "key"))
            stream = results[-1][0]
            assert stream.log.head >= 1  # a client that joins can read immediately
            assert await pipeline.find(stream.id, owner="alice") is stream
            assert trio.current_time() - before == pytest.approx(seconds if kind.commits_later else 0)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(start)
        assert len({stream.id for stream, _ in results}) == 1
        assert sorted(joined for _, joined in results) == [False, True, True, True, True]
        await wait_all_tasks_blocked()
        assert engine.calls == 1


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` right before step `at` of any task. A step runs from one checkpoint to the next."""

    def __init__(self, at: int) -> None:
        self.scope = trio.CancelScope()
        self.at = at
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps == self.at:
            self.scope.cancel()

    async def start(self, pipeline: Pipeline, key: str) -> Stream | None:
        """Start a stream, or return None if it was cancelled."""
        trio.lowlevel.add_instrument(self)
        try:
            with self.scope:
                stream, _ = await start_with_key(pipeline, key)
                return stream
        finally:
            trio.lowlevel.remove_instrument(self)
        return None


@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_a_start_that_is_cancelled_at_any_step_gives_its_key_back(
    kind: LogKind, open_pipeline_over: OpenPipeline, seconds: float, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = seconds
    engine = ScriptedEngine("a", 5)
    cancelled = 0
    async with open_pipeline_over(engine) as pipeline:
        for at in count(1):
            cut = CancelAtStep(at)
            stream = await cut.start(pipeline, f"key {at}")
            cancelled += stream is None
            again, joined = await start_with_key(pipeline, f"key {at}")
            assert joined == (stream is not None)
            assert stream in {None, again}
            await trio.sleep(3)
            assert pipeline.store.running == 1  # a stream whose start was cancelled has ended
            assert (await pipeline.list(owner="alice"))[0] is again
            await trio.sleep(10)
            if cut.steps < at:
                break
        assert len(await pipeline.list(owner="alice")) == at  # and cannot be found
        assert pipeline.store.kept == at
        assert engine.live == 0
        metrics = pipeline.metrics.engine("scripted")
        assert sum(metrics.started.values()) == sum(metrics.ended.values()) == at + cancelled
        await trio.sleep(1000)
        assert pipeline.store.log_bytes == 0
    assert (cancelled > 0) == kind.commits_later


@only_delayed
@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_when_the_first_of_two_starts_is_cancelled_the_second_starts(
    kind: LogKind, open_pipeline_over: OpenPipeline, seconds: float, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = seconds
    async with open_pipeline_over(ScriptedEngine("a", 5)) as pipeline:
        for at in count(1):
            cut = CancelAtStep(at)
            results: list[tuple[Stream, bool]] = []
            key = f"key {at}"

            async def start_second(key: str, results: list[tuple[Stream, bool]]) -> None:
                results.append(await start_with_key(pipeline, key))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(start_second, key, results)
                first = await cut.start(pipeline, key)
            [(second, joined)] = results
            if first is None:
                assert not joined
            else:
                assert second is first
            assert pipeline.store.running <= 2
            await trio.sleep(10)
            assert pipeline.store.running == 0
            assert len(await pipeline.list(owner="alice")) == at
            if cut.steps < at:
                break


@only_delayed
@pytest.mark.parametrize("seconds", [0.0, 1.0])
async def test_a_start_that_is_cancelled_while_it_waits_for_another_holds_nothing(
    kind: LogKind, open_pipeline_over: OpenPipeline, seconds: float, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = seconds
    engine = ScriptedEngine("a", 5)
    async with open_pipeline_over(engine) as pipeline:
        for at in count(1):
            results: list[tuple[Stream, bool]] = []
            key = f"key {at}"

            async def start_first(key: str, results: list[tuple[Stream, bool]]) -> None:
                results.append(await start_with_key(pipeline, key))

            cut = CancelAtStep(at)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(start_first, key, results)
                await wait_all_tasks_blocked()
                second = await cut.start(pipeline, key)
            [(first, joined)] = results
            assert not joined
            assert second in {None, first}
            assert await start_with_key(pipeline, key) == (first, True)
            await trio.sleep(10)
            assert engine.calls == at
            if cut.steps < at:
                break


@pytest.mark.parametrize("step", [EngineError("upstream_refused", "Busy.", status=429), "a"])
async def test_the_hold_ends_when_the_answer_is_visible(
    step: object, open_pipeline_over: OpenPipeline, kind: LogKind, autojump_clock: MockClock
) -> None:
    kind.committer.seconds = 1
    scripted = ScriptedEngine(1, step)
    scripted.info = replace(scripted.info, waits_for_upstream=True)
    async with open_pipeline_over(scripted) as pipeline:
        stream, _ = await pipeline.start_or_join(
            Request("q"), "key", owner="", on_disconnect="pause", starts_with_reader=True, may_hold=True
        )
        assert stream.hold is not None
        await stream.hold.wait(100)
        if isinstance(step, EngineError):
            assert isinstance(stream.terminal, StreamFailed)
            assert stream.terminal.error.status == 429
            await pipeline.discard(stream, "key")
            assert pipeline.store.log_bytes == 0
        else:
            async with stream.attach() as reader:
                assert isinstance([record async for record in reader][-1], StreamCompleted)
            assert stream.snapshot().output == "a"
