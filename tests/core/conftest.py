"""What the core's tests share, as fixtures: test modules cannot import one another.

Every async test runs on virtual time and fails when nothing can happen any more, instead of hanging.
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

from crucible_trio.engine import EngineInfo, Finish, Reasoning, Request
from crucible_trio.output import Output
from crucible_trio.records import AnyRecord, OutputDelta, ReasoningDelta, decode_frame
from crucible_trio.stream import Stream

T = TypeVar("T")

# Virtual seconds; longer than any test waits on purpose.
_NOTHING_CAN_HAPPEN_ANY_MORE = 1_000_000


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
        with trio.fail_after(_NOTHING_CAN_HAPPEN_ANY_MORE):
            await test(**fixtures)

    return guarded


class ScriptedEngine:
    """An engine that does as it is told.

    Steps: a `str` is a piece of the answer, a `Reasoning` one of the trace, a number a pause in seconds, a `Finish` is
    returned, an exception raised.

    Attributes:
        calls: How often it was called.
        live: How many calls have not ended.
        made: Pieces it has begun to write.
        written: Pieces whose call has returned.
    """

    def __init__(self, *steps: str | Reasoning | float | Finish | BaseException) -> None:
        self.info = EngineInfo(name="scripted", models=("scripted",))
        self.steps = steps
        self.calls = 0
        self.live = 0
        self.made: list[str] = []
        self.written: list[str] = []

    async def generate(self, request: Request, output: Output) -> Finish:
        self.calls += 1
        self.live += 1
        try:
            for step in self.steps:
                match step:
                    case str():
                        self.made.append(step)
                        await output.delta(step)
                        self.written.append(step)
                    case Reasoning(text, segment):
                        self.made.append(text)
                        await output.reasoning(text, segment)
                        self.written.append(text)
                    case int() | float():
                        await trio.sleep(step)
                    case Finish():
                        return step
                    case _:
                        raise step
            return Finish()
        finally:
            self.live -= 1


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedEngine]:
    """The class of engines that do as they are told."""
    return ScriptedEngine


@pytest.fixture(scope="session")
def read_to_end() -> Callable[..., Awaitable[list[AnyRecord]]]:
    """Read a stream as a program does, from a position to its terminal record."""

    async def read_to_end(stream: Stream, after: int = 0) -> list[AnyRecord]:
        async with stream.attach(after) as reader:
            return [record async for record in reader]

    return read_to_end


@pytest.fixture(scope="session")
def records_in() -> Callable[[Stream], list[AnyRecord]]:
    """What a stream's log holds, without being a reader."""
    return lambda stream: [decode_frame(frame) for frame in stream.log.read(0)]


@pytest.fixture(scope="session")
def text_of() -> Callable[[list[AnyRecord]], str]:
    """Trace and answer, in the order in which they came."""
    return lambda records: "".join(r.delta for r in records if isinstance(r, OutputDelta | ReasoningDelta))


@pytest.fixture(scope="session")
def run_virtually() -> Callable[..., object]:
    """Run one async function of its own on virtual time, for tests that need many runs."""

    def run_virtually(function: Callable[..., Awaitable[T]], *args: object) -> T:
        async def guarded() -> T:
            with trio.fail_after(_NOTHING_CAN_HAPPEN_ANY_MORE):
                return await function(*args)

        return trio.run(guarded, clock=MockClock(autojump_threshold=0))

    return run_virtually
