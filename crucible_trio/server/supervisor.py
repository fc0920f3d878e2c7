"""Keeps several worker processes running that serve the same sockets.

The supervisor opens the sockets once, and every worker inherits them. So a connection that arrives while a worker ends
waits in the kernel's queue for any other worker, or for the next one. With SO_REUSEPORT each worker would have a queue,
which is lost with it, and sockets in the file system could not be shared.

Each worker is a fresh process, because a process that runs trio must not be forked. It gets its settings over a
`WorkerLink`. When the supervisor ends, the link ends, so even SIGKILL of the supervisor leaves no worker behind.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Final, final

import trio

from crucible_trio.errors import ConfigError
from crucible_trio.server.worker_link import (
    CannotStart,
    Collect,
    Count,
    Counted,
    Drain,
    Message,
    Ready,
    Setup,
    Stop,
    Total,
    WorkerLink,
)
from crucible_trio.totals import Family, add, lasting

logger = logging.getLogger(__name__)

# The first new process starts immediately. Each further one waits twice as long, until one has lived for a minute.
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_LONG_LIFE_SECONDS: Final = 60.0
# About 90 s with these delays. A log server that restarts is back by then.
_MOST_FAILED_STARTS: Final = 10
# A stop lasts at most as long as the lifespan of an application, which has ten seconds.
_STOP_SECONDS: Final = 15.0
_EXIT_SECONDS: Final = 5.0  # from the end of the link to the end of the process
_COUNT_SECONDS: Final = 1.0  # Prometheus waits ten seconds for everything


@final
class Supervisor:
    """Several workers that serve the same sockets.

    Args:
        command: The command of a worker. The file descriptor of its link is appended.
        workers: How many there are.
        sockets: The sockets to listen on. They are closed when the supervisor drains.
        settings: The settings for each worker. See `Setup`.
        drain_seconds: How long a worker may take to drain before it is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        workers: int,
        *,
        sockets: Sequence[socket.socket],
        settings: bytes,
        drain_seconds: float,
    ) -> None:
        self._command = command
        self._workers = [_Worker(number) for number in range(1, workers + 1)]
        self._sockets = sockets
        self._settings = settings
        self._drain_seconds = drain_seconds
        self._draining = trio.Event()
        self._stopping = trio.Event()
        self._ready = trio.Event()
        self._starting = trio.Lock()  # held while a worker inherits the sockets
        self._restarts = 0
        self._code = 0
        self._refusal: str | None = None

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> int:
        """Run the workers until they have drained or stopped.

        Args:
            task_status: Receives the start message of the first worker when all workers are ready. Empty if they end
                before that.

        Returns:
            0 if all workers have drained, 1 if they had to stop, or the exit code of a worker that ended too often.

        Raises:
            ConfigError: A worker refused its settings at the first start, or its process could not be started.

        Cancellation: ends the workers with SIGTERM and, after five seconds, with SIGKILL.
        """
        async with trio.open_nursery() as helping:
            helping.start_soon(self._close_sockets)
            helping.start_soon(self._kill_late)
            async with trio.open_nursery() as keeping:
                for worker in self._workers:
                    keeping.start_soon(self._keep, worker)
                keeping.start_soon(self._announce, task_status)
            helping.cancel_scope.cancel()
        if self._refusal is not None:
            raise ConfigError(self._refusal)
        return 1 if self._stopping.is_set() else self._code

    def drain(self) -> None:
        """Let the workers finish their streams, then end."""
        self._draining.set()
        self._ready.set()  # nothing waits for it any longer
        for worker in self._workers:
            worker.post(Drain())

    def stop(self) -> None:
        """End the workers immediately."""
        self.drain()
        self._stopping.set()
        for worker in self._workers:
            worker.post(Stop())

    async def _announce(self, task_status: trio.TaskStatus[str]) -> None:
        await self._ready.wait()
        task_status.started("" if self._draining.is_set() else self._workers[0].message)

    async def _close_sockets(self) -> None:
        # From now on the workers alone decide how long clients can connect.
        await self._draining.wait()
        async with self._starting:
            for sock in self._sockets:
                sock.close()

    async def _kill_late(self) -> None:
        await self._draining.wait()
        with trio.move_on_after(self._drain_seconds):
            await self._stopping.wait()
            await trio.sleep(_STOP_SECONDS)
        logger.error("killing the workers that have not ended in time")
        self._code = self._code or 1
        for worker in self._workers:
            worker.kill()

    async def _keep(self, worker: _Worker) -> None:
        """Start a worker, and start it again whenever it ends."""
        early_ends = failed_starts = 0
        while True:
            began = trio.current_time()
            code = await self._live(worker)
            if self._draining.is_set():
                return
            if worker.was_ready:
                failed_starts = 0
                if trio.current_time() - began > _LONG_LIFE_SECONDS:
                    early_ends = 0
            else:
                failed_starts += 1
                if failed_starts == _MOST_FAILED_STARTS or not self._ready.is_set():
                    self._give_up(worker, code, failed_starts)
                    return
            delay = min(_FIRST_DELAY_SECONDS * 2 ** (early_ends - 1), _LONGEST_DELAY_SECONDS) if early_ends else 0.0
            early_ends += 1
            self._restarts += 1
            after = f" in {delay:g} s" if delay else ""
            logger.warning("worker %d %s: starting it again%s", worker.number, _describe(code, worker), after)
            with trio.move_on_after(delay):
                await self._draining.wait()
                return

    def _give_up(self, worker: _Worker, code: int, failed_starts: int) -> None:
        if not self._ready.is_set() and worker.refusal is not None:
            self._refusal = self._refusal or worker.refusal
        else:
            what = f"worker {worker.number} {_describe(code, worker)}"
            times = f", {failed_starts} times in a row" if failed_starts > 1 else ""
            logger.error("%s before it was ready%s: stopping", what, times)
            self._code = self._code or _exit_code(code)
        self.drain()

    async def _live(self, worker: _Worker) -> int:
        """Run one process of a worker to its end.

        Returns:
            Its exit code, or the negative number of the signal that killed it.
        """
        async with trio.open_nursery() as nursery:
            try:
                started = await self._start(worker, nursery)
            except OSError as error:  # no memory, or no more processes or files
                worker.cannot_start(f"no process can be started: {error.strerror}")
                return 1
            if started is None:
                return 0
            process, link = started
            nursery.start_soon(link.run)
            with closing(link):
                async for message in link:
                    self._take(worker, message, nursery)
                with trio.move_on_after(_EXIT_SECONDS):
                    await process.wait()
                process.kill()
                code = await process.wait()
                worker.end()
                nursery.cancel_scope.cancel()
        return code

    async def _start(self, worker: _Worker, nursery: trio.Nursery) -> tuple[trio.Process, WorkerLink] | None:
        """Start a process that inherits the sockets. None: the supervisor drains."""
        async with self._starting:
            if self._draining.is_set():
                return None
            sockets = [sock.fileno() for sock in self._sockets]
            ours, theirs = socket.socketpair()
            with theirs, ExitStack() as if_it_fails:
                if_it_fails.enter_context(ours)
                process: trio.Process = await nursery.start(
                    partial(
                        trio.run_process,
                        [*self._command, str(theirs.fileno())],
                        check=False,
                        stdin=subprocess.DEVNULL,
                        pass_fds=[theirs.fileno(), *sockets],
                        # A terminal's Ctrl-C would also reach a worker that cannot handle it yet.
                        process_group=0,
                    )
                )
                if_it_fails.pop_all()
        link = WorkerLink(ours)
        worker.begin(process, link)
        link.post(Setup(worker.number, sockets, self._settings))
        if self._draining.is_set():
            link.post(Drain())
        return process, link

    def _take(self, worker: _Worker, message: Message, nursery: trio.Nursery) -> None:
        match message:
            case Ready():
                worker.was_ready = True
                worker.message = message.message
                if all(each.was_ready for each in self._workers):
                    self._ready.set()
            case CannotStart():
                worker.refusal = message.message
            case Counted():
                worker.families = message.families
                worker.counted.set()
            case Collect():
                worker.families = message.families
                nursery.start_soon(self._collect, worker)

    async def _collect(self, asking: _Worker) -> None:
        """Send the metrics of all workers to the one that asks for them."""
        others = [worker for worker in self._workers if worker is not asking and worker.is_running]
        for worker in others:
            worker.ask()
        with trio.move_on_after(_COUNT_SECONDS):
            for worker in others:
                await worker.counted.wait()
        answering = [asking, *(worker for worker in others if worker.is_running and worker.counted.is_set())]
        families = [*(worker.ended for worker in self._workers), self._own(len(answering))]
        # Of the others only what never goes down, or the sums would.
        families += [each.families if each in answering else lasting(each.families) for each in self._workers]
        asking.post(Total(add(*families)))

    def _own(self, answering: int) -> list[Family]:
        restarts: dict[tuple[str, ...], float] = {("crucible_worker_restarts_total",): float(self._restarts)}
        return [
            _gauge("crucible_workers", "Processes that serve together", len(self._workers)),
            _gauge("crucible_workers_answering", "Processes whose numbers are complete in this response", answering),
            Family(
                name="crucible_worker_restarts",
                text="Processes that were started because one had ended",
                kind="counter",
                samples=restarts,
            ),
        ]


@final
class _Worker:
    """A worker: one process after another, with one number.

    Attributes:
        number: Its number, from 1.
        was_ready: Whether clients could connect to its process.
        message: The message of its start.
        refusal: Why its process could not start, if the reason is known.
        families: The last known metrics of its process.
        ended: What remains of the metrics of its earlier processes.
        counted: Set when the process has answered the last `Count`.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.was_ready = False
        self.message = ""
        self.refusal: str | None = None
        self.families: list[Family] = []
        self.ended: list[Family] = []
        self.counted = trio.Event()
        self._process: trio.Process | None = None
        self._link: WorkerLink | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process runs and can be asked."""
        return self._link is not None and self.was_ready

    def begin(self, process: trio.Process, link: WorkerLink) -> None:
        """A new process has started."""
        self._process, self._link = process, link
        self.was_ready = False
        self.refusal = None
        self.counted = trio.Event()
        self.counted.set()
        logger.info("worker %d is process %d", self.number, process.pid)

    def cannot_start(self, reason: str) -> None:
        """No new process has started."""
        self.was_ready = False
        self.refusal = reason

    def end(self) -> None:
        """The process has ended."""
        self._process = self._link = None
        self.ended = add(self.ended, lasting(self.families))
        self.families = []
        self.counted.set()

    def ask(self) -> None:
        """Ask the process for its metrics, unless it still owes an answer."""
        if self.counted.is_set():
            self.counted = trio.Event()
            self.post(Count())

    def post(self, message: Message) -> None:
        """Send a message to the process, if there is one."""
        if self._link is not None:
            self._link.post(message)

    def kill(self) -> None:
        """End the process with SIGKILL, if there is one."""
        if self._process is not None:
            self._process.kill()


def _gauge(name: str, text: str, value: float) -> Family:
    samples: dict[tuple[str, ...], float] = {(name,): value}
    return Family(name=name, text=text, kind="gauge", samples=samples)


def _describe(code: int, worker: _Worker) -> str:
    if worker.refusal is not None:
        return f"cannot start ({worker.refusal})"
    return f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _exit_code(code: int) -> int:
    # As a shell reports it. A worker that ends with 0 before it is ready has failed, too.
    return 128 - code if code < 0 else code or 1
