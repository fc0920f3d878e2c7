"""All readers of running streams are cut at one moment and come back."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.client.load import Load, LoadError, LoadReader
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import latencies_ms, measure
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.tokens import STAMP_LENGTH, TOKEN_LENGTH, check


@dataclass(frozen=True, kw_only=True)
class Storm:
    """Readers in the middle of their streams are cut together. Each resumes from an earlier record.

    Attributes:
        cut: Streams whose reader is cut.
        healthy: Streams whose reader is not.
        rate: Tokens per second of each stream.
        behind: Records that a reader asks for again. It behaves like one that was away for `behind / rate` seconds.
        window: Seconds from the cut that are measured.
    """

    cut: int
    healthy: int
    rate: float
    behind: int
    window: float = 8.0

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive."""
        fill = self.behind + 20
        with running(server) as process, Load(process.port) as load:
            count = int(self.rate * 120)
            load.start(
                [Spec(kind="batch", name=f"s{n}", tokens=count, rate=self.rate, fill=fill) for n in range(self.cut)]
            )
            healthy = load.start(
                [Spec(kind="batch", name=f"h{n}", tokens=count, rate=self.rate) for n in range(self.healthy)]
            )
            lost = load.readers[: self.cut]
            load.run(60.0, lambda: all(reader.has(fill - 1) for reader in lost))
            process.ask("/bench/go")
            load.run_for(2.0)
            seen = [reader.wire.records for reader in lost]
            for reader in lost:
                load.close(reader)
            cut_at = time.monotonic_ns()
            back = [
                load.connect_follow(reader.wire.stream, max(0, records - self.behind))  # on a busy machine tokens merge
                for reader, records in zip(lost, seen, strict=True)
            ]
            for reader in back:
                reader.ask()
            window = measure(load, process, self.window)
        caught_up = [_caught_up_ns(reader, cut_at) - cut_at for reader in back]
        for reader in (*lost, *healthy):
            reader.check()
        for reader in back:
            check(reader.text, first=int(reader.text[STAMP_LENGTH : TOKEN_LENGTH - 1]))
        p50, p99 = latencies_ms(healthy, window)
        return {
            "caught_up_ms": max(caught_up) / 1e6,
            "cpu_s": window.server.used,
            "p50_ms": p50,
            "p99_ms": p99,
            **window.conditions(),
        }


def _caught_up_ns(reader: LoadReader, cut_at: int) -> int:
    """When the first token arrived that was generated after the cut."""
    for arrived, deltas in reader.batches:
        if any(int(delta[-TOKEN_LENGTH : STAMP_LENGTH - TOKEN_LENGTH]) > cut_at for delta in deltas):
            return arrived
    raise LoadError(f"{reader.name} has not caught up: {reader.broken or 'it is still reading'}")
