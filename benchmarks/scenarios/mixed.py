"""Streams as they are in production: most readers keep up, some are slow, some are cut, some leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.client.load import Load, LoadReader
from benchmarks.process import running
from benchmarks.scenarios.scenario import Figures
from benchmarks.scenarios.window import latencies_ms, measure_while, tokens_in
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.tokens import check

_STEPS: Final = 10  # per second


class _Cuts:
    """One stream whose reader is cut again and again, and resumes."""

    def __init__(self, reader: LoadReader) -> None:
        self.stream = reader.wire.stream
        self.parts = [reader]
        self._offset = 0

    def cut(self, load: Load) -> None:
        """Cut the reader, and resume after its last record."""
        self._offset += self.parts[-1].wire.records
        load.close(self.parts[-1])
        again = load.connect_follow(self.stream, self._offset)
        again.ask()
        self.parts.append(again)

    @property
    def is_back(self) -> bool:
        """Whether the newest connection has a token."""
        return self.parts[-1].token_at > 0

    def check(self) -> None:
        """Check that each token arrived once and in order, over all connections."""
        check(b"".join(part.text for part in self.parts))


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A mix of readers at the pace of a model.

    Attributes:
        streams: All streams.
        slow: The share whose readers read once a second.
        cut: The share whose readers are cut every second, and resume.
        cancelled: The share whose readers leave during the window, one after another.
        rate: Tokens per second of each stream.
        window: Seconds that are measured.
    """

    streams: int
    slow: float
    cut: float
    cancelled: float
    rate: float
    window: int = 5

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive, up to a cancellation."""
        specs = [Spec(kind="batch", name=f"s{n}", tokens=1_000_000, rate=self.rate) for n in range(self.streams)]
        with running(server) as process, Load(process.port) as load:
            readers = load.start(specs, on_disconnect="continue")
            slow, rest = _split(readers, self.slow, self.streams)
            cut, rest = _split(rest, self.cut, self.streams)
            leaving, healthy = _split(rest, self.cancelled, self.streams)
            cuts = [_Cuts(reader) for reader in cut]
            process.ask("/bench/go")
            load.run_for(1.0)
            for reader in slow:
                load.pause(reader)
            window = measure_while(process, lambda: self._disturb(load, slow, cuts, leaving))
            for reader in slow:
                load.read_paused(reader)
            load.run(60.0, lambda: all(one.is_back for one in cuts))
        for reader in (*healthy, *slow, *leaving):
            reader.check()
        for one in cuts:
            one.check()
        p50, p99 = latencies_ms(healthy, window)
        return {
            "cpu_us": window.server.used * 1e6 / tokens_in(load.readers, window),
            "p50_ms": p50,
            "p99_ms": p99,
            **window.conditions(),
        }

    def _disturb(self, load: Load, slow: list[LoadReader], cuts: list[_Cuts], leaving: list[LoadReader]) -> None:
        for step in range(self.window * _STEPS):
            load.run_for(1 / _STEPS)
            for reader in slow[step % _STEPS :: _STEPS]:
                load.read_paused(reader)
            for one in cuts[step % _STEPS :: _STEPS]:
                one.cut(load)
            for reader in leaving[step :: self.window * _STEPS]:
                load.close(reader)


def _split(readers: list[LoadReader], share: float, of: int) -> tuple[list[LoadReader], list[LoadReader]]:
    """The share of all streams, and the rest of these readers."""
    count = round(share * of)
    return readers[:count], readers[count:]
