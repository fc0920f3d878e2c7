"""The logs that these tests run on, and pipelines over them. Test modules cannot import one another.

Every async test runs on virtual time. A test in which every task is blocked fails instead of hanging.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TypeAlias, final

import pytest
import trio

from crucible_trio.config import Settings
from crucible_trio.engine import EngineSource, as_engine
from crucible_trio.log.contract import Log
from crucible_trio.log.memory import ByteAccount, MemoryLog
from crucible_trio.log.shared import SharedLog
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
class Committer:
    """Commits for shared logs, in place of a store.

    Args:
        seconds: How long a commit takes while `run` runs. At least one pass of the scheduler.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._waiting: list[SharedLog] = []
        self._work = trio.lowlevel.ParkingLot()

    def commit_later(self, log: SharedLog) -> None:
        """Commit for this log in the next commit."""
        if log not in self._waiting:
            self._waiting.append(log)
            self._work.unpark_all()

    def commit(self) -> None:
        """Commit for every log that waits."""
        waiting, self._waiting = self._waiting, []
        for log in waiting:
            batch = log.take(1_000_000, 1_000_000_000)
            log.acknowledge(batch.first + len(batch.frames) - 1, ended=batch.last)

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
            return SharedLog(self.committer, room_without_readers=room_without_readers, account=account)
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
