"""A client resumes a long log: how soon it has caught up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.client.load import Load, LoadError, LoadReader
from benchmarks.process import ServerProcess, running
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer
from benchmarks.spec import Spec
from benchmarks.tokens import check

_RECONNECTS: Final = 5  # a round takes their median
# A stream that does not wait for its reader may sometimes merge two tokens into one record.
_MERGED_SHARE: Final = 0.01


def filled(load: Load, process: ServerProcess, spec: Spec) -> str:
    """Start a stream, disconnect, and wait until its log has the `fill` tokens. Returns the stream's id."""
    [reader] = load.start([spec], on_disconnect="continue")
    load.close(reader)
    deadline = time.monotonic() + 120
    while process.made < spec.fill:
        if time.monotonic() > deadline:
            raise LoadError(f"only {process.made} of {spec.fill} tokens were generated in 120 s")
        time.sleep(0.1)
    time.sleep(0.1)  # until the last token is in the log
    return reader.wire.stream


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Reconnect at the start and in the middle of a log with this many records."""

    records: int

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. Every token must arrive."""
        with running(server) as process, Load(process.port) as load:
            stream = filled(load, process, Spec(kind="silent", fill=self.records))
            whole = [self._reconnect(load, stream, 0) for _ in range(_RECONNECTS)]
            half = [self._reconnect(load, stream, self.records // 2) for _ in range(_RECONNECTS)]
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
            raise LoadError(f"{records} records came instead of {self.records - after}: too many tokens were merged")
        # Record 1 has no token, so record n + 2 has token n, unless an earlier token was merged.
        check(text, first=int(text[16:23]) if after else 0)
        return seconds, records


def _has(reader: LoadReader, last: bytes) -> bool:
    return bool(reader.batches) and reader.batches[-1][1][-1].endswith(last)
