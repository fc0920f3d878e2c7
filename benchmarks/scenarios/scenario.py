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
    """One figure of a round.

    Attributes:
        name: Its key in the figures.
        label: For tables.
        unit: For tables.
        better: The better direction.
        is_difference: Whether it is a difference, which can be 0 or negative. It has no ratio.
    """

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"] = "lower"
    is_difference: bool = False


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The goal for the median of one of crucible_trio's servers over all rounds.

    Attributes:
        metric: The metric's name.
        bound: The maximum if lower is better, the minimum if higher is better.
        of: `ratio`: divided by the best Python rival's. `difference`: less the rival's. `absolute`: by itself.
        rival_by: The metric that decides which Python rival is the best. None: `metric`.
        rival: The server to compare with. Empty: the best Python rival.
        server: The server that is judged.
    """

    metric: str
    bound: float
    of: Literal["ratio", "difference", "absolute"] = "ratio"
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
