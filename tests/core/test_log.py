from collections.abc import Callable
from functools import partial
from math import inf

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from crucible_trio.errors import CursorAheadError
from crucible_trio.log.contract import Cursor
from crucible_trio.log.memory import MemoryLog


def frames(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def new_log(
    *,
    room_without_readers: bool = False,
    on_growth: Callable[[int], None] = lambda _: None,
    on_room: Callable[[], None] = lambda: None,
) -> MemoryLog:
    return MemoryLog(room_without_readers=room_without_readers, on_growth=on_growth, on_room=on_room)


def test_the_log_keeps_the_whole_stream_in_order() -> None:
    log = new_log()
    assert (log.head, log.read(0)) == (0, [])
    log.append_nowait(frames(1, 2))
    log.append_nowait(frames(3))
    assert log.head == 3
    assert log.read(0) == frames(1, 2, 3)
    assert log.read(2) == frames(3)
    assert log.read(3) == []
    assert not log.finished


def test_nothing_follows_the_terminal_record() -> None:
    log = new_log()
    log.append_nowait(frames(1, 2), last=True)
    assert log.finished
    with pytest.raises(trio.ClosedResourceError):
        log.append_nowait(frames(3))
    with pytest.raises(trio.ClosedResourceError):
        log.append_nowait(frames(3), last=True)
    assert log.read(0) == frames(1, 2)


def test_growth_is_reported_in_bytes() -> None:
    grown: list[int] = []
    log = new_log(on_growth=grown.append)
    log.append_nowait([b"abc", b"de"])
    log.append_nowait([b"f"], last=True)
    assert grown == [5, 1]
    assert log.size_bytes == 6


def test_an_offset_beyond_the_head_is_refused_without_waiting() -> None:
    log = new_log()
    log.append_nowait(frames(1, 2))
    for refused in (log.attach, log.read, lambda after: log.read(after, 100)):
        with pytest.raises(CursorAheadError) as refusal:
            refused(3)
        assert (refusal.value.after, refusal.value.head) == (3, 2)
    assert log.readers == 0


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, [b"aaa"]), (3, [b"aaa"]), (4, [b"aaa"]), (5, [b"aaa", b"bb"]), (99, [b"aaa", b"bb", b"c"])],
)
def test_a_read_stops_before_the_frame_that_would_pass_its_limit(limit: int, expected: list[bytes]) -> None:
    log = new_log()
    log.append_nowait([b"-", b"aaa", b"bb", b"c"])
    assert log.read(1, limit) == expected
    assert log.read(4, limit) == []


# Backpressure: whether a running engine may continue.


def test_without_readers_the_policy_decides() -> None:
    for policy in (True, False):
        log = new_log(room_without_readers=policy)
        assert log.has_room == policy
        log.append_nowait(frames(1))
        assert log.has_room == policy


@pytest.mark.parametrize("policy", [True, False])
def test_there_is_room_when_the_furthest_reader_has_reached_the_head(policy: bool) -> None:
    log = new_log(room_without_readers=policy)
    log.append_nowait(frames(1))
    slow = log.attach(0)
    assert not log.has_room
    fast = log.attach(1)
    assert log.has_room
    log.append_nowait(frames(2))
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


def test_a_cursor_never_goes_back() -> None:
    log = new_log()
    log.append_nowait(frames(1, 2))
    cursor = log.attach(0)
    cursor.advance(2)
    cursor.advance(1)
    assert cursor.offset == 2
    assert log.has_room


def test_detaching_twice_detaches_once() -> None:
    log = new_log()
    first, second = log.attach(0), log.attach(0)
    assert log.readers == 2
    first.detach()
    first.detach()
    assert log.readers == 1
    second.detach()
    assert log.readers == 0


async def waits(function: Callable[[], object], *, while_: Callable[[], object]) -> bool:
    """Whether `function` is still waiting after `while_` has been called."""
    done = False

    async def call() -> None:
        nonlocal done
        await function()  # type: ignore[misc]
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


def test_the_writer_is_told_of_every_change_that_may_make_room() -> None:
    heard: list[bool] = []
    log = new_log(room_without_readers=True, on_room=lambda: heard.append(log.has_room))
    log.append_nowait(frames(1))
    slow, fast = log.attach(0), log.attach(0)
    slow.detach()
    assert not any(heard)
    log.attach(1)
    assert heard.pop()
    log.append_nowait(frames(2))
    fast.advance(1)
    assert not heard.pop()
    fast.advance(2)
    assert heard.pop()
    log.append_nowait(frames(3))
    for cursor in tuple(log._cursors):
        cursor.detach()
    assert heard.pop()  # no reader is attached any more


async def test_the_log_remembers_a_read_record_after_its_reader_has_left(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1, 2))
    reader = log.attach(0)
    assert await waits(lambda: log.wait_read(1), while_=lambda: log.attach(0).detach())
    assert not await waits(lambda: log.wait_read(1), while_=lambda: reader.advance(1))
    reader.detach()
    assert log.ever_read == 1
    await log.wait_read(1)
    assert not await waits(lambda: log.wait_read(2), while_=lambda: log.attach(2))


# Following


@pytest.mark.parametrize("news", ["append", "end", "wake"])
async def test_a_follower_wakes_for_a_record_the_end_and_a_call_of_wake(news: str, autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))

    def happens() -> None:
        match news:
            case "append":
                log.append_nowait(frames(2))
            case "end":
                log.append_nowait([], last=True)
            case _:
                log.wake()

    assert not await waits(partial(log.attach(1).wait, 1), while_=happens)


async def test_waiting_for_a_record_that_is_in_the_log_is_only_a_checkpoint(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))
    cursor = log.attach(0)
    with assert_checkpoints():
        await cursor.wait(0)
    log.append_nowait(frames(2), last=True)
    with assert_checkpoints():
        await cursor.wait(2)


async def test_a_follower_that_was_cancelled_is_not_woken(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))
    cursor = log.attach(1)
    with trio.move_on_after(1):
        await cursor.wait(1)
    cursor.wake()
    log.append_nowait(frames(2))
    await cursor.wait(1)


class ListWriter:
    """Writes frames to a list without waiting, up to the offset `limit`."""

    def __init__(self, log: MemoryLog, position: int) -> None:
        self.log = log
        self.limit = 99
        self.cursor = log.attach(position)
        self.cursor.listener = self.write
        self.written: list[bytes] = []
        self.position = position

    def write(self) -> int:
        new = self.log.read(self.position)[: max(0, self.limit - self.position)]
        self.written += new
        self.position += len(new)
        return self.position


async def test_a_direct_write_makes_room_and_does_not_wake_the_reader(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))
    writer = ListWriter(log, 1)
    assert await waits(partial(writer.cursor.wait, 1), while_=lambda: log.append_nowait(frames(2, 3)))
    assert writer.written == frames(2, 3)
    assert (writer.cursor.offset, log.ever_read, log.has_room) == (3, 3, True)


async def test_records_that_cannot_be_written_directly_wake_the_reader(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))
    writer = ListWriter(log, 1)
    writer.limit = 2
    assert not await waits(partial(writer.cursor.wait, 1), while_=lambda: log.append_nowait(frames(2, 3)))
    assert writer.written == frames(2)
    assert (writer.cursor.offset, log.has_room) == (2, False)


async def test_nothing_is_written_directly_for_a_reader_that_is_not_waiting(autojump_clock: MockClock) -> None:
    log = new_log()
    log.append_nowait(frames(1))
    writer = ListWriter(log, 1)
    log.append_nowait(frames(2))
    with trio.move_on_after(1):
        await writer.cursor.wait(2)
    log.append_nowait(frames(3))  # the reader was cancelled and has not detached yet
    assert writer.written == []
    assert writer.cursor.offset == 1


async def test_all_followers_get_every_record(autojump_clock: MockClock) -> None:
    log = new_log()
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
            log.append_nowait(frames(number), last=number == 19)
    assert all(found == frames(*range(20)) for found in seen.values())


class LogAgainstAList(RuleBasedStateMachine):
    """Compares a log with a list while readers attach, read, advance and detach in any order."""

    cursors = Bundle("cursors")

    def __init__(self) -> None:
        super().__init__()
        self.grown = 0
        self.log = new_log(on_growth=self._grew)
        self.expected: list[bytes] = []
        self.positions: dict[Cursor, int] = {}
        self.ever_read = 0
        self.ended = False

    def _grew(self, size: int) -> None:
        self.grown += size

    @precondition(lambda self: not self.ended)
    @rule(new=st.lists(st.binary(min_size=1, max_size=9), max_size=3), last=st.booleans())
    def append(self, new: list[bytes], last: bool) -> None:
        self.log.append_nowait(new, last=last)
        self.expected += new
        self.ended = last

    @precondition(lambda self: self.ended)
    @rule()
    def append_after_the_end(self) -> None:
        with pytest.raises(trio.ClosedResourceError):
            self.log.append_nowait([b"x"])

    @rule(target=cursors, share=st.floats(0, 1))
    def attach(self, share: float) -> Cursor:
        after = int(share * len(self.expected))
        cursor = self.log.attach(after)
        self.positions[cursor] = after
        self.ever_read = max(self.ever_read, after)
        return cursor

    @rule(target=cursors, ahead=st.integers(1, 9))
    def attach_ahead(self, ahead: int) -> object:
        with pytest.raises(CursorAheadError):
            self.log.attach(len(self.expected) + ahead)
        return multiple()

    @rule(cursor=cursors, limit=st.none() | st.integers(0, 30))
    def read_and_advance(self, cursor: Cursor, limit: int | None) -> None:
        position = self.positions[cursor]
        found = self.log.read(position, limit)
        rest = self.expected[position:]
        assert found == rest[: len(found)]
        if limit is None:
            assert found == rest
        else:
            assert sum(map(len, found)) <= limit or len(found) == 1
            assert len(found) == len(rest) or sum(map(len, rest[: len(found) + 1])) > limit
        cursor.advance(position + len(found))
        self.positions[cursor] = position + len(found)
        self.ever_read = max(self.ever_read, position + len(found))

    @rule(cursor=consumes(cursors))
    def cut(self, cursor: Cursor) -> None:
        cursor.detach()
        del self.positions[cursor]

    @invariant()
    def the_log_matches_the_list(self) -> None:
        assert self.log.head == len(self.expected)
        assert self.log.read(0) == self.expected
        assert self.log.finished == self.ended
        assert self.log.readers == len(self.positions)
        assert self.log.ever_read == self.ever_read
        assert self.grown == self.log.size_bytes == sum(map(len, self.expected))
        furthest = max(self.positions.values(), default=-inf)
        assert self.log.has_room == (furthest == len(self.expected))


TestLogAgainstAList = LogAgainstAList.TestCase
TestLogAgainstAList.settings = settings(max_examples=50, stateful_step_count=30)
