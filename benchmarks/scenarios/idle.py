"""Open streams on which nothing happens."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import measure
from benchmarks.servers import Server
from benchmarks.spec import Spec

_FIRST = 20  # what they bring in once is no stream's


@dataclass(frozen=True, kw_only=True)
class Idle:
    """First so many silent streams, then more; each server sends what keeps a connection alive every 10 s or so."""

    few: int
    many: int
    window: float = 10.5

    def __call__(self, server: Server) -> Figures:
        """Run it once."""
        with running(server) as process, Load(process.port) as load:
            load.start([Spec(kind="silent")] * _FIRST)
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
