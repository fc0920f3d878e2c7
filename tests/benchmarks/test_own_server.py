"""A scenario runs against a real server process."""

from __future__ import annotations

import pytest

from benchmarks.scenarios.pace import Pace
from benchmarks.servers import OURS, SERVERS

pytestmark = pytest.mark.slow


def test_a_scenario_measures_the_crucible_server() -> None:
    figures = Pace(streams=3, rate=20, warm_up=0.1, window=0.3, tail=0.2)(SERVERS[OURS])
    assert figures["cpu_us"] > 0
    assert figures["tokens_per_s"] > 0
    assert figures["p50_ms"] <= figures["p99_ms"]
