"""A client resumes a long log: how soon it has caught up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.client.load import Load, LoadError
from benchmarks.deployment import deployed
from benchmarks.process import ServerProcess
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.tokens import check

# A stream that does not wait for its reader may sometimes merge two tokens into one record.
_MERGED_SHARE: Final = 0.01


def filled(load: Load, process: ServerProcess, specs: list[Spec]) -> list[str]:
    """Start streams, disconnect, and wait until their logs have the `fill` tokens. Returns the ids of the streams."""
    made = process.made + sum(spec.fill for spec in specs)
    readers = load.open([lambda spec=spec: load.connect_start(spec, on_disconnect="continue") for spec in specs])
    for reader in readers:
        load.close(reader)
    deadline = time.monotonic() + 120
    while (so_far := process.made) < made:
        if time.monotonic() > deadline:
            raise LoadError(f"only {so_far} of {made} tokens were generated in 120 s")
        time.sleep(0.1)
    time.sleep(0.1)  # until the last token is in the log
    return [reader.wire.stream for reader in readers]


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Reconnect at the start and in the middle of logs with this many records.

    Attributes:
        records: Records of each log.
        streams: Number of logs. The first reader of a log in a process can cost more than the next ones.
        times: How often a reader of each log reconnects at the start, and in the middle.
    """

    records: int
    streams: int = 1
    times: int = 5

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive."""
        specs = [Spec(kind="silent", name=f"s{n}", fill=self.records) for n in range(self.streams)]
        with deployed(server) as process, Load(process.reader_port, start_port=process.port) as load:
            streams = filled(load, process, specs)
            first = [self._reconnect(load, stream, 0) for stream in streams]
            again = streams * self.times
            whole = [self._reconnect(load, stream, 0) for stream in again]
            half = [self._reconnect(load, stream, self.records // 2) for stream in again]
        first_s, whole_s, half_s = (median(seconds for seconds, _ in each) for each in (first, whole, half))
        return {
            "first_records_per_s": first[0][1] / first_s,
            "records_per_s": whole[0][1] / whole_s,
            "half_records_per_s": half[0][1] / half_s,
            "first_ms": first_s * 1e3,
            "whole_ms": whole_s * 1e3,
            "half_ms": half_s * 1e3,
        }

    def _reconnect(self, load: Load, stream: str, after: int) -> tuple[float, int]:
        reader = load.connect_follow(stream, after)
        reader.ask()
        load.run(30.0, lambda: reader.has(self.records - 1))
        seconds = (reader.batches[-1][0] - reader.asked_at) / 1e9
        load.close(reader)
        text, records = reader.text, reader.wire.records
        if records < (self.records - after) * (1 - _MERGED_SHARE):
            raise LoadError(f"{records} records came instead of {self.records - after}: too many tokens were merged")
        # Record 1 has no token, so record n + 2 has token n, unless an earlier token was merged.
        check(text, first=int(text[16:23]) if after else 0)
        return seconds, records
