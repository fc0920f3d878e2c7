"""Open streams without tokens."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.client.load import Load
from benchmarks.deployment import deployed
from benchmarks.process import ServerProcess
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
        """Run one round. The figures of the processes beside the server have its names in front."""
        with deployed(server) as process, Load(process.reader_port, start_port=process.port) as load:
            processes = {"": process, **{f"{name}_": each for name, each in process.beside.items()}}
            load.start([Spec(kind="silent")] * _WARM_UP_STREAMS)
            before = _memory(processes)
            load.start([Spec(kind="silent")] * self.few)
            load.run_for(0.5)
            few = _memory(processes)
            load.start([Spec(kind="silent")] * (self.many - self.few), timeout=120.0)
            load.run_for(0.5)
            many = _memory(processes)
            window = measure(load, process, self.window)
        used = {"": window.server, **{f"{name}_": cpu for name, cpu in window.beside.items()}}
        figures: Figures = {}
        for name in processes:
            figures[f"{name}few_kib"] = (few[name] - before[name]) / self.few / 1024
            figures[f"{name}many_kib"] = (many[name] - before[name]) / self.many / 1024
            figures[f"{name}cpu_percent"] = used[name].used / window.seconds * 100
        return figures


def _memory(processes: dict[str, ServerProcess]) -> dict[str, int]:
    return {name: each.memory_bytes() for name, each in processes.items()}
