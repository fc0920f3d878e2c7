"""The time from the request to the first record and to the first token, with a model that answers immediately."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.stats import percentile


@dataclass(frozen=True, kw_only=True)
class FirstByte:
    """Simultaneous requests over connections that are already open.

    Attributes:
        simultaneous: Number of requests.
        times: How often they are repeated after the warm-up.
    """

    simultaneous: int
    times: int

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round."""
        record_ms: list[float] = []
        token_ms: list[float] = []
        with running(server) as process:
            for turn in range(self.times + 1):
                with Load(process.port) as load:
                    specs = [Spec(kind="flood", name=f"s{n}", tokens=1, seconds=60) for n in range(self.simultaneous)]
                    readers = [load.connect_start(spec) for spec in specs]
                    load.run_for(0.05)
                    for reader in readers:
                        reader.ask()
                    load.finish(30.0)
                for reader in readers:
                    reader.check(1)
                if turn > 0:  # the first time is the warm-up
                    record_ms += [(reader.record_at - reader.asked_at) / 1e6 for reader in readers]
                    token_ms += [(reader.token_at - reader.asked_at) / 1e6 for reader in readers]
        return {
            "record_p50_ms": percentile(record_ms, 0.5),
            "record_p99_ms": percentile(record_ms, 0.99),
            "token_p50_ms": percentile(token_ms, 0.5),
            "token_p99_ms": percentile(token_ms, 0.99),
        }
