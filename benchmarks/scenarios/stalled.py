"""A client stops reading a model that never waits: how far that runs ahead."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.client.load import Load, LoadError
from benchmarks.process import Process, running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import Server
from benchmarks.spec import Spec
from benchmarks.tokens import TOKEN_LENGTH

_RECEIVE_BUFFER = 64 * 1024  # the client's share of what the kernel holds, the same for all


@dataclass(frozen=True)
class Stalled:
    """A client that reads for so many seconds and then no more."""

    reading: float = 0.3

    def __call__(self, server: Server) -> Figures:
        """Run it once; nothing that was held back may be lost."""
        spec = Spec(kind="flood", tokens=9_000_000, seconds=60)
        with running(server) as process, Load(process.port) as load:
            [reader] = load.open([lambda: load.connect_start(spec, receive_buffer=_RECEIVE_BUFFER)])
            load.run_for(self.reading)
            read = len(reader.text) // TOKEN_LENGTH
            made = _made_at_rest(process)
            with process.frozen():  # what still arrives, the kernel had
                load.run_for(0.3)
            handed_over = reader.check()
        return {
            "ahead": made - read,
            "held": made - handed_over,
            "kernel": handed_over - read,
        }


def _made_at_rest(process: Process) -> int:
    time.sleep(0.7)
    made = process.made
    for _ in range(20):
        time.sleep(0.3)
        if made == (made := process.made):
            return made
    raise LoadError("the model does not stop")
