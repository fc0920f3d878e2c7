"""What every log promises its writer and its readers: `crucible_trio.log.contract`.

`kind` is each implementation, and `later_kind` each one that commits later than it accepts. A new log joins these tests
in `conftest.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Protocol

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from trio.testing import MockClock, assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from crucible_trio.errors import CursorAheadError
from crucible_trio.log.contract import Cursor, Log
from crucible_trio.log.memory import ByteAccount


class LogKind(Protocol):
    """See `conftest.py`."""

    commits_later: bool

    def new(self, *, room_without_readers: bool = False, account: ByteAccount | None = None) -> Log: ...

    def commit(self) -> None: ...


def frames(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def append(kind: LogKind, log: Log, *numbers: int, last: bool = False) -> None:
    """Append records, and make them visible."""
    log.append_nowait(frames(*numbers), last=last)
    kind.commit()


def new_log(kind: LogKind, *numbers: int, room_without_readers: bool = False) -> Log:
    """A log with these visible records."""
    log = kind.new(room_without_readers=room_without_readers)
    append(kind, log, *numbers)
    return log


async def waits(function: Callable[[], Awaitable[object]], *, while_: Callable[[], object]) -> bool:
    """Whether `function` is still waiting after `while_` has been called."""
    done = False

    async def call() -> None:
        nonlocal done
        await function()
        done = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await wait_all_tasks_blocked()
        assert not done, "the function did not wait"
        while_()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        return not done
    raise AssertionError


def nothing() -> None:
    pass


# Order


def test_the_log_keeps_the_whole_stream_in_order(kind: LogKind) -> None:
    log = kind.new()
    assert (log.head, log.pending_head, log.read(0)) == (0, 0, [])
    append(kind, log, 1, 2)
    append(kind, log, 3)
    assert log.head == log.pending_head == 3
    assert log.read(0) == frames(1, 2, 3)
    assert log.read(2) == frames(3)
    assert log.read(3) == []
    assert not log.finished


def test_appends_become_visible_in_the_order_in_which_they_were_accepted(kind: LogKind) -> None:
    log = kind.new()
    log.append_nowait(frames(1))
    log.append_nowait([])
    log.append_nowait(frames(2, 3))
    assert log.pending_head == 3
    kind.commit()
    log.append_nowait(frames(4))
    log.append_nowait(frames(5), last=True)
    assert log.pending_head == 5
    kind.commit()
    assert log.read(0) == frames(1, 2, 3, 4, 5)
    assert log.finished


def test_nothing_follows_the_terminal_record(kind: LogKind) -> None:
    log = kind.new()
    log.append_nowait(frames(1, 2), last=True)
    for _ in range(2):  # before the commit and after it
        assert log.closed
        with pytest.raises(trio.ClosedResourceError):
            log.append_nowait(frames(3))
        with pytest.raises(trio.ClosedResourceError):
            log.append_nowait([], last=True)
        kind.commit()
    assert log.finished
    assert log.read(0) == frames(1, 2)


def test_a_terminal_append_without_a_frame_ends_the_log(kind: LogKind) -> None:
    log = new_log(kind, 1)
    log.append_nowait([], last=True)
    assert log.closed
    kind.commit()
    assert log.finished
    assert log.read(0) == frames(1)


def test_an_append_without_a_frame_changes_nothing(kind: LogKind) -> None:
    log = new_log(kind, 1, room_without_readers=True)
    log.append_nowait([])
    assert (log.head, log.pending_head, log.size_bytes, log.has_room) == (1, 1, 1, True)


class Account:
    def __init__(self) -> None:
        self.grown: list[int] = []

    def log_grew(self, size: int) -> None:
        self.grown.append(size)


def test_the_bytes_of_a_frame_count_as_soon_as_it_is_accepted(kind: LogKind) -> None:
    account = Account()
    log = kind.new(account=account)
    log.append_nowait([b"abc", b"de"])
    log.append_nowait([b"f"], last=True)
    assert account.grown == [5, 1]
    assert log.size_bytes == 6
    kind.commit()
    assert account.grown == [5, 1]
    assert log.size_bytes == 6


# Reading


def test_an_offset_beyond_the_head_is_refused_without_waiting(kind: LogKind) -> None:
    log = new_log(kind, 1, 2)
    for refused in (log.attach, log.read, lambda after: log.read(after, 100)):
        with pytest.raises(CursorAheadError) as refusal:
            refused(3)
        assert (refusal.value.after, refusal.value.head) == (3, 2)
    assert log.readers == 0


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, [b"aaa"]), (3, [b"aaa"]), (4, [b"aaa"]), (5, [b"aaa", b"bb"]), (99, [b"aaa", b"bb", b"c"])],
)
def test_a_read_stops_before_the_frame_that_would_pass_its_limit(
    kind: LogKind, limit: int, expected: list[bytes]
) -> None:
    log = kind.new()
    log.append_nowait([b"-", b"aaa", b"bb", b"c"])
    kind.commit()
    assert log.read(1, limit) == expected
    assert log.read(4, limit) == []


# Backpressure: whether a running engine may continue


@pytest.mark.parametrize("policy", [True, False])
def test_without_readers_the_policy_decides(kind: LogKind, policy: bool) -> None:
    log = kind.new(room_without_readers=policy)
    assert log.has_room == policy
    append(kind, log, 1)
    assert log.has_room == policy


@pytest.mark.parametrize("policy", [True, False])
def test_there_is_room_when_the_furthest_reader_has_reached_the_head(kind: LogKind, policy: bool) -> None:
    log = new_log(kind, 1, room_without_readers=policy)
    slow = log.attach(0)
    assert not log.has_room
    fast = log.attach(1)
    assert log.has_room
    append(kind, log, 2)
    assert not log.has_room
    fast.advance(2)
    assert log.has_room  # the slow reader can catch up, because the log keeps every record
    fast.detach()
    assert not log.has_room
    slow.advance(1)
    assert not log.has_room
    slow.advance(2)
    assert log.has_room
    slow.detach()
    assert log.has_room == policy


def test_a_cursor_never_goes_back(kind: LogKind) -> None:
    log = new_log(kind, 1, 2)
    cursor = log.attach(0)
    cursor.advance(2)
    cursor.advance(1)
    assert cursor.offset == 2
    assert log.has_room


def test_detaching_twice_detaches_once(kind: LogKind) -> None:
    log = new_log(kind)
    first, second = log.attach(0), log.attach(0)
    assert log.readers == 2
    first.detach()
    first.detach()
    assert log.readers == 1
    second.detach()
    assert log.readers == 0


class RoomCounter:
    """A writer that remembers whether there was room each time it was told so."""

    def __init__(self, log: Log) -> None:
        self.heard: list[bool] = []
        self._log = log
        log.listener = self

    def room_available(self) -> None:
        self.heard.append(self._log.has_room)


def test_the_writer_is_told_of_every_change_that_may_make_room(kind: LogKind) -> None:
    log = new_log(kind, 1, room_without_readers=True)
    writer = RoomCounter(log)
    slow, fast = log.attach(0), log.attach(0)
    slow.detach()
    assert not any(writer.heard)
    at_head = log.attach(1)
    assert writer.heard.pop()
    append(kind, log, 2)
    fast.advance(1)
    assert not writer.heard.pop()
    fast.advance(2)
    assert writer.heard.pop()
    append(kind, log, 3)
    fast.detach()
    assert not writer.heard.pop()
    at_head.detach()
    assert writer.heard.pop()  # no reader is attached any more


def test_a_log_without_a_listener_moves_its_cursors(kind: LogKind) -> None:
    log = new_log(kind, 1)
    cursor = log.attach(0)
    cursor.advance(1)
    append(kind, log, 2)
    cursor.detach()
    assert log.ever_read == 1


async def test_the_log_remembers_a_read_record_after_its_reader_has_left(
    kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(kind, 1, 2)
    reader = log.attach(0)
    assert await waits(lambda: log.wait_read(1), while_=lambda: log.attach(0).detach())
    assert not await waits(lambda: log.wait_read(1), while_=lambda: reader.advance(1))
    reader.detach()
    assert log.ever_read == 1
    with assert_no_checkpoints():
        await log.wait_read(1)
    assert not await waits(lambda: log.wait_read(2), while_=lambda: log.attach(2))


# Following


@pytest.mark.parametrize("news", ["append", "end", "wake the log", "wake the cursor"])
async def test_a_follower_wakes_for_a_record_the_end_and_a_call_of_wake(
    kind: LogKind, news: str, autojump_clock: MockClock
) -> None:
    log = new_log(kind, 1)
    cursor = log.attach(1)

    def happens() -> None:
        assert cursor.is_waiting
        match news:
            case "append":
                append(kind, log, 2)
            case "end":
                append(kind, log, last=True)
            case "wake the log":
                log.wake()
            case _:
                cursor.wake()
        assert not cursor.is_waiting

    assert not await waits(partial(cursor.wait, 1), while_=happens)


async def test_waiting_for_a_record_that_is_in_the_log_is_only_a_checkpoint(
    kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(kind, 1)
    cursor = log.attach(0)
    with assert_checkpoints():
        await cursor.wait(0)
    append(kind, log, 2, last=True)
    with assert_checkpoints():
        await cursor.wait(2)


async def test_a_follower_that_was_cancelled_is_not_woken(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    cursor = log.attach(1)
    with trio.move_on_after(1):
        await cursor.wait(1)
    assert not cursor.is_waiting
    cursor.wake()
    append(kind, log, 2)
    await cursor.wait(1)


async def test_wake_without_a_waiting_reader_does_nothing(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    cursor = log.attach(1)
    log.wake()
    cursor.wake()
    assert await waits(partial(cursor.wait, 1), while_=nothing)


async def test_all_followers_get_every_record(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind)
    seen: dict[int, list[bytes]] = {number: [] for number in range(5)}

    async def follow(number: int) -> None:
        cursor = log.attach(0)
        while not (log.finished and len(seen[number]) == log.head):
            await cursor.wait(len(seen[number]))
            seen[number] += log.read(len(seen[number]), number)
            await trio.sleep(number / 7)

    async with trio.open_nursery() as nursery:
        for number in seen:
            nursery.start_soon(follow, number)
        for number in range(20):
            await trio.sleep(0.1)
            append(kind, log, number, last=number == 19)
    assert all(found == frames(*range(20)) for found in seen.values())


# Direct writes


class ListWriter:
    """Writes frames to a list without waiting, up to the offset `limit`."""

    def __init__(self, log: Log, offset: int) -> None:
        self.log = log
        self.limit = 99
        self.cursor = log.attach(offset)
        self.cursor.listener = self
        self.written: list[bytes] = []
        self.offset = offset

    def write_appended(self) -> int:
        new = self.log.read(self.offset)[: max(0, self.limit - self.offset)]
        self.written += new
        self.offset += len(new)
        return self.offset


async def test_a_direct_write_makes_room_and_does_not_wake_the_reader(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    writer = ListWriter(log, 1)
    assert await waits(partial(writer.cursor.wait, 1), while_=lambda: append(kind, log, 2, 3))
    assert writer.written == frames(2, 3)
    assert (writer.cursor.offset, log.ever_read, log.has_room) == (3, 3, True)


async def test_records_that_cannot_be_written_directly_wake_the_reader(
    kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(kind, 1)
    writer = ListWriter(log, 1)
    writer.limit = 2
    assert not await waits(partial(writer.cursor.wait, 1), while_=lambda: append(kind, log, 2, 3))
    assert writer.written == frames(2)
    assert (writer.cursor.offset, log.has_room) == (2, False)


async def test_the_end_wakes_a_reader_whose_records_were_written_directly(
    kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(kind, 1)
    writer = ListWriter(log, 1)
    assert not await waits(partial(writer.cursor.wait, 1), while_=lambda: append(kind, log, 2, last=True))
    assert writer.written == frames(2)


async def test_nothing_is_written_directly_for_a_reader_that_is_not_waiting(
    kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(kind, 1)
    writer = ListWriter(log, 1)
    append(kind, log, 2)
    with trio.move_on_after(1):
        await writer.cursor.wait(2)
    append(kind, log, 3)  # the reader was cancelled and has not detached yet
    assert writer.written == []
    assert writer.cursor.offset == 1


async def test_a_record_that_was_written_directly_has_been_read(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    writer = ListWriter(log, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.cursor.wait, 1)
        assert not await waits(partial(log.wait_read, 2), while_=lambda: append(kind, log, 2))
        nursery.cancel_scope.cancel()
    writer.cursor.detach()
    assert log.ever_read == 2


async def test_two_readers_are_written_to_in_one_commit(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    first, second = ListWriter(log, 1), ListWriter(log, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.cursor.wait, 1)
        nursery.start_soon(second.cursor.wait, 1)
        await wait_all_tasks_blocked()
        append(kind, log, 2)
        assert (first.written, second.written) == (frames(2), frames(1, 2))
        assert log.has_room
        nursery.cancel_scope.cancel()


# Waiting


async def test_waiting_for_what_has_happened_is_no_checkpoint(kind: LogKind, autojump_clock: MockClock) -> None:
    log = kind.new()
    with assert_no_checkpoints():
        await log.flushed()
        await log.reached(0)
        await log.wait_read(0)
    append(kind, log, 1, 2, last=True)
    log.attach(2)
    with assert_no_checkpoints():
        await log.flushed()
        await log.reached(2)
        await log.wait_read(2)
        await log.wait_finished()


async def test_nothing_waits_for_a_record_that_was_never_accepted(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    with assert_no_checkpoints():
        await log.reached(2)
    with pytest.raises(CursorAheadError):
        log.attach(2)


async def test_wait_finished_waits_for_the_terminal_record(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    assert await waits(log.wait_finished, while_=lambda: append(kind, log, 2))
    assert not await waits(log.wait_finished, while_=lambda: append(kind, log, 3, last=True))


async def test_cancelling_a_wait_changes_nothing(kind: LogKind, autojump_clock: MockClock) -> None:
    log = new_log(kind, 1)
    cursor = log.attach(0)
    for wait in (log.wait_finished, partial(log.wait_read, 1), partial(cursor.wait, 1)):
        with trio.move_on_after(1) as scope:
            await wait()
        assert scope.cancelled_caught
    append(kind, log, 2, last=True)
    cursor.advance(2)
    with assert_no_checkpoints():
        await log.wait_finished()
        await log.wait_read(1)
    await cursor.wait(1)
    assert log.read(0) == frames(1, 2)
    assert (log.readers, log.ever_read) == (1, 2)


# Logs that commit later


def test_nothing_is_visible_before_the_commit(later_kind: LogKind) -> None:
    log = new_log(later_kind, 1)
    log.append_nowait(frames(2, 3), last=True)
    assert (log.head, log.pending_head) == (1, 3)
    assert (log.finished, log.closed) == (False, True)
    assert log.read(0) == frames(1)
    for refused in (log.attach, log.read):
        with pytest.raises(CursorAheadError) as refusal:
            refused(2)
        assert refusal.value.head == 1
    later_kind.commit()
    assert (log.head, log.pending_head) == (3, 3)
    assert (log.finished, log.closed) == (True, True)
    assert log.read(0) == frames(1, 2, 3)
    assert log.attach(3).offset == 3


@pytest.mark.parametrize("policy", [True, False])
def test_there_is_no_room_while_a_record_is_pending(later_kind: LogKind, policy: bool) -> None:
    log = new_log(later_kind, 1, room_without_readers=policy)
    writer = RoomCounter(log)
    assert log.has_room == policy
    log.append_nowait(frames(2))
    assert not log.has_room
    assert writer.heard == []
    later_kind.commit()
    assert writer.heard == [policy]
    at_head = log.attach(2)
    assert log.has_room
    log.append_nowait(frames(3))
    at_head.advance(2)
    assert not log.has_room
    later_kind.commit()
    assert not log.has_room  # now the reader is behind
    at_head.advance(3)
    assert log.has_room


def test_the_writer_may_append_when_it_is_told_of_a_commit(later_kind: LogKind) -> None:
    class Eager:
        def room_available(self) -> None:
            if log.has_room and log.pending_head < 4:
                log.append_nowait(frames(log.pending_head + 1))

    log = new_log(later_kind, 1, room_without_readers=True)
    log.listener = Eager()
    log.append_nowait(frames(2))
    for head in (2, 3, 4, 4):
        later_kind.commit()
        assert log.head == head
    assert log.read(0) == frames(1, 2, 3, 4)


async def test_a_pending_record_wakes_no_reader_and_is_not_written_directly(
    later_kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(later_kind, 1)
    writer = ListWriter(log, 1)
    reader = log.attach(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.cursor.wait, 1)
        await wait_all_tasks_blocked()
        assert await waits(partial(reader.wait, 1), while_=lambda: log.append_nowait(frames(2)))
        assert writer.written == []
        assert not await waits(partial(reader.wait, 1), while_=later_kind.commit)
        assert writer.written == frames(2)
        nursery.cancel_scope.cancel()


async def test_flushed_waits_for_everything_that_was_accepted(later_kind: LogKind, autojump_clock: MockClock) -> None:
    log = later_kind.new()
    log.append_nowait(frames(1))
    assert await waits(log.flushed, while_=nothing)
    assert not await waits(log.flushed, while_=later_kind.commit)
    log.append_nowait([], last=True)  # without a frame, and still to be committed
    assert await waits(log.flushed, while_=nothing)
    assert not await waits(log.flushed, while_=later_kind.commit)


async def test_flushed_does_not_wait_for_what_is_accepted_later(later_kind: LogKind, autojump_clock: MockClock) -> None:
    log = later_kind.new()
    log.append_nowait(frames(1))

    def commit_and_append() -> None:
        later_kind.commit()
        log.append_nowait(frames(2))

    assert not await waits(log.flushed, while_=commit_and_append)
    assert log.pending_head == 2


async def test_reached_waits_for_a_pending_record(later_kind: LogKind, autojump_clock: MockClock) -> None:
    log = later_kind.new()
    log.append_nowait(frames(1, 2))
    for offset in (1, 2):
        assert await waits(partial(log.reached, offset), while_=nothing)
    with assert_no_checkpoints():
        await log.reached(3)
    assert not await waits(partial(log.reached, 2), while_=later_kind.commit)
    assert log.attach(2).offset == 2


async def test_a_terminal_record_that_is_pending_has_not_finished_the_log(
    later_kind: LogKind, autojump_clock: MockClock
) -> None:
    log = new_log(later_kind, 1)
    reader = log.attach(1)
    assert await waits(log.wait_finished, while_=lambda: log.append_nowait(frames(2), last=True))
    assert await waits(partial(reader.wait, 1), while_=nothing)
    assert not await waits(log.wait_finished, while_=later_kind.commit)
    assert log.finished


async def test_cancelling_a_wait_for_a_commit_loses_no_frame(later_kind: LogKind, autojump_clock: MockClock) -> None:
    log = later_kind.new()
    log.append_nowait(frames(1, 2), last=True)
    for wait in (log.flushed, partial(log.reached, 2), log.wait_finished, partial(log.wait_read, 1)):
        with trio.move_on_after(1) as scope:
            await wait()
        assert scope.cancelled_caught
    assert (log.head, log.pending_head) == (0, 2)
    later_kind.commit()
    assert log.read(0) == frames(1, 2)
    with assert_no_checkpoints():
        await log.flushed()
        await log.reached(2)
        await log.wait_finished()


# Any program


class LogAgainstAList(RuleBasedStateMachine):
    """Compares a log with a list while readers attach, read, advance and detach in any order."""

    cursors = Bundle("cursors")

    def __init__(self, kind: LogKind) -> None:
        super().__init__()
        self.kind = kind
        self.account = Account()
        self.log = kind.new(account=self.account)
        self.accepted: list[bytes] = []
        self.visible: list[bytes] = []
        self.offsets: dict[Cursor, int] = {}
        self.ever_read = 0
        self.closed = False
        self.finished = False
        self.is_pending = False

    @precondition(lambda self: not self.closed)
    @rule(new=st.lists(st.binary(min_size=1, max_size=9), max_size=3), last=st.booleans())
    def append(self, new: list[bytes], last: bool) -> None:
        self.log.append_nowait(new, last=last)
        self.accepted += new
        self.closed = last
        self.is_pending = self.is_pending or bool(new) or last
        if not self.kind.commits_later:
            self._is_committed()

    @rule()
    def commit(self) -> None:
        self.kind.commit()
        self._is_committed()

    def _is_committed(self) -> None:
        self.visible = list(self.accepted)
        self.finished = self.closed
        self.is_pending = False

    @precondition(lambda self: self.closed)
    @rule()
    def append_after_the_end(self) -> None:
        with pytest.raises(trio.ClosedResourceError):
            self.log.append_nowait([b"x"])

    @rule(target=cursors, share=st.floats(0, 1))
    def attach(self, share: float) -> Cursor:
        after = int(share * len(self.visible))
        cursor = self.log.attach(after)
        self.offsets[cursor] = after
        self.ever_read = max(self.ever_read, after)
        return cursor

    @rule(target=cursors, ahead=st.integers(1, 9))
    def attach_ahead(self, ahead: int) -> object:
        with pytest.raises(CursorAheadError):
            self.log.attach(len(self.visible) + ahead)
        return multiple()

    @rule(cursor=cursors, limit=st.none() | st.integers(0, 30))
    def read_and_advance(self, cursor: Cursor, limit: int | None) -> None:
        offset = self.offsets[cursor]
        found = self.log.read(offset, limit)
        rest = self.visible[offset:]
        assert found == rest[: len(found)]
        if limit is None:
            assert found == rest
        else:
            assert sum(map(len, found)) <= limit or len(found) == 1
            assert len(found) == len(rest) or sum(map(len, rest[: len(found) + 1])) > limit
        cursor.advance(offset + len(found))
        self.offsets[cursor] = offset + len(found)
        self.ever_read = max(self.ever_read, offset + len(found))

    @rule(cursor=consumes(cursors))
    def cut(self, cursor: Cursor) -> None:
        cursor.detach()
        del self.offsets[cursor]

    @invariant()
    def the_log_matches_the_list(self) -> None:
        assert self.log.head == len(self.visible)
        assert self.log.pending_head == len(self.accepted)
        assert self.log.read(0) == self.visible
        assert self.log.closed == self.closed
        assert self.log.finished == self.finished
        assert self.log.readers == len(self.offsets)
        assert self.log.ever_read == self.ever_read
        assert sum(self.account.grown) == self.log.size_bytes == sum(map(len, self.accepted))
        furthest = max(self.offsets.values(), default=-inf)
        assert self.log.has_room == (furthest == len(self.visible) and not self.is_pending)


def test_any_program_agrees_with_a_list(kind: LogKind) -> None:
    run_state_machine_as_test(
        partial(LogAgainstAList, kind), settings=settings(max_examples=50, stateful_step_count=30)
    )
