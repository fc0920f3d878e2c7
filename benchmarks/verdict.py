"""Judges the goals: compares crucible_trio's medians with the best Python rival, or with an absolute bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.scenarios.scenario import Figures, Goal, Metric, Scenario
from benchmarks.servers import OURS, SERVERS
from benchmarks.stats import Spread, number, spread

Rounds: TypeAlias = dict[str, list[Figures]]
"""The figures of one scenario's rounds, by server. Failed rounds are missing."""


@dataclass(frozen=True)
class Judgement:
    """One goal, and whether it is met.

    Attributes:
        metric: The metric.
        goal: The goal.
        figure: The measured ratio, difference or value. None if there is none.
        rival: The server of the comparison. Empty for an absolute goal.
    """

    metric: Metric
    goal: Goal
    figure: float | None
    rival: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is met. Without a figure it is not."""
        if self.figure is None:
            return False
        return self.figure <= self.goal.bound if self.metric.better == "lower" else self.figure >= self.goal.bound

    def __str__(self) -> str:
        limit = "at most" if self.metric.better == "lower" else "at least"
        unit = {
            "ratio": f"times that of {self.rival}",
            "difference": f"{self.metric.unit} more than that of {self.rival}",
            "absolute": self.metric.unit,
        }[self.goal.of]
        got = "has no figure" if self.figure is None else f"is {number(self.figure)} {unit}"
        verdict = "met" if self.met else "missed"
        where = "" if self.goal.server == OURS else f", {SERVERS[self.goal.server].label},"
        return f"Goal {verdict}: {self.metric.label}{where} {got} (goal: {limit} {number(self.goal.bound)})."


def judge(scenario: Scenario, rounds: Rounds) -> list[Judgement]:
    """Judge all goals of a scenario."""
    return [_judge_one(scenario, rounds, goal) for goal in scenario.goals]


def _judge_one(scenario: Scenario, rounds: Rounds, goal: Goal) -> Judgement:
    metric = _metric(scenario, goal.metric)
    ours = summary(rounds, goal.server, goal.metric)
    if goal.of == "absolute":
        return Judgement(metric, goal, ours and ours.median)
    rival = goal.rival or best_python_rival(rounds, _metric(scenario, goal.rival_by or goal.metric))
    theirs = rival and summary(rounds, rival, goal.metric)
    if not (ours and rival and theirs):
        return Judgement(metric, goal, None, rival or "any rival")
    if goal.of == "difference":
        return Judgement(metric, goal, ours.median - theirs.median, rival)
    return Judgement(metric, goal, ratio(ours.median, theirs.median), rival)


def best_python_rival(rounds: Rounds, metric: Metric) -> str | None:
    """The Python rival with the best median. None if no rival has a figure."""
    medians = {
        server: found.median
        for server in rounds
        if SERVERS[server].side == "python" and (found := summary(rounds, server, metric.name)) is not None
    }
    if not medians:
        return None
    return (min if metric.better == "lower" else max)(medians, key=lambda server: medians[server])


def summary(rounds: Rounds, server: str, metric: str) -> Spread | None:
    """The spread of a server's rounds. None without a round."""
    values = [figures[metric] for figures in rounds.get(server, []) if metric in figures]
    return spread(values) if values else None


def ratio(ours: float, theirs: float) -> float | None:
    """`ours` divided by `theirs`. None if only `theirs` is 0."""
    if theirs == 0:
        return 1.0 if ours == 0 else None
    return ours / theirs


def _metric(scenario: Scenario, name: str) -> Metric:
    return next(metric for metric in scenario.metrics if metric.name == name)
