"""A worker asks its supervisor for the metrics of all workers."""

from __future__ import annotations

import socket

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.cli import worker as module
from crucible_trio.errors import OverloadedError
from crucible_trio.server.worker_link import Collect, Total, WorkerLink
from crucible_trio.totals import Family

OWN = [Family(name="a", text="A", kind="gauge", samples={("a",): 1.0})]
ALL = [Family(name="a", text="A", kind="gauge", samples={("a",): 3.0})]


async def test_concurrent_calls_share_one_question() -> None:
    ours, theirs = map(WorkerLink, socket.socketpair())
    worker = module._Worker(ours, trio.CancelScope())
    answers: list[list[Family]] = []

    async def collect() -> None:
        answers.append(await worker.collect(OWN))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.run)
            nursery.start_soon(worker.follow_supervisor)
            async with trio.open_nursery() as collecting:
                collecting.start_soon(collect)
                collecting.start_soon(collect)
                assert await anext(theirs) == Collect(OWN)
                await wait_all_tasks_blocked()
                theirs.post(Total(ALL))
                nursery.start_soon(theirs.run)
            assert answers == [ALL, ALL]
            nursery.start_soon(collect)
            assert await anext(theirs) == Collect(OWN)  # the second question, for the third call
            nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_a_supervisor_that_does_not_answer_is_an_error(autojump_clock: MockClock) -> None:
    ours, theirs = map(WorkerLink, socket.socketpair())
    worker = module._Worker(ours, trio.CancelScope())
    with pytest.raises(OverloadedError, match="the supervisor of the workers does not answer"):
        await worker.collect(OWN)
    ours.close()
    theirs.close()
