"""Shared fixtures of the core's tests. Test modules cannot import one another.

Every async test runs on virtual time. A test in which every task is blocked fails instead of hanging.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.records import AnyRecord, OutputDelta, ReasoningDelta, decode_frame
from crucible_trio.stream import Stream
from crucible_trio.testing import ScriptedEngine

T = TypeVar("T")

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


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    """The class of engines that follow a script."""
    return ScriptedEngine


@pytest.fixture(scope="session")
def read_to_end() -> Callable[..., Awaitable[list[AnyRecord]]]:
    """Read a stream as a program does, from an offset to the terminal record."""

    async def read_to_end(stream: Stream, after: int = 0) -> list[AnyRecord]:
        async with stream.attach(after) as reader:
            return [record async for record in reader]

    return read_to_end


@pytest.fixture(scope="session")
def records_in() -> Callable[[Stream], list[AnyRecord]]:
    """All records in a stream's log, read without attaching a reader."""
    return lambda stream: [decode_frame(frame) for frame in stream.log.read(0)]


@pytest.fixture(scope="session")
def text_of() -> Callable[[list[AnyRecord]], str]:
    """Trace and answer, in the order of their records."""
    return lambda records: "".join(r.delta for r in records if isinstance(r, OutputDelta | ReasoningDelta))


@pytest.fixture(scope="session")
def run_virtually() -> Callable[..., object]:
    """Run an async function on virtual time in a new event loop, for tests that need many runs."""

    def run_virtually(function: Callable[..., Awaitable[T]], *args: object) -> T:
        async def guarded() -> T:
            with trio.fail_after(_DEADLOCK_SECONDS):
                return await function(*args)

        return trio.run(guarded, clock=MockClock(autojump_threshold=0))

    return run_virtually
