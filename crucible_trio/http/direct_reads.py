"""Reads sockets without a switch of tasks for each of them.

If a task reads each token from its own socket, trio arms the socket in epoll, schedules the task, and resumes and
suspends a dozen nested coroutines, for each token. docs/design.md has figures. Here all sockets stay in one epoll set,
and one task waits for it. That task calls the receiver of each socket that can be read. The receiver's own task sleeps
until its receiver wants no more.

Only Linux has epoll. Elsewhere every task reads its own socket.
"""

from __future__ import annotations

import select
from collections import deque
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol, final

import trio

# How long one pass of the scheduler may read before other tasks run, in real time.
_SECONDS_PER_PASS: Final = 0.005


class Receiver(Protocol):
    """Reads one socket."""

    def receive_now(self) -> bool:
        """Read the socket. Must not wait, also if nothing has come. Returns whether to go on."""


@dataclass(slots=True)
class _Waiting:
    task: trio.lowlevel.Task
    receiver: Receiver
    error: Exception | None = None


HAS_EPOLL: Final = hasattr(select, "epoll")


@final
class DirectReads:
    """The sockets of one client. Its task starts now, and `aclose` ends it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._waiting: dict[int, _Waiting] = {}
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        # Not in a nursery: the client's context manager would put every error of its block into a group.
        trio.lowlevel.spawn_system_task(self._run, name="direct reads of HTTP responses")

    async def receive(self, file: int, receiver: Receiver) -> None:
        """Call a receiver whenever a socket can be read, until it returns False or raises.

        Args:
            file: The socket's file descriptor. Call `close` before it is closed.
            receiver: Called by another task.

        Raises:
            Exception: The receiver raised it.
            trio.BusyResourceError: Another task receives from the socket.
            trio.ClosedResourceError: The socket is being closed.

        Checkpoints: always. Cancellation: the receiver is not called any more.
        """
        if file in self._waiting:
            message = "another task receives from this socket"
            raise trio.BusyResourceError(message)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._epoll.register(file, select.EPOLLIN)
        waiting = self._waiting[file] = _Waiting(trio.lowlevel.current_task(), receiver)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(file)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if waiting.error is not None:
            raise waiting.error

    def close(self, file: int) -> None:
        """A socket is about to be closed. Its task, if one waits, gets `trio.ClosedResourceError`."""
        if file in self._waiting:
            self._wake(file, trio.ClosedResourceError())

    async def aclose(self) -> None:
        """End the task. No socket may be waited for. Cancellation: it ends all the same."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope, self._epoll:
                await self._read()
        finally:
            self._ended.set()

    async def _read(self) -> None:
        ready: deque[int] = deque()
        while True:
            if ready:  # each gets its turn before any is read again
                await trio.lowlevel.checkpoint()
            else:
                await trio.lowlevel.wait_readable(self._epoll)
                ready.extend(file for file, _ in self._epoll.poll(0))
            until = perf_counter() + _SECONDS_PER_PASS
            while ready:
                self._receive_now(ready.popleft())
                if perf_counter() > until:
                    break

    def _receive_now(self, file: int) -> None:
        if (waiting := self._waiting.get(file)) is None:
            return  # its task was cancelled meanwhile
        error = None
        try:
            goes_on = waiting.receiver.receive_now()
        except Exception as raised:
            error, goes_on = raised, False
        if not goes_on and self._waiting.get(file) is waiting:  # it may have cancelled its task
            self._wake(file, error)

    def _wake(self, file: int, error: Exception | None) -> None:
        waiting = self._waiting[file]
        waiting.error = error
        self._forget(file)
        trio.lowlevel.reschedule(waiting.task)

    def _forget(self, file: int) -> None:
        del self._waiting[file]
        if not self._epoll.closed:  # a run that ends cancels this task first
            self._epoll.unregister(file)
