"""A pipeline's numbers in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast, final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from crucible_trio.engine import CountsAbandonedThreads, CountsSkippedFields, engines_behind
from crucible_trio.metrics import Histogram
from crucible_trio.pipeline import Pipeline
from crucible_trio.totals import Family, Kind

# One process that finds its upstream down is enough to look at it, so these are not added up.
_STATES: Final = frozenset({"crucible_upstream_up"})

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@final
class PipelineCollector(Collector):
    """Reads a pipeline's numbers when Prometheus asks for them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def collect(self) -> Iterable[Metric]:
        """The numbers now (`prometheus_client.registry.Collector`)."""
        pipeline = self._pipeline
        behind = list(engines_behind(pipeline.engine))
        for engine in behind:
            pipeline.metrics.engine(engine.info.name)
        engines = pipeline.metrics.engines  # also those that a router no longer has
        yield _counters(
            "streams_started", "Streams accepted", "mode", {name: numbers.started for name, numbers in engines.items()}
        )
        yield _counters(
            "streams_ended",
            "Streams that have ended",
            "status",
            {name: numbers.ended for name, numbers in engines.items()},
        )
        yield _counters(
            "pieces", "Pieces of content recorded", "mode", {name: numbers.pieces for name, numbers in engines.items()}
        )
        yield _by_engine(
            CounterMetricFamily(
                "crucible_failovers", "Streams that another engine took over before the first piece", labels=["engine"]
            ),
            {name: numbers.failovers for name, numbers in engines.items()},
        )
        yield _histogram(
            "first_token_seconds",
            "From acceptance to the first piece of content",
            {name: numbers.first_token_seconds for name, numbers in engines.items()},
        )
        yield _histogram(
            "cancel_seconds",
            "From the decision to stop a stream until its engine has let go",
            {name: numbers.cancel_seconds for name, numbers in engines.items()},
        )
        # Added up, because engines behind different routers may have one name.
        threads = Counter[str]()
        skipped = Counter[str]()
        up: dict[str, bool] = {}
        for engine in behind:
            name = engine.info.name
            threads[name] += engine.abandoned_threads if isinstance(engine, CountsAbandonedThreads) else 0
            if isinstance(engine, CountsSkippedFields):
                skipped[name] += engine.skipped_fields
            if (is_up := engine.info.is_up) is not None:
                up[name] = up.get(name, True) and is_up
        yield _by_engine(
            GaugeMetricFamily(
                "crucible_abandoned_threads",
                "Model threads whose stream ended before them, since the start",
                labels=["engine"],
            ),
            threads,
        )
        yield _by_engine(
            CounterMetricFamily(
                "crucible_upstream_skipped",
                "Values and events of an upstream server's streams that were skipped",
                labels=["engine"],
            ),
            skipped,
        )
        yield _by_engine(
            GaugeMetricFamily("crucible_upstream_up", "Whether an upstream server responds", labels=["engine"]), up
        )
        refused = CounterMetricFamily("crucible_requests_refused", "Requests answered with an error", labels=["code"])
        for code, number in pipeline.metrics.refused.items():
            refused.add_metric([code], number)
        yield refused
        yield CounterMetricFamily(
            "crucible_unverified_traces",
            "Traces of earlier turns that were left out of a request, because this server has not signed them",
            value=pipeline.metrics.unverified_traces,
        )
        yield CounterMetricFamily(
            "crucible_resumes", "Readers that attached behind record 1", value=pipeline.metrics.resumes
        )
        yield _gauge("readers", "Readers attached", pipeline.metrics.readers)
        yield _gauge(
            "upload_bytes", "Bytes of request bodies that are being received or parsed", pipeline.metrics.upload_bytes
        )
        yield _gauge("download_bytes", "Bytes of large answers that are being written", pipeline.metrics.download_bytes)
        yield _gauge("streams_running", "Streams whose engine may run", pipeline.store.running)
        yield _gauge("streams_kept", "Finished streams that can still be read", pipeline.store.kept)
        yield _gauge("log_up", "Whether records can be stored", int(pipeline.store.ready))
        yield CounterMetricFamily(
            "crucible_log_failures",
            "Connections to the store of the logs that were lost, and writes that it refused",
            value=pipeline.store.failures,
        )
        yield _gauge("log_bytes", "Bytes of all logs and of the facts kept with them", pipeline.store.log_bytes)


def families(pipeline: Pipeline) -> list[Family]:
    """A pipeline's metrics as plain values, for another process."""
    return [
        Family(
            name=metric.name,
            text=metric.documentation,
            kind="state" if metric.name in _STATES else cast("Kind", metric.type),
            samples={
                (sample.name, *(part for label in sample.labels.items() for part in label)): sample.value
                for sample in metric.samples
            },
        )
        for metric in PipelineCollector(pipeline).collect()
    ]


def render(pipeline: Pipeline) -> bytes:
    """A pipeline's metrics as the text that `/metrics` answers, of type `CONTENT_TYPE`."""
    return render_families(families(pipeline))


def render_families(metrics: Iterable[Family]) -> bytes:
    """The same for plain values."""
    registry = CollectorRegistry()
    registry.register(_FamilyCollector(metrics))
    return generate_latest(registry)


@final
class _FamilyCollector(Collector):
    def __init__(self, metrics: Iterable[Family]) -> None:
        self._families = metrics

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.text, "gauge" if family.kind == "state" else family.kind)
            for (name, *labels), value in family.samples.items():
                metric.add_sample(name, dict(zip(labels[::2], labels[1::2], strict=True)), value)
            yield metric


def _by_engine(family: GaugeMetricFamily | CounterMetricFamily, numbers: Mapping[str, int]) -> Metric:
    for engine, number in numbers.items():
        family.add_metric([engine], number)
    return family


def _counters(name: str, text: str, label: str, counts: Mapping[str, Mapping[Any, int]]) -> Metric:
    """One counter for each engine and each value of a label."""
    family = CounterMetricFamily(f"crucible_{name}", text, labels=["engine", label])
    for engine, by_label in counts.items():
        for value, number in by_label.items():
            family.add_metric([engine, value], number)
    return family


def _histogram(name: str, text: str, histograms: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(f"crucible_{name}", text, labels=["engine"])
    for engine, histogram in histograms.items():
        cumulative = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            cumulative += count
            buckets.append((bound, cumulative))
        family.add_metric([engine], buckets, histogram.total)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"crucible_{name}", text, value=value)
