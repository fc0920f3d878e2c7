"""How far a model that never waits runs ahead of a client that stops reading."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.client.load import Load, LoadError
from benchmarks.process import ServerProcess, running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.tokens import TOKEN_LENGTH

_RECEIVE_BUFFER = 64 * 1024  # of the client's socket, the same for all servers


@dataclass(frozen=True)
class Stalled:
    """A client that reads for this many seconds, then stops."""

    reading: float = 0.3

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. No buffered token may be lost."""
        spec = Spec(kind="flood", tokens=9_000_000, seconds=60)
        with running(server) as process, Load(process.port) as load:
            [reader] = load.open([lambda: load.connect_start(spec, receive_buffer=_RECEIVE_BUFFER)])
            load.run_for(self.reading)
            read = len(reader.text) // TOKEN_LENGTH
            made = _made_at_rest(process)
            with process.frozen():  # the tokens that still arrive were in the kernel's buffers
                load.run_for(0.3)
            delivered = reader.check()
        return {
            "ahead": made - read,
            "held": made - delivered,
            "kernel": delivered - read,
        }


def _made_at_rest(process: ServerProcess) -> int:
    time.sleep(0.7)
    made = process.made
    for _ in range(20):
        time.sleep(0.3)
        if made == (made := process.made):
            return made
    raise LoadError("the model does not wait for the stalled client")
