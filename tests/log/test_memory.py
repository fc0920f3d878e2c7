"""What only the log in memory promises: it commits before `append_nowait` returns."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from crucible_trio.errors import LogLostError
from crucible_trio.log.memory import MemoryLog


def frames(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def new_log() -> MemoryLog:
    return MemoryLog(room_without_readers=True)


def test_records_are_visible_when_append_returns() -> None:
    log = new_log()
    log.append_nowait(frames(1, 2))
    assert (log.head, log.pending_head, log.closed, log.finished) == (2, 2, False, False)
    assert log.read(0) == frames(1, 2)
    assert log.has_room
    log.append_nowait([], last=True)
    assert (log.head, log.pending_head, log.closed, log.finished) == (2, 2, True, True)


async def test_there_is_never_anything_to_wait_for_but_readers(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))
    with assert_no_checkpoints():
        await log.flushed()
        await log.reached(1)
        await log.reached(2)  # no such record: a reader that asks for it is refused
    log.append_nowait(frames(2), last=True)
    with assert_no_checkpoints():
        await log.wait_finished()


class HeadWriter:
    """Has written everything that is in the log."""

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.heads: list[int] = []

    def write_appended(self) -> int:
        self.heads.append(self.log.head)
        return self.log.head


async def test_a_direct_write_happens_before_append_returns(autojump_clock: MockClock) -> None:
    log = new_log()
    cursor = log.attach(0)
    cursor.listener = writer = HeadWriter(log)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cursor.wait, 0)
        await wait_all_tasks_blocked()
        log.append_nowait(frames(1))
        assert writer.heads == [1]
        assert (cursor.offset, log.ever_read, log.has_room) == (1, 1, True)
        log.append_nowait(frames(2, 3))
        assert writer.heads == [1, 3]
        log.wake()


def test_the_writer_is_not_told_of_the_room_that_a_direct_write_makes_in_its_own_append() -> None:
    told = []

    class Writer:
        def room_available(self) -> None:
            told.append(log.has_room)

    log = new_log()
    log.listener = Writer()
    log.append_nowait(frames(1))
    assert told == []


async def test_a_log_tells_the_furthest_reader_and_whether_a_task_waits(autojump_clock: MockClock) -> None:
    log = MemoryLog(room_without_readers=True)
    log.append_nowait([b"a", b"b"])
    assert (log.furthest, log.is_awaited) == (0, False)
    slow, fast = log.attach(0), log.attach(1)
    assert log.furthest == 1
    fast.advance(2)
    assert log.furthest == 2
    fast.detach()
    assert (log.furthest, slow.offset) == (0, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.wait_finished)
        await wait_all_tasks_blocked()
        assert log.is_awaited
        log.append_nowait([b"c"], last=True)
    assert not log.is_awaited


async def test_a_lost_log_raises_in_whoever_needs_more(autojump_clock: MockClock) -> None:
    log = MemoryLog(room_without_readers=True)
    log.append_nowait([b"a"])
    cursor = log.attach(1)
    log.lose()
    assert log.read(0) == [b"a"]
    for wait in (partial(cursor.wait, 1), log.wait_finished, partial(log.wait_read, 2)):
        with pytest.raises(LogLostError):
            await wait()
    with pytest.raises(LogLostError):
        log.attach(0)
