"""The log that is stored elsewhere, beyond the contract."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from crucible_trio.errors import LogLostError
from crucible_trio.log.shared import Batch, SharedLog
from crucible_trio.records import (
    ErrorInfo,
    StreamCreated,
    StreamFailed,
    Terminal,
    Timings,
    Usage,
    decode_frame,
    encode_frame,
)


class Store:
    """Counts the calls of the log."""

    def __init__(self) -> None:
        self.asked = 0

    def commit_later(self, log: SharedLog) -> None:
        self.asked += 1


class Writer:
    """The listener of a log."""

    def __init__(self) -> None:
        self.rooms = 0
        self.ended: list[Terminal | None] = []

    def room_available(self) -> None:
        self.rooms += 1

    def log_ended(self, terminal: Terminal | None) -> None:
        self.ended.append(terminal)


class Account:
    def __init__(self) -> None:
        self.bytes = 0

    def log_grew(self, size: int) -> None:
        self.bytes += size


TERMINAL = StreamFailed(3, ErrorInfo("producer_lost", "gone", True), Usage(), Timings(None, 1.0))


def new_log(*, room_without_readers: bool = False, slack: int = 0) -> SharedLog:
    log = SharedLog(Store(), room_without_readers=room_without_readers, slack=slack)
    log.listener = Writer()
    return log


def store_all(log: SharedLog) -> None:
    batch = log.take(1000, 1000_000)
    log.acknowledge(batch.first + len(batch.frames) - 1, ended=batch.last)


def append(log: SharedLog, frame: bytes, pieces: int = 1, *, last: bool = False) -> None:
    log.append_nowait([frame], pieces=pieces, last=last)
    store_all(log)


# Batches


def test_a_batch_is_limited_in_frames_and_bytes_and_has_at_least_one_frame() -> None:
    log = new_log()
    log.append_nowait([b"aaa", b"bb", b"c", b"d"], last=True)
    assert log.take(2, 100) == Batch(1, [b"aaa", b"bb"], last=False)
    assert log.take(9, 5) == Batch(1, [b"aaa", b"bb"], last=False)
    assert log.take(9, 1) == Batch(1, [b"aaa"], last=False)
    assert log.take(4, 100) == Batch(1, [b"aaa", b"bb", b"c", b"d"], last=True)
    assert log.head == 0


def test_what_is_not_acknowledged_is_taken_again_and_the_rest_is_asked_for() -> None:
    store = Store()
    log = SharedLog(store, room_without_readers=True)
    log.append_nowait([b"a", b"b", b"c"])
    assert store.asked == 1
    log.acknowledge(1, ended=False)
    assert (log.head, store.asked, log.needs_commit) == (1, 2, True)
    assert log.take(9, 9) == Batch(2, [b"b", b"c"], last=False)
    log.acknowledge(3, ended=False)
    assert (log.head, store.asked, log.needs_commit) == (3, 2, False)


def test_records_that_the_store_has_lost_are_stored_again_and_stay_visible() -> None:
    log = new_log()
    for frame in (b"a", b"b", b"c"):
        append(log, frame)
    log.append_nowait([b"d"], last=True)
    log.acknowledge(1, ended=False)
    assert (log.head, log.needs_commit) == (3, True)
    assert log.take(9, 99) == Batch(2, [b"b", b"c", b"d"], last=True)
    log.acknowledge(2, ended=False)
    assert log.read(0) == [b"a", b"b", b"c"]
    log.acknowledge(4, ended=True)
    assert log.read(0) == [b"a", b"b", b"c", b"d"]
    assert log.finished
    log.acknowledge(0, ended=False)  # everything is lost after the end
    assert log.take(9, 99) == Batch(1, [b"a", b"b", b"c", b"d"], last=True)
    log.acknowledge(4, ended=True)
    assert log.read(0) == [b"a", b"b", b"c", b"d"]
    assert not log.needs_commit


# Readers of other processes


def test_a_reader_elsewhere_makes_room_up_to_its_slack_in_pieces() -> None:
    log = new_log(slack=5)
    append(log, b"created", pieces=0)
    assert not log.has_room
    cursor = log.attach_remote(1)
    assert log.has_room
    append(log, b"a", pieces=3)
    append(log, b"b", pieces=2)
    assert log.has_room  # 5 behind
    append(log, b"c", pieces=1)
    assert not log.has_room
    cursor.advance(2)
    assert log.has_room  # 3 behind
    log.append_nowait([b"d"], pieces=1)
    assert not log.has_room  # pending
    store_all(log)
    assert log.has_room
    cursor.detach()
    cursor.detach()
    assert not log.has_room


def test_a_reader_elsewhere_that_has_nothing_counts_from_the_beginning() -> None:
    log = new_log(slack=2)
    append(log, b"created", pieces=0)
    log.attach_remote(0)
    assert log.has_room
    append(log, b"a", pieces=3)
    assert not log.has_room


def test_a_reader_elsewhere_may_be_ahead_of_the_acknowledgement() -> None:
    log = new_log()
    append(log, b"a")
    log.append_nowait([b"b"])
    cursor = log.attach_remote(2)
    assert (cursor.offset, log.ever_read, log.has_room) == (2, 2, False)
    store_all(log)
    assert log.has_room


def test_the_furthest_reader_of_any_process_makes_room() -> None:
    log = new_log(room_without_readers=True)
    append(log, b"a")
    append(log, b"b")
    slow = log.attach_remote(0)
    assert not log.has_room
    here = log.attach(1)
    assert not log.has_room
    here.advance(2)
    assert log.has_room
    here.detach()
    assert not log.has_room
    slow.advance(2)
    slow.advance(1)
    assert (slow.offset, log.has_room) == (2, True)


def test_only_readers_of_this_process_count_as_its_readers() -> None:
    log = new_log()
    append(log, b"a")
    assert not log.is_read
    cursor = log.attach_remote(0)
    assert (log.is_read, log.readers) == (True, 0)
    cursor.detach()
    log.attach(0)
    assert (log.is_read, log.readers) == (True, 1)


def test_the_writer_is_told_whenever_a_reader_elsewhere_comes_moves_or_leaves() -> None:
    log = new_log()
    writer = log.listener
    assert isinstance(writer, Writer)
    append(log, b"a")
    before = writer.rooms
    cursor = log.attach_remote(0)
    cursor.advance(1)
    cursor.detach()
    assert writer.rooms == before + 3


async def test_a_wait_for_a_reader_ends_when_one_elsewhere_has_read(autojump_clock: MockClock) -> None:
    log = new_log()
    append(log, b"a")
    cursor = log.attach_remote(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.wait_read, 1)
        await wait_all_tasks_blocked()
        cursor.advance(1)
    with assert_no_checkpoints():
        await log.wait_read(1)
    cursor.advance(0)
    assert log.ever_read == 1


# An end that another process has written


async def test_an_end_from_elsewhere_replaces_what_is_pending(autojump_clock: MockClock) -> None:
    account = Account()
    log = SharedLog(Store(), room_without_readers=True, account=account)
    log.listener = writer = Writer()
    append(log, b"a")
    log.append_nowait([b"pending", b"too"])
    cursor = log.attach(1)
    async with trio.open_nursery() as nursery:
        for wait in (log.flushed, log.wait_finished, partial(cursor.wait, 1), partial(log.reached, 3)):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        log.end_elsewhere([b"other", b"end"], TERMINAL)
    assert log.read(0) == [b"a", b"other", b"end"]
    assert (log.closed, log.finished, log.pending_head, log.needs_commit) == (True, True, 3, False)
    assert log.size_bytes == account.bytes == len(b"aotherend")
    assert writer.ended == [TERMINAL]
    with pytest.raises(trio.ClosedResourceError):
        log.append_nowait([b"x"])


def test_an_end_from_elsewhere_needs_no_listener() -> None:
    log = SharedLog(Store(), room_without_readers=True)
    log.end_elsewhere([b"end"], TERMINAL)
    assert log.finished


# A lost log


async def test_whoever_needs_more_of_a_lost_log_is_told(autojump_clock: MockClock) -> None:
    log = new_log()
    append(log, b"a")
    log.append_nowait([b"pending"])
    cursor = log.attach(1)
    waits = (log.flushed, log.wait_finished, partial(cursor.wait, 1), partial(log.wait_read, 9))
    failures = 0

    async def fail(wait: partial[object]) -> None:
        nonlocal failures
        try:
            while True:  # as readers do
                await wait()  # type: ignore[misc]
        except LogLostError:
            failures += 1

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(fail, wait)
        await wait_all_tasks_blocked()
        log.lose()
    assert failures == len(waits)
    for call in (partial(log.attach, 1), partial(log.append_nowait, [b"x"])):
        with pytest.raises((LogLostError, trio.ClosedResourceError)):
            call()
    assert (log.is_lost, log.closed, log.finished, log.needs_commit) == (True, True, False, False)
    assert log.read(0) == [b"a"]
    writer = log.listener
    assert isinstance(writer, Writer)
    assert writer.ended == [None]
    log.lose()
    assert writer.ended == [None]


def test_a_finished_log_cannot_be_lost() -> None:
    log = new_log()
    append(log, b"a", last=True)
    log.lose()
    assert not log.is_lost
    assert log.attach(0).offset == 0


# Records of a later version


def test_a_record_of_a_type_that_only_a_later_version_knows_is_told_by_its_number() -> None:
    frame = b'data: {"type":"stream.poked","seq":7,"by":"x"}\nid: str_x.7\n\n'
    assert decode_frame(frame).seq == 7
    created = StreamCreated(1, "str_x", "standard", "m", 1.0)
    assert decode_frame(encode_frame("str_x", created)) == created
