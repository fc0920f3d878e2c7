"""A client leaves: how soon the model knows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.process import Process, running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import Server
from benchmarks.spec import Spec
from benchmarks.stats import percentile

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """So many live streams at so many tokens per second, closed one after another."""

    streams: int
    rate: float
    apart: float = 0.007  # seconds, and no divisor of a tick

    def __call__(self, server: Server) -> Figures:
        """Run it once; a model that never sees it counts with the time it was given."""
        specs = [Spec(kind="batch", name=f"s{n}", tokens=1_000_000, rate=self.rate) for n in range(self.streams)]
        closed: dict[str, int] = {}
        with running(server) as process, Load(process.port) as load:
            load.start(specs, on_disconnect="cancel")
            process.ask("/bench/go")
            load.run_for(1.0)
            for reader in load.readers:
                closed[reader.name] = time.monotonic_ns()
                load.close(reader)
                load.run_for(self.apart)
            stopped = _stopped(process, len(closed))
            now = time.monotonic_ns()
        for reader in load.readers:
            reader.check()
        milliseconds = [(stopped.get(name, now) - at) / 1e6 for name, at in closed.items()]
        return {
            "p50_ms": percentile(milliseconds, 0.5),
            "p99_ms": percentile(milliseconds, 0.99),
            "unseen": len(closed) - len(stopped),
        }


def _stopped(process: Process, count: int) -> dict[str, int]:
    """When each model saw it; those that do not within some seconds are missing."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        stopped = process.ask("/bench")["stopped"]
        assert isinstance(stopped, dict)
        if len(stopped) == count or time.monotonic() > deadline:
            return stopped
        time.sleep(0.2)
