"""When streams record: in order, within the time limit of a scheduler pass, and despite errors of other streams."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.batching import Batcher
from crucible_trio.timers import Timers


class Buffer:
    """A buffer that calls a function to record."""

    def __init__(self, record: Callable[[], None]) -> None:
        self.record = record


@asynccontextmanager
async def open_batcher() -> AsyncIterator[Batcher]:
    timers = Timers()
    batcher = Batcher(timers)
    trio.lowlevel.add_instrument(batcher)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            yield batcher
            nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(batcher)


async def may_soon_record_immediately(batcher: Batcher) -> bool:
    """Whether one of 100 passes allows immediate recording. On a busy machine a single pass may last too long."""
    for _ in range(100):
        await trio.sleep(1)
        if batcher.may_record_now():
            return True
    return False


async def test_an_error_in_one_stream_does_not_stop_the_others_from_recording(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = []

    def fails() -> None:
        raise RuntimeError

    async with open_batcher() as batcher:
        for record in (lambda: recorded.append(1), fails, lambda: recorded.append(2)):
            batcher.record_later(Buffer(record))
        await wait_all_tasks_blocked()
    assert recorded == [1, 2]
    [line] = caplog.records
    assert line.exc_info is not None


async def test_recording_that_takes_longer_than_a_pass_continues_in_order(autojump_clock: MockClock) -> None:
    recorded: list[int] = []

    def record_slowly() -> None:
        recorded.append(len(recorded))
        time.sleep(0.006)

    async with open_batcher() as batcher:
        for _ in range(3):
            batcher.record_later(Buffer(record_slowly))
        assert not batcher.may_record_now()
        await wait_all_tasks_blocked()
        assert recorded == [0, 1, 2]
        assert await may_soon_record_immediately(batcher)


async def test_a_pass_that_has_lasted_too_long_records_nothing_more_immediately(autojump_clock: MockClock) -> None:
    async with open_batcher() as batcher:
        assert await may_soon_record_immediately(batcher)
        time.sleep(0.006)  # noqa: ASYNC251 - an engine that computes
        assert not batcher.may_record_now()
        assert await may_soon_record_immediately(batcher)
    assert batcher.recorded_now == 2
