"""How many streams a server starts per second."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.client.load import Load, LoadReader
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.stats import percentile


@dataclass(frozen=True, kw_only=True)
class StartRate:
    """Clients that start a stream of one token, read it to its end, and start the next over a new connection.

    Attributes:
        clients: Streams at the same time.
        warm_up: Seconds before the window.
        window: Seconds that are measured.
    """

    clients: int
    warm_up: float = 0.5
    window: float = 3.0

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive."""
        with running(server) as process, Load(process.port) as load:
            active: list[LoadReader] = []
            done: list[tuple[int, LoadReader]] = []
            began = time.monotonic_ns() + int(self.warm_up * 1e9)
            ended = began + int(self.window * 1e9)
            number = 0
            while time.monotonic_ns() < ended:
                while len(active) < self.clients:
                    number += 1
                    reader = load.connect_start(Spec(kind="flood", name=f"s{number}", tokens=1, seconds=60))
                    reader.ask()
                    active.append(reader)
                load.run(30.0, lambda: any(reader.wire.completed or reader.broken for reader in active))
                now = time.monotonic_ns()
                for reader in [reader for reader in active if reader.wire.completed or reader.broken]:
                    active.remove(reader)
                    load.close(reader)
                    done.append((now, reader))
        for _, reader in done:
            reader.check(1)
        measured = [reader for at, reader in done if began <= at < ended]
        record_ms = [(reader.record_at - reader.asked_at) / 1e6 for reader in measured]
        return {
            "streams_per_s": len(measured) / self.window,
            "record_p50_ms": percentile(record_ms, 0.5),
            "record_p99_ms": percentile(record_ms, 0.99),
        }
