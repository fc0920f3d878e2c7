"""Streams at the pace of a model: the CPU time and the latency of a token."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Literal

from benchmarks.client.load import Load
from benchmarks.client.wire import Wire
from benchmarks.deployment import deployed
from benchmarks.process import ServerProcess
from benchmarks.scenarios.scenario import Figures, Metric
from benchmarks.scenarios.window import latencies_ms, measure, tokens_in
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec

CPU = Metric(name="cpu_us", label="server CPU per token", unit="µs")
P50 = Metric(name="p50_ms", label="token latency p50", unit="ms")
P99 = Metric(name="p99_ms", label="token latency p99", unit="ms")
RATE = Metric(name="tokens_per_s", label="throughput", unit="tokens/s", better="higher")
MEMORY = Metric(name="kib_per_stream", label="memory per stream", unit="KiB")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Streams with a fixed number of tokens per second.

    Attributes:
        kind: One timer for the `batch` of all streams, or a `timer` for each stream.
        streams: Number of streams at the same time.
        rate: Tokens per second, each.
        warm_up: Seconds before the window.
        window: Seconds that are measured.
        tail: Seconds of tokens after the window, so that no stream ends inside it.
        timeout: Seconds after the window in which a server that fell behind must deliver the rest.
    """

    kind: Literal["batch", "timer"] = "batch"
    streams: int
    rate: float
    warm_up: float = 1.0
    window: float = 3.0
    tail: float = 0.3
    timeout: float = 90.0

    def specs(self) -> list[Spec]:
        """The specification of each stream."""
        count = int(self.rate * (self.warm_up + self.window + self.tail))
        return [
            Spec(kind=self.kind, name=f"s{n}", tokens=count, rate=self.rate, offset=n / self.streams)
            for n in range(self.streams)
        ]

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive."""
        with deployed(server) as process:
            return self.measure(process, process)

    def measure(self, process: ServerProcess, model: ServerProcess, wire: Wire = "native") -> Figures:
        """Measure a server on a wire, while the model of this or another process generates the tokens."""
        specs = self.specs()
        with Load(process.reader_port, wire, start_port=process.port) as load:
            before = process.memory_bytes()
            load.start(specs)
            model.ask("/bench/go")
            load.run_for(self.warm_up)
            window = measure(load, process, self.window)
            memory = process.memory_bytes() - before
            load.finish(self.timeout)
        for reader, spec in zip(load.readers, specs, strict=True):
            reader.check(spec.tokens)
        tokens = tokens_in(load.readers, window)
        p50, p99 = latencies_ms(load.readers, window)
        gc.collect()
        return {
            **window.cpu_us(tokens),
            "p50_ms": p50,
            "p99_ms": p99,
            "tokens_per_s": tokens / window.seconds,
            "kib_per_stream": memory / self.streams / 1024,
            **window.conditions(),
        }
