"""Many readers of one stream."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.deployment import deployed
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import latencies_ms, measure, tokens_in
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec


@dataclass(frozen=True, kw_only=True)
class FanOut:
    """Many readers follow one stream.

    Attributes:
        readers: Number of readers.
        rate: Tokens per second.
        warm_up: Seconds before the window.
        window: Seconds that are measured.
    """

    readers: int
    rate: float
    warm_up: float = 1.0
    window: float = 3.0

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must reach every reader."""
        spec = Spec(kind="batch", tokens=int(self.rate * (self.warm_up + self.window + 0.3)), rate=self.rate)
        with deployed(server) as process, Load(process.reader_port, start_port=process.port) as load:
            [first] = load.start([spec])
            load.open([lambda: load.connect_follow(first.wire.stream)] * (self.readers - 1))
            process.ask("/bench/go")
            load.run_for(self.warm_up)
            window = measure(load, process, self.window)
            load.finish(60.0)
        for reader in load.readers:
            reader.check(spec.tokens)
        tokens = tokens_in(load.readers, window)
        p50, p99 = latencies_ms(load.readers, window)
        return {
            **window.cpu_us(tokens),
            "p50_ms": p50,
            "p99_ms": p99,
            "tokens_per_s": tokens / window.seconds,
            **window.conditions(),
        }
