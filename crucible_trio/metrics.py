"""What an operator can watch, in Prometheus' terms. One registry for each pipeline, so two do not mix their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from crucible_trio.records import Mode

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# A local model's first token comes in tenths of a second, a large one's after minutes of queueing.
_FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
# A cancel is a few task switches, or an upstream connection's close, or the rest of a prompt.
_CANCEL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


@final
class Tokens(Collector):
    """Pieces of text recorded, by mode: plain numbers, because a `Counter` takes a lock each time."""

    def __init__(self) -> None:
        self.by_mode: dict[Mode, int] = {"standard": 0, "deep": 0}

    def collect(self) -> Iterable[Metric]:
        """What a scrape sees (`prometheus_client.registry.Collector`)."""
        family = CounterMetricFamily("crucible_tokens", "Pieces of text recorded", labels=["mode"])
        for mode, number in self.by_mode.items():
            family.add_metric([mode], number)
        yield family


@final
class Metrics:
    """The numbers of one pipeline."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tokens = Tokens()
        self.registry.register(self.tokens)
        self.started = self._counter("streams_started", "Streams accepted", "mode")
        self.ended = self._counter("streams_ended", "Streams that have ended, by how", "status")
        self.running = self._gauge("streams_running", "Streams whose engine may run")
        self.kept = self._gauge("streams_kept", "Finished streams that can still be read")
        self.first_token_seconds = Histogram(
            "crucible_first_token_seconds",
            "From acceptance to the first piece of text",
            registry=self.registry,
            buckets=_FIRST_TOKEN_BUCKETS,
        )
        self.cancel_seconds = Histogram(
            "crucible_cancel_seconds",
            "From the decision to stop a stream to the end of its engine",
            registry=self.registry,
            buckets=_CANCEL_BUCKETS,
        )
        self.readers = self._gauge("readers", "Readers attached")
        self.resumes = self._counter("resumes", "Readers that attached behind record 1")
        self.log_bytes = self._gauge("log_bytes", "Bytes of all logs and of the requests kept with them")
        self.refused = self._counter("requests_refused", "Requests answered with an error", "code")
        self.abandoned_threads = self._gauge("abandoned_threads", "Model threads no stream waits for, since the start")

    def render(self) -> bytes:
        """The text that `/metrics` answers, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"crucible_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"crucible_{name}", text, registry=self.registry)
