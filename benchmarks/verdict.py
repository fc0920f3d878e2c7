"""Whether the goals are met: our figures against the best Python rival's, or against a bound of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.scenarios.scenario import Figures, Goal, Metric, Scenario
from benchmarks.servers import OURS, SERVERS
from benchmarks.stats import Spread, number, spread

Rounds: TypeAlias = dict[str, list[Figures]]
"""What one scenario gave, by server; a round that failed is not there."""


@dataclass(frozen=True)
class Judgement:
    """One goal.

    Attributes:
        metric: Of what.
        goal: What was wanted.
        figure: What there is, in the goal's terms; None if it could not be said.
        rival: Against whom; empty for a bound of its own.
    """

    metric: Metric
    goal: Goal
    figure: float | None
    rival: str = ""

    @property
    def met(self) -> bool:
        """Whether it is met; what could not be said is not."""
        if self.figure is None:
            return False
        return self.figure <= self.goal.bound if self.metric.better == "lower" else self.figure >= self.goal.bound

    def __str__(self) -> str:
        sign = "<=" if self.metric.better == "lower" else ">="
        unit = f"times {self.rival}" if self.goal.of == "ratio" else self.metric.unit
        got = "no figure" if self.figure is None else f"{number(self.figure)} {unit}"
        return f"{'met' if self.met else 'NOT MET'}: {self.metric.label} {got} (goal {sign} {self.goal.bound:g})"


def judge(scenario: Scenario, rounds: Rounds) -> list[Judgement]:
    """All goals of a scenario."""
    return [_judge_one(scenario, rounds, goal) for goal in scenario.goals]


def _judge_one(scenario: Scenario, rounds: Rounds, goal: Goal) -> Judgement:
    metric = _metric(scenario, goal.metric)
    ours = summary(rounds, OURS, goal.metric)
    if goal.of == "absolute":
        return Judgement(metric, goal, ours and ours.median)
    rival = best_python_rival(rounds, _metric(scenario, goal.rival_by or goal.metric))
    theirs = rival and summary(rounds, rival, goal.metric)
    if not (ours and rival and theirs):
        return Judgement(metric, goal, None, rival or "any rival")
    return Judgement(metric, goal, ratio(ours.median, theirs.median), rival)


def best_python_rival(rounds: Rounds, metric: Metric) -> str | None:
    """The Python rival with the best median; None if none has a figure."""
    medians = {
        server: found.median
        for server in rounds
        if SERVERS[server].side == "python" and (found := summary(rounds, server, metric.name)) is not None
    }
    if not medians:
        return None
    return (min if metric.better == "lower" else max)(medians, key=lambda server: medians[server])


def summary(rounds: Rounds, server: str, metric: str) -> Spread | None:
    """The median of a server's rounds, and how far they spread; None without a round."""
    values = [figures[metric] for figures in rounds.get(server, []) if metric in figures]
    return spread(values) if values else None


def ratio(ours: float, theirs: float) -> float | None:
    """Ours to theirs; None where there is no such number."""
    if theirs == 0:
        return 1.0 if ours == 0 else None
    return ours / theirs


def _metric(scenario: Scenario, name: str) -> Metric:
    return next(metric for metric in scenario.metrics if metric.name == name)
