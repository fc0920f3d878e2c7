"""What a scenario is: how it is run, what it measures and what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.servers import Server

Figures: TypeAlias = dict[str, float]
Run: TypeAlias = Callable[[Server], Figures]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a round."""

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"] = "lower"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What our figure must be: over all rounds, by its median.

    Attributes:
        metric: Of what.
        bound: At most this where lower is better, at least this where higher is.
        of: `ratio`: of the best Python rival's figure. `absolute`: in the metric's unit.
        rival_by: The best Python rival is the best by this metric; None: by the same.
    """

    metric: str
    bound: float
    of: Literal["ratio", "absolute"] = "ratio"
    rival_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One line of the table.

    Attributes:
        name: For the command line.
        title: For people.
        run: Starts a server, drives it once and gives the figures of that round.
        metrics: The figures that are shown, the most telling first.
        goals: What is wanted.
        servers: Who takes part.
        main: Whether a quick run takes it.
        most_rounds: Where a round takes long and the rounds hardly differ, so many are enough.
    """

    name: str
    title: str
    run: Run
    metrics: tuple[Metric, ...]
    goals: tuple[Goal, ...]
    servers: tuple[str, ...]
    main: bool = False
    most_rounds: int = 1000
