"""How soon the model is cancelled after its client has disconnected."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.process import ServerProcess, running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.stats import percentile

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class CancelLatency:
    """The clients of live streams disconnect one after another.

    Attributes:
        streams: Number of streams.
        rate: Tokens per second, each.
        interval: Seconds between two disconnects. Not a divisor of the model's tick.
    """

    streams: int
    rate: float
    interval: float = 0.007

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. A model that is not cancelled in time counts with the time that has passed."""
        specs = [Spec(kind="batch", name=f"s{n}", tokens=1_000_000, rate=self.rate) for n in range(self.streams)]
        closed: dict[str, int] = {}
        with running(server) as process, Load(process.port) as load:
            load.start(specs, on_disconnect="cancel")
            process.ask("/bench/go")
            load.run_for(1.0)
            for reader in load.readers:
                closed[reader.name] = time.monotonic_ns()
                load.close(reader)
                load.run_for(self.interval)
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


def _stopped(process: ServerProcess, count: int) -> dict[str, int]:
    """When each model was cancelled, by stream name. Models that were not cancelled in time are missing."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        stopped = process.ask("/bench")["stopped"]
        assert isinstance(stopped, dict)
        if len(stopped) == count or time.monotonic() > deadline:
            return stopped
        time.sleep(0.2)
