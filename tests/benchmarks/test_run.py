"""A run keeps what it has: a failed round is noted, and the results are saved after each scenario."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.__main__ as runner
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Figures, Metric, Scenario
from benchmarks.servers import SERVERS, BenchServer

CPU = Metric(name="cpu", label="CPU", unit="µs")


def scenario(name: str, *failing: str) -> Scenario:
    def run(server: BenchServer) -> Figures:
        if server in [SERVERS[each] for each in failing]:
            error = ValueError("a token is lost")
            error.add_note("the end of its log")
            raise error
        return {"cpu": 7.0}

    servers = ("crucible", "sse-starlette")
    return Scenario(name=name, title=name, run=run, metrics=(CPU,), goals=(), servers=servers, main=True)


def new_run() -> dict[str, Any]:
    return {"when": "2026-01-01T00:00:00+00:00", "quick": True, "rounds": 2, "scenarios": {}, "failures": []}


def test_a_run_goes_on_after_a_scenario_that_fails(tmp_path: Path) -> None:
    run = new_run()
    runner.run_scenarios(run, [scenario("a", "crucible"), scenario("b")], None, tmp_path)
    assert run["scenarios"]["a"] == {"crucible": [], "sse-starlette": [{"cpu": 7.0}] * 2}
    assert run["scenarios"]["b"] == {"crucible": [{"cpu": 7.0}] * 2, "sse-starlette": [{"cpu": 7.0}] * 2}
    failure = {
        "scenario": "a",
        "server": "crucible",
        "why": "ValueError: a token is lost",
        "said": "the end of its log",
    }
    assert run["failures"] == [failure] * 2


def test_an_interrupted_run_keeps_the_scenarios_before(tmp_path: Path) -> None:
    def interrupt(_: BenchServer) -> Figures:
        raise KeyboardInterrupt

    chosen = [scenario("a"), replace(scenario("b"), run=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        runner.run_scenarios(new_run(), chosen, None, tmp_path)
    [file] = tmp_path.iterdir()
    assert json.loads(file.read_text())["scenarios"].keys() == {"a"}


def test_scenarios_are_skipped_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    every = argparse.Namespace(only=None, quick=False)
    monkeypatch.setattr(runner.shutil, "which", lambda _: "/usr/bin/redis-server")
    assert runner._choose(every) == (list(SCENARIOS), [])
    monkeypatch.setattr(runner.shutil, "which", lambda _: None)
    chosen, [sentence] = runner._choose(every)
    assert [each.name for each in SCENARIOS if each not in chosen] == [
        "redis-pace", "redis-fan-out", "redis-resume", "redis-idle", "redis-mirrors",
    ]  # fmt: skip
    assert sentence.startswith("Skipped redis-pace, ")
    assert sentence.endswith(": redis-server is not installed.")
    assert runner._choose(argparse.Namespace(only=["pace"], quick=False))[1] == []
