"""Scenarios run against real server processes."""

from __future__ import annotations

import pytest

from benchmarks.scenarios.mixed import Mixed
from benchmarks.scenarios.pace import Pace
from benchmarks.scenarios.proxy import Proxy
from benchmarks.scenarios.start_rate import StartRate
from benchmarks.scenarios.storm import Storm
from benchmarks.servers import OURS, SERVERS

pytestmark = pytest.mark.slow


def test_a_scenario_measures_the_crucible_server() -> None:
    figures = Pace(streams=3, rate=20, warm_up=0.1, window=0.3, tail=0.2)(SERVERS[OURS])
    assert figures["cpu_us"] > 0
    assert figures["tokens_per_s"] > 0
    assert figures["p50_ms"] <= figures["p99_ms"]


@pytest.mark.parametrize("name", ["crucible", "crucible-native"])
def test_a_proxy_is_measured_between_a_model_server_and_the_client(name: str) -> None:
    pace = Pace(streams=3, rate=20, warm_up=0.3, window=1.5, tail=0.2)
    figures = Proxy(pace=pace)(SERVERS[name])
    assert figures["tokens_per_s"] > 0
    assert {"added_p50_ms", "added_p99_ms"} <= figures.keys()


def test_readers_that_are_cut_together_catch_up() -> None:
    figures = Storm(cut=5, healthy=2, rate=20, behind=10, window=2.0)(SERVERS[OURS])
    assert figures["caught_up_ms"] > 0


def test_a_mix_of_readers_loses_nothing() -> None:
    figures = Mixed(streams=20, slow=0.2, cut=0.1, cancelled=0.1, rate=20, window=1)(SERVERS[OURS])
    assert figures["cpu_us"] > 0


def test_streams_are_started_one_after_another() -> None:
    figures = StartRate(clients=2, warm_up=0.1, window=0.3)(SERVERS[OURS])
    assert figures["streams_per_s"] > 0
