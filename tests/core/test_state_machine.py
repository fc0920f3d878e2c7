"""Promises 1 to 4 and 6 over random programs: after any sequence of steps, a stream matches a simple model.

A program is a list of steps. The engine is told to write content of any kind or to end. Readers attach, read, stall,
are cut and come back. Time passes. After every step, when all tasks are blocked, `World.check` compares the stream with
the model, which is the list of the engine's commands and the offset of each reader. Hypothesis finds the programs and
shrinks one that fails. Its printed arguments can be copied into an `@example` unchanged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Literal, TypeAlias

import pytest
import trio
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.errors import (
    CursorAheadError,
    EngineError,
    StreamExpiredError,
    StreamNotFoundError,
    TooManyReadersError,
)
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.reader import Reader
from crucible_trio.recorder import TERMINAL_RESERVE_BYTES
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    decode_frame,
)
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.store.retention import REMEMBERED_SECONDS

GRACE = 60.0
RETENTION = 600.0
NEVER = 1e9  # seconds
NEVER_FULL = 1_000_000  # commands
SMALL, LARGE = 3, 1500  # characters of a piece: a few large pieces exceed the small cap
SMALL_CAP, LARGE_CAP = 8192, 1024 * 1024
RECORD_BYTES = 200  # at most, of a frame without its text

Slot: TypeAlias = Literal[0, 1]

# The steps of a program


@dataclass(frozen=True)
class Emit:
    """The engine writes `count` pieces.

    Kind `trace` is the current segment of the trace. Arguments open a tool call if none is open. Any other kind ends an
    open call first.
    """

    count: int
    kind: Literal["answer", "trace", "next segment", "refusal", "arguments"] = "answer"
    size: int = SMALL


@dataclass(frozen=True)
class EndCall:
    """The engine leaves its open tool call, if there is one."""

    how: Literal["whole", "cut"] = "whole"


@dataclass(frozen=True)
class Misuse:
    """The engine tries to write something else into an open tool call, if there is one."""

    kind: Literal["answer", "trace", "refusal", "call"] = "answer"


@dataclass(frozen=True)
class End:
    """The engine returns or raises after it has written all earlier pieces.

    Returning ends an open tool call. Raising does not.
    """

    how: Literal["stop", "length", "error", "engine error", "no finish"] = "stop"


@dataclass(frozen=True)
class Attach:
    """A reader attaches. Later steps move it, or it keeps up, or it takes one second per record."""

    reader: Slot
    where: Literal["start", "where it was", "head", "beyond the head"] = "where it was"
    kind: Literal["by hand", "keeps up", "slow"] = "by hand"


@dataclass(frozen=True)
class Read:
    """Take `count` records one by one, and acknowledge each."""

    reader: Slot
    count: int = 1


@dataclass(frozen=True)
class Stall:
    """Take every available record and acknowledge none."""

    reader: Slot


@dataclass(frozen=True)
class Cut:
    """A reader leaves. A reader moved by steps may take and acknowledge every available record just before."""

    reader: Slot
    after_reading: bool = False


@dataclass(frozen=True)
class Cancel:
    """The stream is cancelled."""


@dataclass(frozen=True)
class Wait:
    """Time passes."""

    seconds: float


Step: TypeAlias = Emit | EndCall | Misuse | End | Attach | Read | Stall | Cut | Cancel | Wait


@dataclass(frozen=True)
class Setup:
    """The parameters of a stream."""

    on_disconnect: OnDisconnect = "pause"
    buffer: int = 2
    starts_with_reader: bool = False
    cap: int = LARGE_CAP


slots: st.SearchStrategy[Slot] = st.sampled_from([0, 1])
emits = st.builds(
    Emit, st.integers(1, 12), st.sampled_from(["answer", "answer", "trace", "next segment", "refusal", "arguments"])
)
reads = st.builds(Read, slots, st.integers(1, 4))
attaches = st.builds(
    Attach,
    slots,
    st.sampled_from(["start", "where it was", "where it was", "head", "beyond the head"]),
    st.sampled_from(["by hand", "by hand", "keeps up", "slow"]),
)
steps: st.SearchStrategy[Step] = st.one_of(
    emits,
    emits,
    st.builds(Emit, st.integers(1, 3), st.sampled_from(["answer", "refusal", "arguments"]), st.just(LARGE)),
    st.one_of(
        st.builds(Emit, st.integers(1, 3), st.just("arguments")),
        st.builds(EndCall, st.sampled_from(["whole", "whole", "cut"])),
        st.builds(Misuse, st.sampled_from(["answer", "trace", "refusal", "call"])),
    ),
    attaches,
    attaches,
    reads,
    reads,
    st.builds(Stall, slots),
    st.builds(Cut, slots, st.booleans()),
    st.builds(Wait, st.sampled_from([0.5, 3.0, GRACE - 1, GRACE + 1, RETENTION + 1, REMEMBERED_SECONDS + 1])),
    # Cancel and End share one branch, because a program does little after either of them.
    st.sampled_from([Cancel(), *map(End, ["stop", "stop", "length", "error", "engine error", "no finish"])]),
)
setups = st.builds(
    Setup,
    st.sampled_from(["pause", "continue", "cancel"]),
    st.sampled_from([1, 2, 3, 8]),
    st.booleans(),
    st.sampled_from([SMALL_CAP, LARGE_CAP]),
)


# The engine


@dataclass(frozen=True)
class WriteCommand:
    """One piece, a cut of the open tool call, or a misuse of it. `text` is the id of a tool call that starts."""

    kind: Literal["answer", "trace", "refusal", "start", "arguments", "end", "cut", "misuse"]
    text: str = ""
    segment: int | None = None

    @property
    def length(self) -> int:
        """The characters of a piece of text. The start and the end of a call count as one."""
        return 1 if self.kind in {"start", "end"} else len(self.text)


class CommandedEngine:
    """Carries out commands one by one.

    Attributes:
        calls: How often the engine was called.
        begun: The pieces that it has begun to write.
        returned: How many of those writes have returned.
        end: How it ended, or None while it runs.
    """

    def __init__(self, before_writing: Callable[[], None]) -> None:
        self.info = EngineInfo(name="commanded", models=("commanded",))
        self.calls = 0
        self.live = 0
        self.begun: list[WriteCommand] = []
        self.returned = 0
        self.end: str | None = None
        self.commands, self._received = trio.open_memory_channel[WriteCommand | End](NEVER_FULL)
        self._before_writing = before_writing

    @property
    def idle(self) -> bool:
        return not self._received.statistics().current_buffer_used

    async def generate(self, request: Request, output: Output) -> Finish | None:
        self.calls += 1
        self.live += 1
        try:
            async with AsyncExitStack() as stack:
                async for command in self._received:
                    if isinstance(command, End):
                        self.end = command.how
                        return self._end(command.how)
                    if command.kind == "cut":
                        self._call.cut()
                        await stack.aclose()
                    elif command.kind == "misuse":
                        await self._misuse(command.text, output)
                    else:
                        self.begun.append(command)
                        self._before_writing()
                        await self._write(command, output, stack)
                        self.returned += 1
        finally:
            self.live -= 1
        raise AssertionError

    async def _write(self, command: WriteCommand, output: Output, stack: AsyncExitStack) -> None:
        match command:
            case WriteCommand("answer", text):
                await output.delta(text)
            case WriteCommand("trace", text, int(segment)):
                await output.reasoning(text, segment)
            case WriteCommand("refusal", text):
                await output.refusal(text)
            case WriteCommand("start", call_id):
                self._call = await stack.enter_async_context(output.tool_call(call_id, "tool"))
            case WriteCommand("arguments", text):
                await self._call.arguments(text)
            case WriteCommand("end"):
                await stack.aclose()

    async def _misuse(self, kind: str, output: Output) -> None:
        writes = {
            "answer": lambda: output.delta("never written"),
            "trace": lambda: output.reasoning("never written", 0),
            "refusal": lambda: output.refusal("never written"),
            "call": lambda: output.tool_call("never", "written").__aenter__(),
        }
        with pytest.raises(RuntimeError, match="a tool call is open"):
            await writes[kind]()

    def _end(self, how: str) -> Finish | None:
        match how:
            case "error":
                raise ValueError
            case "engine error":
                raise EngineError("commanded", "As commanded.")
            case "no finish":
                return None
        return Finish(how)


# The readers


@dataclass(eq=False)
class ModelReader:
    """A reader that leaves and comes back. It has read `records`, which follow offset `begin`.

    Attributes:
        passed: The offset that it has acknowledged, or None while it is not attached.
    """

    begin: int = 0
    records: list[AnyRecord] = field(default_factory=list)
    passed: int | None = None
    reader: Reader | None = None  # a reader that steps move
    scope: trio.CancelScope | None = None  # of a reader that is a task
    slow: bool = False

    @property
    def position(self) -> int:
        return self.begin + len(self.records)


class World:
    """A stream, its engine and its two readers, and the model of their behaviour."""

    def __init__(self, setup: Setup, pipeline: Pipeline, nursery: trio.Nursery, engine: CommandedEngine) -> None:
        self.setup = setup
        self.pipeline = pipeline
        self.nursery = nursery
        self.engine = engine
        self.clients = [ModelReader(), ModelReader()]
        self.complaints: list[str] = []
        self.commanded: list[WriteCommand] = []
        self.segment = -1
        self.has_open_call = False  # once the engine has carried out its commands
        self.ever_passed = 0
        self.without_reader_since: float | None = None
        self.end: str | None = None  # how the stream must end or have ended: status and reason
        # The state when a reader last attached or left: the log's head, and the number of pieces that the engine may
        # make before a reader gets to this head. If the engine was not held back then, one more record was pending.
        self.anchor = (1, setup.buffer + 1)
        self.record_pending = False
        self.had_room = False  # after the last step
        self.before: list[AnyRecord] = []  # the log after the last step

    async def start(self) -> None:
        setup = self.setup
        self.accepted_at = trio.current_time()
        self.stream = await self.pipeline.start(
            Request("q"), on_disconnect=setup.on_disconnect, starts_with_reader=setup.starts_with_reader
        )
        if self.needs_reader:
            self.without_reader_since = trio.current_time()

    # The model

    @property
    def attached(self) -> list[int]:
        return [client.passed for client in self.clients if client.passed is not None]

    @property
    def called(self) -> bool:
        return not self.setup.starts_with_reader or self.ever_passed >= 1

    @property
    def needs_reader(self) -> bool:
        return not self.called or self.setup.on_disconnect != "continue"

    @property
    def has_room(self) -> bool:
        if self.attached:
            return max(self.attached) >= len(self.log)
        return self.setup.on_disconnect == "continue"

    @property
    def log(self) -> list[AnyRecord]:
        return [decode_frame(frame) for frame in self.stream.log.read(0)]

    def pieces_in(self, records: list[AnyRecord]) -> int:
        ends = list(accumulate(piece.length for piece in self.engine.begun))
        return bisect_right(ends, length_of(records))

    def readers_will_change(self) -> None:
        """Called before a reader attaches or leaves."""
        # A pending record stays pending until the log grows, however many readers attach and leave in between.
        self.record_pending = self.had_room or (self.record_pending and self.anchor[0] == len(self.log))
        buffers = 2 if self.record_pending else 1
        self.anchor = (len(self.log), self.pieces_in(self.log) + buffers * self.setup.buffer + 1)

    def reader_attached(self, client: ModelReader, position: int) -> None:
        self.readers_will_change()
        client.passed = position
        self.ever_passed = max(self.ever_passed, position)
        self.without_reader_since = None

    def acknowledge(self, client: ModelReader, position: int) -> None:
        client.passed = position
        self.ever_passed = max(self.ever_passed, position)

    def reader_left(self, client: ModelReader) -> None:
        self.readers_will_change()
        client.passed = None
        if not self.attached:
            if self.setup.on_disconnect == "cancel" and self.called:
                self.must_end("cancelled disconnect")
            if self.needs_reader:
                self.without_reader_since = trio.current_time()

    def must_end(self, how: str) -> None:
        self.end = self.end or how

    def engine_writes(self) -> None:
        """Called by the engine before it writes a piece. It must not be further ahead than promised."""
        if self.stream.log.finished:  # the engine stops at its next checkpoint, and all readers may have left by then
            return
        if not self.attached and not self.needs_reader:
            return
        head, bound = self.anchor
        furthest = max(self.attached, default=0)
        if furthest >= head:
            bound = max(bound, self.pieces_in(self.log[:furthest]) + 2 * self.setup.buffer + 1)
        if len(self.engine.begun) > bound:
            self.complaints.append(f"the engine makes piece {len(self.engine.begun)}, but may make only {bound}")

    # The steps

    async def take_step(self, step: Step) -> None:
        match step:
            case Emit(count, kind, size):
                for _ in range(count):
                    self.command_piece(kind, size)
            case EndCall(how):
                self.command_end_of_call(how)
            case Misuse(kind):
                if self.has_open_call:
                    self.command(WriteCommand("misuse", kind))
            case End(how):
                if how not in {"error", "engine error"}:
                    self.command_end_of_call("whole")
                self.engine.commands.send_nowait(step)
            case Attach(slot, where, kind):
                await self.attach(self.clients[slot], where, kind)
            case Read(slot, count):
                for _ in range(count):
                    self.read(self.clients[slot], 1)
                    await wait_all_tasks_blocked()
            case Stall(slot):
                client = self.clients[slot]
                if client.reader is not None:
                    client.records += map(decode_frame, client.reader.take(2 * LARGE_CAP))
            case Cut(slot, after_reading):
                await self.cut(self.clients[slot], after_reading=after_reading)
            case Cancel():
                self.stream.cancel()
                self.must_end("cancelled client")
            case Wait(seconds):
                await trio.sleep(seconds)
        await wait_all_tasks_blocked()

    def command_piece(self, kind: str, size: int) -> None:
        text = f"{len(self.commanded):0{size}}"
        match kind:
            case "arguments":
                if not self.has_open_call:
                    self.has_open_call = True
                    self.command(WriteCommand("start", f"call {len(self.commanded)}"))
                self.command(WriteCommand("arguments", text))
            case "answer" | "refusal":
                self.command_end_of_call("whole")
                self.command(WriteCommand(kind, text))
            case _:
                self.command_end_of_call("whole")
                self.segment = max(self.segment, 0) if kind == "trace" else self.segment + 1
                self.command(WriteCommand("trace", text, self.segment))

    def command_end_of_call(self, how: str) -> None:
        if self.has_open_call:
            self.has_open_call = False
            self.command(WriteCommand("end" if how == "whole" else "cut"))

    def command(self, command: WriteCommand) -> None:
        if command.kind not in {"cut", "misuse"}:
            self.commanded.append(command)
        self.engine.commands.send_nowait(command)

    async def attach(self, client: ModelReader, where: str, kind: str) -> None:
        if client.passed is not None:
            if len(self.attached) == len(self.clients):
                with pytest.raises(TooManyReadersError):
                    await self.stream.attach().__aenter__()
            return
        client.reader = client.scope = None
        if where == "beyond the head":
            with pytest.raises(CursorAheadError):
                await self.stream.attach(after=len(self.log) + 1).__aenter__()
            return
        if where != "where it was":
            client.begin = 0 if where == "start" else len(self.log)
            client.records = []
        if kind == "by hand":
            client.reader = self.stream.attach(after=client.position)
            await client.reader.__aenter__()
            self.reader_attached(client, client.position)
        else:
            client.scope = trio.CancelScope()
            client.slow = kind == "slow"
            self.nursery.start_soon(self.follow, client, client.scope)

    async def follow(self, client: ModelReader, scope: trio.CancelScope) -> None:
        with scope:
            async with self.stream.attach(after=client.position) as reader:
                self.reader_attached(client, client.position)
                try:
                    async for record in reader:
                        client.records.append(record)
                        if client.slow:
                            await trio.sleep(1)
                        self.acknowledge(client, client.position)
                    if client.position < len(self.log) or not isinstance(self.log[-1], TERMINAL):
                        self.complaints.append("a reader stopped before the end of the stream")
                    client.passed = None
                finally:
                    if client.passed is not None:
                        self.reader_left(client)

    def read(self, client: ModelReader, limit_bytes: int) -> None:
        if client.reader is not None:
            client.records += map(decode_frame, client.reader.take(limit_bytes))
            client.reader.passed(client.position)
            self.acknowledge(client, client.position)

    async def cut(self, client: ModelReader, *, after_reading: bool) -> None:
        if client.passed is None:
            return
        if after_reading:
            self.read(client, 2 * LARGE_CAP)
            # Acknowledging made room, and the records that filled it may already have reached the cap.
            self._derive_expected_end(self.log)
        if client.scope is not None:
            client.scope.cancel()
            client.scope = None
        elif client.reader is not None:
            self.reader_left(client)
            await client.reader.__aexit__(None, None, None)
            client.reader = None

    # The comparison

    async def check(self) -> None:
        """Compare the stream with the model while all tasks are blocked."""
        log = self.log
        assert not self.complaints, self.complaints
        assert log[: len(self.before)] == self.before, "a record changed"
        self.before = log
        self.had_room = self.called and self.has_room
        assert [record.seq for record in log] == list(range(1, len(log) + 1)), "the log has a gap"
        assert self.stream.log.size_bytes <= self.setup.cap
        self._check_text(log)
        self._check_readers(log)
        self._derive_expected_end(log)
        await self._check_end(log)
        if self.end is None:
            self._check_engine(log)
        assert self.stream.paused == (self.end is None and not self.attached and self.needs_reader)

    def check_after_close(self) -> None:
        """Compare the log and the readers with the model after the pipeline has closed."""
        log = self.log
        assert [how(record) for record in log if isinstance(record, TERMINAL)] == [how(log[-1])] == [self.end]
        self._check_text(log)
        self._check_readers(log)
        for client in self.clients:
            if client.scope is not None:
                assert client.position == len(log), "a reader did not read to the end"

    def _check_text(self, log: list[AnyRecord]) -> None:
        begun = self.engine.begun
        assert begun == self.commanded[: len(begun)]
        recorded = begun[: self.pieces_in(log)]
        assert content_of(log) == content_written(recorded), "a piece was split, lost, moved or recorded twice"
        assert_trace_is_closed(log)
        snapshot = self.stream.snapshot()
        assert snapshot.last_seq == len(log)
        assert snapshot.output == text_of(recorded, "answer")
        assert snapshot.refusal == (text_of(recorded, "refusal") or None)
        assert snapshot.trace == [
            text_of([piece for piece in recorded if piece.segment == segment], "trace")
            for segment in range(max((-1 if p.segment is None else p.segment for p in recorded), default=-1) + 1)
        ]
        calls = [(call.index, call.id, call.arguments, call.complete) for call in snapshot.tool_calls]
        assert calls == calls_written(recorded)

    def _check_readers(self, log: list[AnyRecord]) -> None:
        for client in self.clients:
            assert client.records == log[client.begin : client.position], "a reader did not read the log"
        assert self.stream.log.readers == len(self.attached)
        for client in self.clients:
            if client.scope is not None and client.position < len(log):
                assert client.slow, "a reader that keeps up did not get every record in the log"

    def _derive_expected_end(self, log: list[AnyRecord]) -> None:
        if (
            self.end is None
            and self.without_reader_since is not None
            and trio.current_time() >= self.without_reader_since + GRACE
        ):
            self.must_end("cancelled disconnect")
        if [how(record) for record in log[-1:] if isinstance(record, StreamIncomplete)] == ["incomplete log_limit"]:
            assert self._cap_may_be_reached(log), "the cap was not reached"
            self.must_end("incomplete log_limit")
        match self.engine.end:
            case "stop":
                self.must_end("completed stop")
            case "length":
                self.must_end("incomplete max_output_tokens")
            case "error":
                self.must_end("failed engine_error")
            case "engine error":
                self.must_end("failed commanded")
            case "no finish":
                self.must_end("failed engine_protocol")

    def _cap_may_be_reached(self, log: list[AnyRecord]) -> bool:
        """Whether the pieces missing from the log, at one record each, would pass the cap."""
        missing = self.engine.begun[self.pieces_in(log) :]
        sizes = map(len, self.stream.log.read(0))
        used = sum(size for record, size in zip(log, sizes, strict=True) if not isinstance(record, TERMINAL))
        wanted = sum(piece.length + RECORD_BYTES for piece in missing)
        return bool(missing) and used + wanted > self.setup.cap - TERMINAL_RESERVE_BYTES

    async def _check_end(self, log: list[AnyRecord]) -> None:
        ends = [record for record in log if isinstance(record, TERMINAL)]
        assert ends == (log[-1:] if self.end else []), "not one final record, or it came too early"
        assert ([how(end) for end in ends] or [None]) == [self.end]
        assert self.stream.status == (self.end.split()[0] if self.end else "running")
        if self.end is None:
            return
        assert self.engine.live == 0, "the engine was not stopped"
        kept = self.pieces_in(log)
        if not self._cap_may_be_reached(log):
            assert kept >= self.engine.returned, "a piece whose write had returned was lost"
        if self.end == "completed stop":
            assert kept == len(self.engine.begun), "the stream completed without its whole text"
        ended_at = self.accepted_at + ends[0].timings.total_ms / 1000
        age = trio.current_time() - ended_at
        if age < RETENTION:
            assert await self.pipeline.find(self.stream.id) is self.stream
        else:
            gone = StreamExpiredError if age < RETENTION + REMEMBERED_SECONDS else StreamNotFoundError
            with pytest.raises(gone):
                await self.pipeline.find(self.stream.id)

    def _check_engine(self, log: list[AnyRecord]) -> None:
        engine, recorded = self.engine, self.pieces_in(log)
        if not self.called:
            assert engine.calls == 0, "the engine was called before a reader had record 1"
            return
        assert engine.calls == 1
        waits_for_room = len(engine.begun) > engine.returned
        if waits_for_room:
            assert len(engine.begun) - recorded == self.setup.buffer + 1, "the engine waits with a buffer not full"
            assert not self.has_room, "the engine waits although there is room"
        else:
            assert engine.idle, "the engine does not continue although there is room"
        if self.has_room:
            assert recorded == len(engine.begun), "a piece is not in the log although there is room"


# The content of a log and of the engine's pieces, in the same form

Content: TypeAlias = list[tuple[object, str]]  # a kind, with its segment or the number of its call, and its text


def joined(content: Iterable[tuple[object, str]]) -> Content:
    return [(kind, "".join(text for _, text in same)) for kind, same in groupby(content, lambda entry: entry[0])]


def content_of(records: list[AnyRecord]) -> Content:
    """The content of a log, with the neighbours of each kind joined."""
    content: Content = []
    for record in records:
        match record:
            case OutputDelta(delta=text):
                content.append(("answer", text))
            case ReasoningDelta(segment=segment, delta=text):
                content.append((("trace", segment), text))
            case RefusalDelta(delta=text):
                content.append(("refusal", text))
            case ToolCallStarted():
                assert record.name == "tool"
                content.append((("start", record.index), record.id))
            case ToolCallDelta(index=index, delta=text):
                content.append((("arguments", index), text))
            case ToolCallDone(index=index):
                content.append((("end", index), ""))
    return joined(content)


def content_written(pieces: list[WriteCommand]) -> Content:
    """The content of the engine's pieces, with the neighbours of each kind joined."""
    content: Content = []
    call = -1
    for piece in pieces:
        call += piece.kind == "start"
        match piece.kind:
            case "answer" | "refusal":
                content.append((piece.kind, piece.text))
            case "trace":
                content.append((("trace", piece.segment), piece.text))
            case _:
                content.append(((piece.kind, call), piece.text))
    return joined(content)


def calls_written(pieces: list[WriteCommand]) -> list[tuple[int, str, str, bool]]:
    """Number, id, arguments and wholeness of every tool call in the engine's pieces."""
    content = content_written(pieces)
    return [
        (number, call_id, dict(content).get(("arguments", number), ""), ("end", number) in dict(content))
        for (kind, number), call_id in [(kind, text) for kind, text in content if kind[0] == "start"]
    ]


def text_of(pieces: list[WriteCommand], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind)


def length_of(records: list[AnyRecord]) -> int:
    """The length of all pieces in these records, as `WriteCommand.length` counts it."""
    return sum(
        1 if isinstance(record, ToolCallStarted | ToolCallDone) else len(getattr(record, "delta", ""))
        for record in records
    )


def assert_trace_is_closed(log: list[AnyRecord]) -> None:
    """A `reasoning.done` closes every run of trace records, counts its segments, and comes nowhere else."""
    for is_trace, run in groupby(log, lambda record: isinstance(record, ReasoningDelta | ReasoningDone)):
        if is_trace:
            *trace, last = run
            assert all(isinstance(record, ReasoningDelta) for record in trace)
            if isinstance(last, ReasoningDone):
                assert last.segments == len({record.segment for record in trace}) > 0
            else:
                assert last is log[-1], "the trace was not closed"


def how(end: AnyRecord) -> str:
    match end:
        case StreamCompleted():
            return f"completed {end.finish_reason}"
        case StreamIncomplete():
            return f"incomplete {end.reason}"
        case StreamFailed():
            return f"failed {end.error.code}"
        case StreamCancelled():
            return f"cancelled {end.by}"
    raise AssertionError


async def run_program(setup: Setup, program: list[Step]) -> None:
    limits = Settings(
        buffer_tokens=setup.buffer,
        stream_log_bytes=setup.cap,
        grace_seconds=GRACE,
        retention_seconds=RETENTION,
        max_readers_per_stream=2,
        first_token_seconds=NEVER,
        idle_seconds=NEVER,
        total_seconds=NEVER,
    )
    engine = CommandedEngine(lambda: world.engine_writes())
    async with trio.open_nursery() as nursery:
        async with open_pipeline(engine, limits) as pipeline:
            world = World(setup, pipeline, nursery, engine)
            await world.start()  # no task runs before the first step
            for number, step in enumerate(program):
                try:
                    await world.take_step(step)
                    await world.check()
                except BaseException as error:
                    error.add_note(f"step {number}, {step}")
                    raise
            world.must_end("cancelled shutdown")
        await trio.sleep(len(world.log))  # so that slow readers read to the end too
        world.check_after_close()
        event(f"ends {world.end}")
        nursery.cancel_scope.cancel()


# These always run. They cover every end, every policy and every kind of step.
@pytest.mark.slow
@example(setup=Setup(buffer=2), program=[Emit(9), Attach(0), Read(0), Read(0), Stall(0), Emit(9), Read(0, 3), End()])
@example(
    setup=Setup(buffer=3), program=[Attach(0, kind="slow"), Emit(40), Wait(3), Attach(1), Read(1, 9), End("error")]
)
@example(
    setup=Setup(), program=[Attach(0), Emit(5, "trace"), Read(0, 3), Cut(0), Wait(GRACE - 1), Attach(0), Read(0, 9)]
)
@example(setup=Setup(), program=[Attach(0, kind="keeps up"), Emit(3, "next segment"), Cut(0), Emit(3), Wait(GRACE + 1)])
@example(
    setup=Setup("continue", buffer=1), program=[Emit(9), Attach(0), Emit(9), Attach(1, "head"), Cut(1), Read(0, 9)]
)
@example(setup=Setup("continue", buffer=1), program=[Emit(9), End("length"), Wait(RETENTION - 1), Attach(0), Wait(3)])
@example(setup=Setup("continue"), program=[End("no finish"), Wait(RETENTION + 1), Wait(REMEMBERED_SECONDS + 1)])
@example(
    setup=Setup("continue", cap=SMALL_CAP), program=[Emit(2, size=LARGE), Attach(0), Emit(2, size=LARGE), Read(0, 9)]
)
@example(setup=Setup("cancel"), program=[Attach(0), Attach(1), Attach(1), Emit(9), Read(0), Cut(0), Read(1, 2), Cut(1)])
@example(
    setup=Setup("cancel", starts_with_reader=True), program=[Attach(0), Cut(0), Attach(0), Read(0), Emit(3), Cut(0)]
)
@example(setup=Setup("continue", starts_with_reader=True), program=[Emit(3), Attach(0), Cut(0), Wait(GRACE + 1)])
@example(
    setup=Setup("continue"), program=[Emit(3), Attach(0, "beyond the head"), Cancel(), Attach(0), Read(0, 9), Cancel()]
)
@example(setup=Setup("continue"), program=[Emit(3), Attach(0, "where it was", "slow"), End("engine error"), Wait(3)])
@example(setup=Setup(starts_with_reader=True), program=[Cancel()])
@example(setup=Setup(), program=[Attach(0), Attach(1), Emit(9), Read(0, 2), Cut(0, after_reading=True), Emit(9)])
@example(setup=Setup("continue", buffer=1), program=[Emit(1), Attach(0, "start"), Attach(1, "start"), Emit(3)])
@example(
    setup=Setup("cancel", 3, cap=SMALL_CAP), program=[*[Emit(1, size=LARGE)] * 3, Attach(0, "start"), Cut(0, True)]
)
@example(
    setup=Setup("continue"), program=[Emit(3, "arguments"), EndCall(), Emit(1, "arguments"), EndCall("cut"), End()]
)
@example(setup=Setup("continue"), program=[Emit(2, "trace"), Emit(2, "arguments"), Emit(2, "refusal"), Emit(2), End()])
@example(setup=Setup("continue", buffer=1), program=[Emit(2, "arguments"), Misuse("call"), Misuse("trace"), End()])
@example(setup=Setup("continue"), program=[Emit(2, "arguments"), End("error")])
@example(setup=Setup(buffer=8), program=[Attach(0), Emit(3, "arguments"), EndCall(), Cancel()])
@example(setup=Setup("continue", cap=SMALL_CAP), program=[Emit(3, "arguments", LARGE), EndCall(), Emit(1)])
@example(
    setup=Setup(buffer=8, cap=SMALL_CAP),
    program=[Attach(0), Emit(1), Emit(3, "arguments", LARGE), EndCall(), Emit(1), Read(0, 3)],
)
@settings(max_examples=1000)
@given(setup=setups, program=st.lists(steps, min_size=1, max_size=30))
def test_a_stream_matches_the_model_after_every_step_of_every_program(
    setup: Setup, program: list[Step], run_virtually: Callable[..., None]
) -> None:
    run_virtually(run_program, setup, program)
