"""A verdict compares medians with the right rival and in the right direction. It needs a figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks import validity
from benchmarks.report import report, scenario_report, validity_report
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Goal, Metric, Scenario
from benchmarks.servers import SERVERS
from benchmarks.stats import percentile, spread
from benchmarks.verdict import Rounds, judge

CPU = Metric(name="cpu", label="CPU", unit="µs")
P99 = Metric(name="p99", label="p99", unit="ms")
RATE = Metric(name="rate", label="rate", unit="/s", better="higher")


def scenario(*goals: Goal) -> Scenario:
    return Scenario(
        name="a", title="A", run=lambda _: {}, metrics=(CPU, P99, RATE), goals=goals, servers=tuple(SERVERS)
    )


def rounds(**changes: float) -> Rounds:
    ours = {"cpu": 10.0, "p99": 5.0, "rate": 300.0} | changes
    return {
        "crucible": [ours, ours | {"cpu": 1000.0, "p99": 1000.0}, ours],  # one bad round does not change the verdict
        "crucible-plain": [{"cpu": 1.0, "p99": 1.0, "rate": 9999.0}],
        "sse-starlette": [{"cpu": 20.0, "p99": 4.0, "rate": 100.0}],
        "fastapi": [{"cpu": 30.0, "p99": 2.0, "rate": 90.0}],
        "node": [{"cpu": 2.0, "p99": 1.0, "rate": 9999.0}],
    }


@pytest.mark.parametrize(
    ("goal", "met", "figure", "rival"),
    [
        (Goal(metric="cpu", bound=0.5), True, 0.5, "sse-starlette"),
        (Goal(metric="cpu", bound=0.49), False, 0.5, "sse-starlette"),
        (Goal(metric="rate", bound=3.0), True, 3.0, "sse-starlette"),
        (Goal(metric="rate", bound=3.1), False, 3.0, "sse-starlette"),
        (Goal(metric="p99", bound=1.0), False, 2.5, "fastapi"),
        (Goal(metric="p99", bound=1.0, rival_by="cpu"), False, 1.25, "sse-starlette"),
        (Goal(metric="p99", bound=1.0, of="difference", rival_by="cpu"), True, 1.0, "sse-starlette"),
        (Goal(metric="p99", bound=0.0, of="difference", rival_by="cpu"), False, 1.0, "sse-starlette"),
        (Goal(metric="p99", bound=5.0, of="absolute"), True, 5.0, ""),
        (Goal(metric="rate", bound=301.0, of="absolute"), False, 300.0, ""),
    ],
)
def test_a_goal_is_judged_by_medians(goal: Goal, met: bool, figure: float, rival: str) -> None:
    [judgement] = judge(scenario(goal), rounds())
    assert (judgement.met, judgement.figure, judgement.rival) == (met, figure, rival)


@pytest.mark.parametrize("missing", ["crucible", "rivals"])
def test_a_goal_without_a_figure_is_missed(missing: str) -> None:
    found = rounds()
    for server in ["crucible"] if missing == "crucible" else ["sse-starlette", "fastapi"]:
        found[server] = []
    [judgement] = judge(scenario(Goal(metric="cpu", bound=1.0)), found)
    assert not judgement.met
    assert "has no figure" in str(judgement)


def test_the_report_shows_medians_spread_ratio_and_verdict() -> None:
    text = scenario_report(scenario(Goal(metric="cpu", bound=0.5)), rounds(), verdict=True)
    assert "10 (10 to 1,000) | 1, ratio 10.00 | 20, ratio 0.50" in text
    assert "- Goal met: CPU is 0.5 times that of sse-starlette (goal: at most 0.5)." in text
    assert "Goal" not in scenario_report(scenario(Goal(metric="cpu", bound=0.5)), rounds(), verdict=False)


def measured(share: float = 1.0, **shares: float) -> dict[str, Any]:
    """A run with these shares of the reference's rates, on the same machine."""
    reference = validity.reference()
    bare = {form: rate * share * shares.get(form, 1.0) for form, rate in reference["bare"].items()}
    flood = reference["full_form_flood"] * share * shares.get("flood", 1.0)
    return {"machine": reference["machine"], "reference": reference, "bare": bare, "full_form_flood": flood}


@pytest.mark.parametrize(
    ("shares", "low"),
    [
        ({}, []),
        ({"aiohttp-sse": 0.79}, ["bare aiohttp-sse"]),
        ({"flood": 0.79}, ["sse-starlette in a flood"]),
        ({"uvicorn": 0.1}, []),  # a baseline, not a rival
    ],
)
def test_a_rival_far_below_its_reference_invalidates_the_run(shares: dict[str, float], low: list[str]) -> None:
    run = measured(0.5, **shares)  # a slower machine alone does not invalidate it
    assert [check.what for check in validity.checks(run) if not check.passed] == low
    assert validity.status(run) == ("invalid" if low else "valid")


def test_a_run_is_not_compared_with_another_kind_of_machine() -> None:
    run = measured(fastapi=0.5)
    run["machine"] = run["machine"] | {"processor": "another"}
    assert validity.status(run) == "unknown"
    assert "the reference is from another kind of machine" in validity_report(run)
    assert validity.status(measured() | {"bare": {}}) == "unknown"


def test_a_whole_report_names_failures_and_disturbances() -> None:
    figures = {"cpu_us": 10.0, "p50_ms": 1.0, "p99_ms": 2.0, "tokens_per_s": 100.0}
    run = {
        **measured(**{"quart-trio": 0.1}),
        "when": "2026-01-01", "quick": False, "rounds": 1, "busy": 0.4, "versions": {},
        "scenarios": {"pace": {"crucible": [figures | {"server_waited": 0.2, "client_ran": 0.95}], "fastapi": []}},
        "failures": [{"scenario": "pace", "server": "fastapi", "why": "TokensLostError: lost", "said": ""}],
    }  # fmt: skip
    text = report(run)
    for part in ("The machine was not idle", "pace, fastapi: TokensLostError: lost", "for its core 20%", "busy 95%"):
        assert part in text
    assert "INVALID RUN" in text


def test_percentiles_and_spread() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 1001), 0.5) == 500
    assert percentile([7], 0.99) == 7
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    found = spread([5.0, 1.0, 2.0])
    assert (found.median, found.least, found.most, found.rounds) == (2.0, 1.0, 5.0, 3)


def test_every_goal_has_a_metric_and_every_server_exists() -> None:
    for each in SCENARIOS:
        names = {metric.name for metric in each.metrics}
        assert {goal.metric for goal in each.goals} | {goal.rival_by for goal in each.goals} - {None} <= names
        assert set(each.servers) <= set(SERVERS)
        assert {goal.server for goal in each.goals} <= set(each.servers)
        assert any(SERVERS[server].side == "ours" for server in each.servers)
        assert {goal.rival for goal in each.goals} - {""} <= set(each.servers)


def test_a_difference_has_no_ratio() -> None:
    added = Metric(name="added", label="added", unit="ms", is_difference=True)
    judged = replace(scenario(Goal(metric="added", bound=0.0, of="difference")), metrics=(CPU, added))
    found: Rounds = {"crucible": [{"cpu": 1.0, "added": -3.0}], "sse-starlette": [{"cpu": 1.0, "added": -2.0}]}
    text = scenario_report(judged, found, verdict=True)
    assert "| added, ms | -3 | -2 |" in text
    assert "- Goal met: added is -1 ms more than that of sse-starlette (goal: at most 0)." in text


def test_a_goal_can_name_its_rival() -> None:
    goal = Goal(metric="cpu_us", bound=0.1, rival="litellm")
    rounds = {"crucible": [{"cpu_us": 60.0}], "aiohttp-gateway": [{"cpu_us": 50.0}], "litellm": [{"cpu_us": 650.0}]}
    [judgement] = judge(replace(SCENARIOS[0], goals=(goal,)), rounds)
    assert judgement.figure == pytest.approx(60 / 650)
    assert judgement.rival == "litellm"
    assert judgement.met


def test_a_goal_can_name_the_server_that_it_judges() -> None:
    goal = Goal(metric="cpu", bound=2.5, rival="crucible", server="crucible-redis")
    found = rounds() | {"crucible-redis": [{"cpu": 22.0, "redis": 4.0}]}
    judged = scenario(goal)
    [judgement] = judge(judged, found)
    assert judgement.figure == pytest.approx(2.2)
    assert str(judgement) == "Goal met: CPU, log in Redis, is 2.2 times that of crucible (goal: at most 2.5)."
    redis = replace(judged, metrics=(*judged.metrics, Metric(name="redis", label="Redis", unit="µs")))
    row = scenario_report(redis, found, verdict=False).splitlines()[-1]
    assert row.startswith("| Redis, µs | - | - | 4 | ")  # the others have no Redis
