"""A worker of `crucible serve --workers N`, as a program: `python -m crucible_trio.cli.worker FD`."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from functools import partial
from typing import Final, final

import msgspec
import trio

from crucible_trio.apis.operations.prometheus import families
from crucible_trio.cli.exit_codes import CANNOT_START
from crucible_trio.cli.running import log_to_stderr, run
from crucible_trio.cli.serve import Service, open_service
from crucible_trio.errors import ConfigError, OverloadedError
from crucible_trio.server.collector import collect_rarely
from crucible_trio.server.worker_link import (
    CannotStart,
    Collect,
    Count,
    Counted,
    Drain,
    Ready,
    Setup,
    Stop,
    Total,
    WorkerLink,
    frame,
)
from crucible_trio.settings import ServiceSettings
from crucible_trio.totals import Family

logger = logging.getLogger(__name__)

_COLLECT_SECONDS: Final = 5.0
_REFUSAL_SECONDS: Final = 5.0


def main() -> None:
    """Serve until the supervisor says otherwise."""
    collect_rarely()
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        try:
            sys.exit(run(partial(_work, sock.dup())))
        except ConfigError as error:
            sock.setblocking(True)
            sock.settimeout(_REFUSAL_SECONDS)
            sock.sendall(frame(CannotStart(str(error))))
            sys.exit(CANNOT_START)


async def _work(sock: socket.socket) -> int:
    link = WorkerLink(sock)
    setup = await anext(link, None)
    if not isinstance(setup, Setup):  # the supervisor has ended already
        return 1
    log_to_stderr(logging.INFO, setup.number)
    settings = msgspec.msgpack.decode(setup.settings, type=ServiceSettings)
    code = 1
    async with trio.open_nursery() as nursery:
        worker = _Worker(link, nursery.cancel_scope)
        nursery.start_soon(link.run)
        nursery.start_soon(worker.follow_supervisor)
        nursery.start_soon(worker.follow_signals)
        async with open_service(settings) as service, trio.open_nursery() as serving:
            worker.service = service
            bind = [f"fd://{number}" for number in setup.sockets]
            server = partial(service.serve, worker.stopping, worker.accepting, bind=bind, workers=worker)
            link.post(Ready(await serving.start(server)))
        code = 0
        nursery.cancel_scope.cancel()
    return 0 if worker.is_abandoned_start else code


@final
class _Worker:
    """This process, as its supervisor sees it, and the other processes, as this one sees them (`Workers`)."""

    def __init__(self, link: WorkerLink, everything: trio.CancelScope) -> None:
        self.stopping = trio.Event()
        self.accepting = trio.CancelScope()
        self.service: Service | None = None
        self.is_abandoned_start = False
        self._link = link
        self._everything = everything
        self._totals: list[Family] = []
        self._answered = trio.Event()
        self._answered.set()

    async def collect(self, own: list[Family]) -> list[Family]:
        """The metrics of all workers. Concurrent calls share one question to the supervisor."""
        if self._answered.is_set():
            self._answered = trio.Event()
            self._link.post(Collect(own))
        with trio.move_on_after(_COLLECT_SECONDS):
            await self._answered.wait()
            return self._totals
        message = "the supervisor of the workers does not answer"
        raise OverloadedError(message)

    async def follow_supervisor(self) -> None:
        """Do what the supervisor says. If it has ended, so does this process."""
        async for message in self._link:
            match message:
                case Drain():
                    self._drain()
                case Stop():
                    self._everything.cancel()
                case Count() if self.service is not None:
                    self._link.post(Counted(families(self.service.pipeline)))
                case Total():
                    self._totals = message.families
                    self._answered.set()
        logger.error("the supervisor has ended: waiting for running streams, then this worker ends, too")
        self.accepting.cancel()  # the next supervisor may want the address
        self._drain()

    async def follow_signals(self) -> None:
        """Drain. Repeated signals change nothing: a service manager sends them to all processes of a service."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                self._drain()

    def _drain(self) -> None:
        self.stopping.set()
        if self.service is None:
            self.is_abandoned_start = True
            self._everything.cancel()


if __name__ == "__main__":
    main()
