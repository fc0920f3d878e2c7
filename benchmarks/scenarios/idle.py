"""Open streams without tokens."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import measure
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec

_WARM_UP_STREAMS = 20  # so that one-time allocations do not count


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Memory and CPU of silent streams. Each server sends a keep-alive about every 10 s.

    Attributes:
        few: Streams of the first measurement.
        many: Streams of the second measurement.
        window: Seconds for which the CPU is measured, long enough for one keep-alive of each stream.
    """

    few: int
    many: int
    window: float = 10.5

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round."""
        with running(server) as process, Load(process.port) as load:
            load.start([Spec(kind="silent")] * _WARM_UP_STREAMS)
            before = process.memory_bytes()
            load.start([Spec(kind="silent")] * self.few)
            load.run_for(0.5)
            few = process.memory_bytes()
            load.start([Spec(kind="silent")] * (self.many - self.few), timeout=120.0)
            load.run_for(0.5)
            many = process.memory_bytes()
            window = measure(load, process, self.window)
        return {
            "few_kib": (few - before) / self.few / 1024,
            "many_kib": (many - before) / self.many / 1024,
            "cpu_percent": window.server.used / window.seconds * 100,
        }
