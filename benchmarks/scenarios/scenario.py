"""A scenario: how to run it, its metrics and its goals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.servers import OURS, SERVERS, BenchServer

Figures: TypeAlias = dict[str, float]
Run: TypeAlias = Callable[[BenchServer], Figures]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a round."""

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"] = "lower"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The goal for the median of one of crucible_trio's servers over all rounds.

    Attributes:
        metric: The metric's name.
        bound: The maximum if lower is better, the minimum if higher is better.
        of: `ratio`: relative to the best Python rival. `absolute`: in the metric's unit.
        rival_by: The metric that decides which Python rival is the best. None: `metric`.
        rival: The server to compare with. Empty: the best Python rival.
        server: The server that is judged.
    """

    metric: str
    bound: float
    of: Literal["ratio", "absolute"] = "ratio"
    rival_by: str | None = None
    rival: str = ""
    server: str = OURS


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One scenario.

    Attributes:
        name: For the command line.
        title: For the report.
        run: Starts a server, runs one round and returns its figures.
        metrics: The metrics of the report, the most important first.
        goals: The goals.
        servers: The servers that take part.
        main: Whether a quick run includes it.
        most_rounds: Maximum number of rounds, for scenarios whose rounds are long and hardly differ.
    """

    name: str
    title: str
    run: Run
    metrics: tuple[Metric, ...]
    goals: tuple[Goal, ...]
    servers: tuple[str, ...]
    main: bool = False
    most_rounds: int = 1000

    @property
    def needs_redis(self) -> bool:
        """Whether one of the servers has its log in Redis."""
        return any(SERVERS[server].log == "redis" for server in self.servers)
