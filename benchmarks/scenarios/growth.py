"""The CPU time per token by the number of streams, and by the length of the log."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.process import running
from benchmarks.scenarios.pace import Pace
from benchmarks.scenarios.resume import filled
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import measure, tokens_in
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec


@dataclass(frozen=True, kw_only=True)
class GrowingStreams:
    """Different numbers of streams with the same total number of tokens per second.

    Each stream has a timer, so that a token is one timer and one delivery for any number of streams.

    Attributes:
        sizes: Numbers of streams.
        reference: The size that the worst is compared with.
        total_rate: Tokens per second of all streams together.
    """

    sizes: tuple[int, ...]
    reference: int
    total_rate: float

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. The figures are CPU µs per token, and the ratio of the worst to the reference."""
        figures = {
            str(size): Pace(kind="timer", streams=size, rate=self.total_rate / size, tail=1.5)(server)["cpu_us"]
            for size in self.sizes
        }
        return _with_worst(figures, self.reference)


@dataclass(frozen=True, kw_only=True)
class GrowingLog:
    """One stream with a long log, and a reader at the end of the log.

    Attributes:
        sizes: Records that the log already has.
        reference: The size that the worst is compared with.
        rate: Tokens per second.
        window: Seconds that are measured.
    """

    sizes: tuple[int, ...]
    reference: int
    rate: float
    window: float = 3.0

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. The figures are those of `GrowingStreams`."""
        return _with_worst({str(size): self._cpu_us(server, size) for size in self.sizes}, self.reference)

    def _cpu_us(self, server: BenchServer, size: int) -> float:
        spec = Spec(kind="timer", fill=size, rate=self.rate, tokens=int(self.rate * (self.window + 1.0)))
        with running(server) as process, Load(process.port) as load:
            [stream] = filled(load, process, [spec])
            load.readers.clear()
            reader = load.connect_follow(stream, size // 2)
            reader.ask()
            load.run_for(0.3)
            process.ask("/bench/go")
            load.run_for(0.5)
            window = measure(load, process, self.window)
            load.finish(60.0)
        return window.server.used * 1e6 / tokens_in([reader], window)


def _with_worst(figures: Figures, reference: int) -> Figures:
    return figures | {"worst": max(figures.values()) / figures[str(reference)]}
