"""A client that comes back to a long log: how soon it has everything."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.client.load import Load, LoadError, Reader
from benchmarks.process import Process, running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import Server
from benchmarks.spec import Spec
from benchmarks.tokens import check

_TIMES: Final = 5  # a round takes the median of so many reconnects
# What does not wait for the reader may put two tokens into one record now and then.
_MERGED_SHARE: Final = 0.01


def filled(load: Load, process: Process, spec: Spec) -> str:
    """Start a stream, leave it, and wait until its log holds what it is filled with; gives the stream's id."""
    [reader] = load.start([spec], on_disconnect="continue")
    load.close(reader)
    deadline = time.monotonic() + 120
    while process.made < spec.fill:
        if time.monotonic() > deadline:
            raise LoadError(f"{process.made} of {spec.fill} tokens")
        time.sleep(0.1)
    time.sleep(0.1)  # the last one is on its way into the log
    return reader.wire.stream


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Reconnects at the beginning and in the middle of a log of so many records."""

    records: int

    def __call__(self, server: Server) -> Figures:
        """Run it once; every token must arrive."""
        with running(server) as process, Load(process.port) as load:
            stream = filled(load, process, Spec(kind="silent", fill=self.records))
            whole = [self._reconnect(load, stream, 0) for _ in range(_TIMES)]
            half = [self._reconnect(load, stream, self.records // 2) for _ in range(_TIMES)]
        whole_s, half_s = median(seconds for seconds, _ in whole), median(seconds for seconds, _ in half)
        return {
            "records_per_s": whole[0][1] / whole_s,
            "half_records_per_s": half[0][1] / half_s,
            "whole_ms": whole_s * 1e3,
            "half_ms": half_s * 1e3,
        }

    def _reconnect(self, load: Load, stream: str, after: int) -> tuple[float, int]:
        last = b"%07d " % (self.records - 1)
        reader = load.connect_follow(stream, after)
        reader.ask()
        load.run(30.0, lambda: _has(reader, last))
        seconds = (reader.batches[-1][0] - reader.asked_at) / 1e9
        load.close(reader)
        text, records = reader.text, reader.wire.records
        if records < (self.records - after) * (1 - _MERGED_SHARE):
            raise LoadError(f"{records} records hold what {self.records - after} should")
        # Record 1 holds no token, so record n + 2 holds token n, if none before it was merged.
        check(text, first=int(text[16:23]) if after else 0)
        return seconds, records


def _has(reader: Reader, last: bytes) -> bool:
    return bool(reader.batches) and reader.batches[-1][1][-1].endswith(last)
