"""The numbers that an operator watches, as plain Python numbers.

A Prometheus counter takes a lock for each increment, and the core has no use for one. So the core counts here, and
`crucible_trio.apis.operations` renders these numbers when `/metrics` is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final, final

from crucible_trio.records import Mode
from crucible_trio.snapshot import Status

# In seconds. A local model writes its first piece after tenths of a second, a large one after minutes of queueing.
_FIRST_TOKEN_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# A cancellation takes a few task switches, or an upstream connection's close, or the rest of a prompt.
_CANCEL_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


@final
class Histogram:
    """How often a value fell into each bucket.

    Attributes:
        bounds: The upper bounds of the buckets, ascending. One more bucket holds everything above.
        counts: Observations per bucket, not cumulative.
        total: The sum of all values.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@final
class EngineMetrics:
    """The numbers of one engine.

    Attributes:
        started: Streams accepted, by mode.
        ended: Streams that have ended, by status.
        pieces: Pieces recorded, by mode.
        failovers: Streams that another engine took over before the first piece.
        first_token_seconds: From acceptance to the first piece.
        cancel_seconds: From the decision to stop a stream until its engine has let go.
    """

    def __init__(self) -> None:
        self.started: Counter[Mode] = Counter()
        self.ended: Counter[Status] = Counter()
        self.pieces: dict[Mode, int] = {"standard": 0, "deep": 0}
        self.failovers = 0
        self.first_token_seconds = Histogram(_FIRST_TOKEN_BUCKETS)
        self.cancel_seconds = Histogram(_CANCEL_BUCKETS)


@final
class Metrics:
    """The numbers of one pipeline.

    Attributes:
        engines: Numbers by the engine's name.
        readers: Readers attached now.
        resumes: Readers that attached behind record 1.
        upload_bytes: Bytes of the request bodies that are being received or parsed.
        download_bytes: Bytes of the large answers that are being written.
        refused: Requests answered with an error, by its code.
        unverified_traces: Traces of earlier turns that were left out, because the server has not signed them.
    """

    def __init__(self) -> None:
        self.engines: dict[str, EngineMetrics] = {}
        self.readers = 0
        self.resumes = 0
        self.upload_bytes = 0
        self.download_bytes = 0
        self.refused: Counter[str] = Counter()
        self.unverified_traces = 0

    def engine(self, name: str) -> EngineMetrics:
        """The numbers of an engine, made when they are first asked for."""
        return self.engines.setdefault(name, EngineMetrics())
