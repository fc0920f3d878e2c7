"""Direct reads: one task calls the receivers of all sockets that can be read."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_trio.http import direct_reads as module
from crucible_trio.http.direct_reads import DirectReads


class Pipe:
    """A socket to read, and the end that writes to it."""

    def __init__(self) -> None:
        self.reading, self.writing = socket.socketpair()
        self.reading.setblocking(False)
        self.received: list[bytes] = []
        self.last = b"end"
        self.limit = 100
        self.then: Callable[[], None] = lambda: None

    @property
    def file(self) -> int:
        return self.reading.fileno()

    def receive_now(self) -> bool:
        try:
            data = self.reading.recv(self.limit)
        except BlockingIOError:
            return True
        self.received.append(data)
        self.then()
        return data != self.last

    async def until(self, count: int) -> None:
        with trio.fail_after(20):
            while len(self.received) < count:
                await trio.lowlevel.checkpoint()


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    pipes = [Pipe() for _ in range(4)]
    yield pipes
    for pipe in pipes:
        pipe.reading.close()
        pipe.writing.close()


@pytest.fixture
def pipe(pipes: list[Pipe]) -> Pipe:
    return pipes[0]


@pytest.fixture
async def reads() -> AsyncIterator[DirectReads]:
    reads = DirectReads()
    yield reads
    await reads.aclose()


async def test_a_receiver_is_called_for_everything_that_comes_until_it_wants_no_more(
    reads: DirectReads, pipe: Pipe, nursery: trio.Nursery
) -> None:
    nursery.start_soon(reads.receive, pipe.file, pipe)
    for number, data in enumerate((b"a", b"b", b"end")):
        pipe.writing.send(data)
        await pipe.until(number + 1)
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks
    pipe.writing.send(b"unread")
    await wait_all_tasks_blocked(0.01)
    assert pipe.received == [b"a", b"b", b"end"]
    pipe.last = b"unread"
    with trio.fail_after(20):
        await reads.receive(pipe.file, pipe)  # nothing was lost in between
    assert pipe.received[-1] == b"unread"


async def test_the_error_of_a_receiver_is_raised_in_its_task(reads: DirectReads, pipe: Pipe) -> None:
    def fail() -> None:
        raise ValueError("broken")

    pipe.then = fail
    pipe.writing.send(b"a")
    with trio.fail_after(20), pytest.raises(ValueError, match="broken"):
        await reads.receive(pipe.file, pipe)


async def test_a_cancelled_receiver_reads_nothing_more(reads: DirectReads, pipe: Pipe) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads.receive, pipe.file, pipe)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        pipe.writing.send(b"a")
    await wait_all_tasks_blocked(0.01)
    assert not pipe.received
    assert pipe.reading.recv(100) == b"a"


@pytest.mark.parametrize("last", [b"end", b"a"])
async def test_a_receiver_may_cancel_its_own_task(reads: DirectReads, pipe: Pipe, last: bytes) -> None:
    pipe.last = last  # the receiver returns True, or False
    with trio.fail_after(20), trio.CancelScope() as scope:
        pipe.then = scope.cancel
        pipe.writing.send(b"a")
        await reads.receive(pipe.file, pipe)
    assert scope.cancelled_caught
    assert pipe.received == [b"a"]


async def test_a_receiver_may_cancel_the_task_of_another(reads: DirectReads, pipes: list[Pipe]) -> None:
    with trio.fail_after(20), trio.CancelScope() as scope:
        for pipe in pipes:
            pipe.then = scope.cancel
        async with trio.open_nursery() as nursery:
            for pipe in pipes:
                nursery.start_soon(reads.receive, pipe.file, pipe)
            await wait_all_tasks_blocked()
            for pipe in pipes:
                pipe.writing.send(b"a")  # all can be read in one pass
    assert sum(len(pipe.received) for pipe in pipes) == 1


async def test_closing_wakes_the_task(reads: DirectReads, pipe: Pipe, nursery: trio.Nursery) -> None:
    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await reads.receive(pipe.file, pipe)

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    reads.close(pipe.file)
    reads.close(pipe.file)  # nothing waits any more
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks


class Passes(trio.abc.Instrument):
    """Counts the passes of the scheduler."""

    number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_other_tasks_run_between_receivers_that_take_long(
    reads: DirectReads, pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    read_in: list[int] = []

    def take_long() -> None:
        clock[0] += 0.004
        read_in.append(passes.number)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for pipe in pipes:
                pipe.last, pipe.then = b"a", take_long
                nursery.start_soon(reads.receive, pipe.file, pipe)
            await wait_all_tasks_blocked()
            for pipe in pipes:
                pipe.writing.send(b"a")
    trio.lowlevel.remove_instrument(passes)
    first, second, third, fourth = read_in
    assert first == second < third == fourth


async def test_sockets_that_are_always_readable_are_read_in_turn(
    reads: DirectReads, pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])

    def take_long() -> None:
        clock[0] += 0.004
        if sum(len(pipe.received) for pipe in pipes) == 40:
            nursery.cancel_scope.cancel()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for pipe in pipes:
                pipe.limit, pipe.then = 1, take_long
                pipe.writing.send(b"a" * 100)
                nursery.start_soon(reads.receive, pipe.file, pipe)
    assert [len(pipe.received) for pipe in pipes] == [10] * 4


async def test_a_socket_has_one_receiver(reads: DirectReads, pipe: Pipe, nursery: trio.Nursery) -> None:
    nursery.start_soon(reads.receive, pipe.file, pipe)
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await reads.receive(pipe.file, pipe)
    nursery.cancel_scope.cancel()


async def test_the_task_ends_with_the_close(pipe: Pipe) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    reads = DirectReads()
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    pipe.writing.send(b"end")
    with trio.fail_after(20):
        await reads.receive(pipe.file, pipe)
        with trio.CancelScope() as scope:
            scope.cancel()
            await reads.aclose()
    assert trio.lowlevel.current_statistics().tasks_living == before


def test_a_run_that_ends_ends_the_task(pipe: Pipe) -> None:
    async def receive() -> None:
        trio.lowlevel.spawn_system_task(DirectReads().receive, pipe.file, pipe)
        await wait_all_tasks_blocked()

    trio.run(receive)
