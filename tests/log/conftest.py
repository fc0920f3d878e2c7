"""The logs that these tests run on, and pipelines over them. Test modules cannot import one another.

Every async test runs on virtual time. A test in which every task is blocked fails instead of hanging.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TypeAlias, final

import pytest
import trio

from crucible_trio.config import Settings
from crucible_trio.engine import EngineSource, as_engine
from crucible_trio.log.contract import Cursor, Log, RoomListener
from crucible_trio.log.memory import ByteAccount, MemoryLog
from crucible_trio.pipeline import Pipeline, run_pipeline
from crucible_trio.records import AnyRecord, decode_frame
from crucible_trio.store.memory import MemoryStore
from crucible_trio.stream import Stream
from crucible_trio.timers import Timers

# In virtual time, and longer than any test waits on purpose. The clock gets there only when every task is blocked.
_DEADLOCK_SECONDS = 1_000_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent not in item.path.parents or not isinstance(item, pytest.Function):
            continue
        if inspect.iscoroutinefunction(item.obj):
            assert "autojump_clock" in item.fixturenames, f"{item.nodeid} must run on virtual time"
            item.obj = _fails_instead_of_hanging(item.obj)


def _fails_instead_of_hanging(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def guarded(**fixtures: object) -> None:
        with trio.fail_after(_DEADLOCK_SECONDS):
            await test(**fixtures)

    return guarded


@final
class DelayedLog:
    """A log that commits later, as one on a disk or in another process does. See `crucible_trio.log.contract.Log`.

    It keeps accepted frames until `commit` is called. The visible part is a `MemoryLog`.
    """

    def __init__(self, committer: Committer, *, room_without_readers: bool, account: ByteAccount | None = None) -> None:
        self.listener: RoomListener | None = None
        self.closed = False
        self.size_bytes = 0
        self._committer = committer
        self._account = account
        self._visible = MemoryLog(room_without_readers=room_without_readers)
        self._visible.listener = self
        self._pending: list[bytes] = []
        self._appends = 0  # accepted
        self._commits = 0  # of those, visible
        self._waiters = trio.lowlevel.ParkingLot()  # in `flushed` and `reached`

    # Writing

    @property
    def pending_head(self) -> int:
        return self._visible.head + len(self._pending)

    @property
    def ever_read(self) -> int:
        return self._visible.ever_read

    @property
    def has_room(self) -> bool:
        return self._appends == self._commits and self._visible.has_room

    def append_nowait(self, frames: Sequence[bytes], *, last: bool = False) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if not frames and not last:
            return
        self.closed = last
        self._pending += frames
        self._appends += 1
        size = sum(map(len, frames))
        self.size_bytes += size
        if self._account is not None:
            self._account.log_grew(size)
        self._committer.commit_later(self)

    def commit(self) -> None:
        """Make everything visible that was accepted."""
        frames, self._pending = self._pending, []
        self._commits = self._appends
        self._visible.append_nowait(frames, last=self.closed)
        self._waiters.unpark_all()
        self.room_available()

    def room_available(self) -> None:
        """The visible part may have room (`RoomListener`)."""
        if self.listener is not None:
            self.listener.room_available()

    async def flushed(self) -> None:
        appends = self._appends
        while self._commits < appends:
            await self._waiters.park()

    async def wait_read(self, offset: int) -> None:
        await self._visible.wait_read(offset)

    # Reading

    @property
    def head(self) -> int:
        return self._visible.head

    @property
    def finished(self) -> bool:
        return self._visible.finished

    @property
    def readers(self) -> int:
        return self._visible.readers

    def read(self, after: int, limit_bytes: int | None = None) -> list[bytes]:
        return self._visible.read(after, limit_bytes)

    def attach(self, after: int) -> Cursor:
        return self._visible.attach(after)

    async def reached(self, offset: int) -> None:
        while self.head < offset <= self.pending_head:
            await self._waiters.park()

    async def wait_finished(self) -> None:
        await self._visible.wait_finished()

    def wake(self) -> None:
        self._visible.wake()


@final
class Committer:
    """Commits for delayed logs.

    Args:
        seconds: How long a commit takes while `run` runs. At least one pass of the scheduler.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._waiting: list[DelayedLog] = []
        self._work = trio.lowlevel.ParkingLot()

    def commit_later(self, log: DelayedLog) -> None:
        """Commit for this log in the next commit."""
        if log not in self._waiting:
            self._waiting.append(log)
            self._work.unpark_all()

    def commit(self) -> None:
        """Commit for every log that waits."""
        waiting, self._waiting = self._waiting, []
        for log in waiting:
            log.commit()

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            while not self._waiting:
                await self._work.park()
            await trio.sleep(self.seconds)
            self.commit()


@final
class LogKind:
    """One implementation of `Log`.

    Attributes:
        commits_later: Whether records become visible only with a later commit.
        committer: Commits for its logs.
    """

    def __init__(self, *, commits_later: bool) -> None:
        self.commits_later = commits_later
        self.committer = Committer()

    def new(self, *, room_without_readers: bool = False, account: ByteAccount | None = None) -> Log:
        """An empty log."""
        if self.commits_later:
            return DelayedLog(self.committer, room_without_readers=room_without_readers, account=account)
        return MemoryLog(room_without_readers=room_without_readers, account=account)

    def commit(self) -> None:
        """Make visible what its logs have accepted."""
        self.committer.commit()


@pytest.fixture(params=["memory", "delayed"])
def kind(request: pytest.FixtureRequest) -> LogKind:
    """Every kind of log."""
    return LogKind(commits_later=request.param == "delayed")


@pytest.fixture(params=["delayed"])
def later_kind(request: pytest.FixtureRequest) -> LogKind:
    """Every kind of log that commits later."""
    return LogKind(commits_later=True)


OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]


@pytest.fixture
def open_pipeline_over(kind: LogKind) -> OpenPipeline:
    """`async with open_pipeline_over(engine, settings) as pipeline`: a pipeline over each kind of log."""

    @asynccontextmanager
    async def open_pipeline_over(engine: EngineSource, settings: Settings | None = None) -> AsyncIterator[Pipeline]:
        settings = settings or Settings()
        timers = Timers()
        store = MemoryStore(settings, timers, new_log=kind.new)
        pipeline = Pipeline(as_engine(engine), settings, timers=timers, store=store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kind.committer.run)  # a pipeline that closes still needs commits
            async with run_pipeline(pipeline):
                yield pipeline
            nursery.cancel_scope.cancel()

    return open_pipeline_over


@pytest.fixture(scope="session")
def read_to_end() -> Callable[..., Awaitable[list[AnyRecord]]]:
    """Read a stream as a program does, from an offset to the terminal record."""

    async def read_to_end(stream: Stream, after: int = 0) -> list[AnyRecord]:
        async with stream.attach(after) as reader:
            return [record async for record in reader]

    return read_to_end


@pytest.fixture(scope="session")
def records_in() -> Callable[[Stream], list[AnyRecord]]:
    """All visible records of a stream, read without attaching a reader."""
    return lambda stream: [decode_frame(frame) for frame in stream.log.read(0)]
