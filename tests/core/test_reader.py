import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from crucible_trio.errors import CursorAheadError
from crucible_trio.log.contract import Cursor
from crucible_trio.log.memory import MemoryLog
from crucible_trio.reader import Reader
from crucible_trio.records import OutputDelta, encode_frame

STREAM = "str_7Q2M4kWcT0aXn3v9LzB1pg"


def frames(first: int, last: int, width: int = 1) -> list[bytes]:
    return [encode_frame(STREAM, OutputDelta(seq, f"{seq} " * width)) for seq in range(first, last + 1)]


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog(room_without_readers=False)
    log.append_nowait(frames(1, 3))
    return log


class LogAlone:
    """The target of a reader, here without a stream.

    Attributes:
        left: For each reader that has left, how many readers were attached after that.
    """

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.left: list[int] = []

    def open_cursor(self, after: int) -> Cursor:
        return self.log.attach(after)

    def reader_left(self) -> None:
        self.left.append(self.log.readers)


def attached(log: MemoryLog, after: int = 0) -> Reader:
    return Reader(LogAlone(log), after)


async def test_a_reader_gives_every_record_once_and_ends_with_the_terminal_one(
    log: MemoryLog, autojump_clock: MockClock
) -> None:
    seen: list[int] = []

    async def follow() -> None:
        async with attached(log) as reader:
            async for record in reader:
                seen.append(record.seq)  # noqa: PERF401 - the test inspects `seen` during the loop

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        assert seen == [1, 2, 3]
        log.append_nowait(frames(4, 4))
        await wait_all_tasks_blocked()
        assert seen == [1, 2, 3, 4]
        log.append_nowait(frames(5, 6), last=True)
    assert seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("after", [0, 2, 3])
async def test_a_reader_begins_after_its_offset(log: MemoryLog, after: int, autojump_clock: MockClock) -> None:
    log.append_nowait([], last=True)
    async with attached(log, after) as reader:
        assert [record.seq async for record in reader] == [1, 2, 3][after:]
        assert reader.at_end


async def test_the_cursor_moves_when_the_next_record_is_asked_for(log: MemoryLog, autojump_clock: MockClock) -> None:
    log.append_nowait([], last=True)
    async with attached(log) as reader:
        for expected in (1, 2, 3):
            record = await anext(reader)
            assert record.seq == expected
            await wait_all_tasks_blocked()
            assert log.ever_read == expected - 1  # the caller has not asked for the next record yet
        with pytest.raises(StopAsyncIteration):
            await anext(reader)
        assert log.ever_read == 3


async def test_the_cursor_moves_record_by_record_through_a_large_backlog(
    log: MemoryLog, autojump_clock: MockClock
) -> None:
    log.append_nowait(frames(4, 40, width=500), last=True)  # about 50 KiB
    async with attached(log) as reader:
        async for record in reader:
            assert log.ever_read == record.seq - 1


async def test_asking_for_a_record_is_always_a_checkpoint(log: MemoryLog, autojump_clock: MockClock) -> None:
    async with attached(log) as reader:
        for _ in range(3):
            with assert_checkpoints():
                await anext(reader)


async def test_a_transport_moves_the_cursor_when_its_write_has_returned(
    log: MemoryLog, autojump_clock: MockClock
) -> None:
    async with attached(log, 1) as reader:
        assert reader.take(10_000) == frames(2, 3)
        assert reader.take(10_000) == []
        assert log.ever_read == 1
        assert not log.has_room
        reader.passed(2)
        assert not log.has_room
        reader.passed(3)
        assert log.has_room
        assert not reader.at_end
        log.append_nowait(frames(4, 4), last=True)
        assert not reader.at_end
        assert reader.take(0) == frames(4, 4)
        assert reader.at_end


async def test_a_transport_takes_up_to_its_limit(log: MemoryLog, autojump_clock: MockClock) -> None:
    async with attached(log) as reader:
        size = len(frames(1, 1)[0])
        assert reader.take(2 * size) == frames(1, 2)
        assert reader.take(size - 1) == frames(3, 3)


async def test_a_transport_takes_nothing_beyond_its_last_offset(log: MemoryLog, autojump_clock: MockClock) -> None:
    reader = attached(log)
    reader.until = 2
    async with reader:
        assert reader.take(10_000) == frames(1, 2)
        assert reader.take(10_000) == []
        assert reader.taken == 2
        assert not reader.at_end
        reader.passed(2)
        assert log.ever_read == 1  # the last one counts as read when the client asks for more


async def test_wake_ends_a_wait_without_a_new_record(log: MemoryLog, autojump_clock: MockClock) -> None:
    async with attached(log, 3) as reader, trio.open_nursery() as nursery:
        nursery.start_soon(reader.wait)
        await wait_all_tasks_blocked()
        reader.wake()
    assert not reader.at_end


async def test_a_wake_without_a_new_record_gives_no_record(log: MemoryLog, autojump_clock: MockClock) -> None:
    async with attached(log, 3) as reader, trio.open_nursery() as nursery:

        async def end() -> None:
            await wait_all_tasks_blocked()
            log.wake()
            await wait_all_tasks_blocked()
            log.append_nowait(frames(4, 4), last=True)

        nursery.start_soon(end)
        assert [record.seq async for record in reader] == [4]


async def test_a_cancelled_wait_loses_no_record(log: MemoryLog, autojump_clock: MockClock) -> None:
    seen = []
    async with attached(log) as reader, trio.open_nursery() as nursery:

        async def write() -> None:
            for seq in range(4, 30):
                await trio.sleep(1)
                log.append_nowait(frames(seq, seq), last=seq == 29)

        nursery.start_soon(write)
        while not reader.at_end:
            with trio.move_on_after(0.7):
                seen.append((await anext(reader)).seq)
    assert seen == list(range(1, 30))


async def test_leaving_detaches_once_and_is_reported_afterwards(log: MemoryLog, autojump_clock: MockClock) -> None:
    stream = LogAlone(log)
    reader = Reader(stream, 0)
    assert log.readers == 0
    async with reader:
        assert log.readers == 1
    assert stream.left == [0]
    await reader.__aexit__(None, None, None)
    assert stream.left == [0]


async def test_a_refused_reader_is_not_reported_as_leaving(log: MemoryLog, autojump_clock: MockClock) -> None:
    stream = LogAlone(log)
    with pytest.raises(CursorAheadError):
        async with Reader(stream, 4):
            raise AssertionError
    assert (log.readers, stream.left) == (0, [])


async def test_a_reader_that_is_not_attached_is_closed(log: MemoryLog, autojump_clock: MockClock) -> None:
    reader = attached(log)
    for _ in range(2):
        with pytest.raises(trio.ClosedResourceError):
            reader.passed(1)
        with pytest.raises(trio.ClosedResourceError):
            await anext(reader)
        with pytest.raises(trio.ClosedResourceError):
            reader.wake()
        async with reader:
            pass
    assert log.ever_read == 0


class CountingWriter:
    """Writes to nowhere, and counts how often it was asked to."""

    def __init__(self, log: MemoryLog) -> None:
        self.calls = 0
        self._log = log

    def write_appended(self) -> int:
        self.calls += 1
        return self._log.head


async def test_a_transports_listener_is_called_for_an_append_while_the_reader_waits(
    log: MemoryLog, autojump_clock: MockClock
) -> None:
    reader = attached(log, 3)
    reader.listener = writer = CountingWriter(log)
    async with reader, trio.open_nursery() as nursery:
        assert not reader.is_waiting
        log.append_nowait(frames(4, 4))
        assert writer.calls == 0
        assert reader.take(10_000) == frames(4, 4)
        nursery.start_soon(reader.wait)
        await wait_all_tasks_blocked()
        assert reader.is_waiting
        log.append_nowait(frames(5, 5))
        assert writer.calls == 1
        assert reader.is_waiting  # everything was written, so the reader was not woken
        reader.wake()
        assert not reader.is_waiting
