"""The throughput with a model that never waits."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load, LoadError
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import measure, tokens_in
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Flood:
    """Streams from a model that never waits.

    Attributes:
        streams: Number of streams at the same time.
        window: Seconds that are measured. Each stream runs longer.
    """

    streams: int
    window: float = 1.5

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every generated token must arrive."""
        seconds = self.window + 1.0
        specs = [Spec(kind="flood", name=f"s{n}", tokens=9_000_000, seconds=seconds) for n in range(self.streams)]
        with running(server) as process, Load(process.port) as load:
            load.start(specs)
            load.run_for(0.3)
            window = measure(load, process, self.window)
            load.finish(60.0)
            made = process.made
        got = sum(reader.check() for reader in load.readers)
        if got != made:
            raise LoadError(f"{got} of {made} tokens arrived")
        tokens = tokens_in(load.readers, window)
        return {
            "tokens_per_s": tokens / window.seconds,
            "cpu_us": window.server.used * 1e6 / tokens,
            **window.conditions(),
        }
