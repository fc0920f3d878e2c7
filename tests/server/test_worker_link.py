"""The messages between a supervisor and its workers."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_trio.server.worker_link import Count, Counted, Drain, Message, Ready, WorkerLink, frame
from crucible_trio.totals import Family

MESSAGES: list[Message] = [
    Drain(),
    Ready("ready: é"),
    Counted([Family(name="a", text="A", kind="counter", samples={("a_total", "engine", "x"): 1.5})]),
    Count(),
]


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
async def test_messages_arrive_in_order_in_any_pieces(size: int) -> None:
    ours, theirs = socket.socketpair()
    link = WorkerLink(ours)
    received: list[Message] = []

    async def receive() -> None:
        received.extend([message async for message in link])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            data = b"".join(map(frame, MESSAGES))
            with theirs:
                for start in range(0, len(data), size):
                    theirs.sendall(data[start : start + size])
                    await wait_all_tasks_blocked()
    assert received == MESSAGES
    link.close()


async def test_a_link_sends_what_is_posted_and_never_waits() -> None:
    ours, theirs = map(WorkerLink, socket.socketpair())
    large = Ready("x" * 3_000_000)  # more than the sockets hold
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            ours.post(large)
            ours.post(Drain())
            nursery.start_soon(ours.run)
            await wait_all_tasks_blocked()
            assert [await anext(theirs), await anext(theirs)] == [large, Drain()]
            nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_after_the_end_of_the_other_process_messages_are_lost_without_an_error() -> None:
    sock, other = socket.socketpair()
    link = WorkerLink(sock)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            other.close()
            link.post(Drain())
            await wait_all_tasks_blocked()
            link.post(Drain())
            assert [message async for message in link] == []
    link.close()


async def test_a_cancelled_receiver_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    link = WorkerLink(ours)
    data = frame(Ready("whole"))
    theirs.sendall(data[:6])
    with trio.move_on_after(0.01):
        await anext(link)
    theirs.sendall(data[6:])
    with trio.fail_after(10):
        assert await anext(link) == Ready("whole")
    link.close()
    theirs.close()


async def test_a_reset_is_an_end(nursery: trio.Nursery) -> None:
    ours, theirs = socket.socketpair()
    link = WorkerLink(ours)
    nursery.start_soon(link.run)
    link.post(Drain())
    await wait_all_tasks_blocked()
    theirs.close()  # with an unread message
    with trio.fail_after(10):
        assert [message async for message in link] == []
    link.close()
