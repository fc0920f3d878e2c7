"""The memory that a process needs to serve streams that another process generates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from benchmarks.client.load import Load
from benchmarks.deployment import deployed
from benchmarks.scenarios.resume import filled
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec

_WARM_UP_STREAMS: Final = 20  # so that one-time allocations do not count


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """Each stream gets a reader in the other process, then a second one there.

    The first reader takes a mirror and a connection, the second only a connection. The difference is the mirror.

    Attributes:
        streams: Number of streams.
        records: Records of each.
    """

    streams: int
    records: int

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive."""
        specs = [Spec(kind="silent", name=f"s{n}", fill=self.records) for n in range(_WARM_UP_STREAMS + self.streams)]
        with deployed(server) as process, Load(process.reader_port, start_port=process.port) as load:
            other = process.beside["other"]
            streams = filled(load, process, specs)
            load.readers.clear()
            for stream in streams[:_WARM_UP_STREAMS] * 2:
                load.open([lambda stream=stream: load.connect_follow(stream)])
            measured = [lambda stream=stream: load.connect_follow(stream) for stream in streams[_WARM_UP_STREAMS:]]
            memory = [other.memory_bytes()]
            for _ in range(2):
                readers = load.open(measured)
                load.run(60.0, lambda: all(reader.wire.records > self.records for reader in load.readers))
                load.run_for(0.5)
                memory.append(other.memory_bytes())
        for reader in load.readers:
            reader.check(self.records)
        frames = sum(reader.wire.event_bytes for reader in readers) / self.streams / 1024
        first, second = ((after - before) / self.streams / 1024 for before, after in pairwise(memory))
        return {"mirror_kib": first - second, "frames_kib": frames, "beyond_kib": first - second - frames}
