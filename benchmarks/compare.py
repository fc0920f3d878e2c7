"""Compares the crucible server of two checkouts, to see whether a change made it slower.

`python -m benchmarks.compare BASE NEW [--scenarios pace,flood-1] [--rounds 7]`

Each server runs the code of its checkout with this interpreter. The client and the scenarios are those of this
checkout. The rounds alternate in the order base, new, new, base, so that a machine that slows down slows both sides.

Exit code 0, or 1 if a server failed or NEW is more than 5 % worse than BASE in the first metric of a scenario.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.process import take_client_core
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Figures, Metric
from benchmarks.servers import ELSEWHERE, OURS, PLAIN, REDIS, SERVERS
from benchmarks.stats import number, spread
from benchmarks.verdict import ratio

ALLOWED: Final = 0.05  # NEW may be this share worse than BASE
_WAITED: Final = Metric(name="server_waited", label="server waited for its core", unit="share of the time")
_FIND_PACKAGE: Final = "import crucible_trio; print(crucible_trio.__file__)"


@dataclass(frozen=True)
class Comparison:
    """One metric of one scenario on both sides.

    Attributes:
        metric: The metric.
        base: The values of BASE, one for each round.
        new: The values of NEW, one for each round.
    """

    metric: Metric
    base: list[float]
    new: list[float]

    @property
    def ratio(self) -> float:
        """The median of NEW divided by the median of BASE."""
        return _ratio(median(self.new), median(self.base))

    @property
    def pair_ratios(self) -> list[float]:
        """NEW divided by BASE in each round. Both runs of a round are neighbours in time."""
        return [_ratio(new, base) for base, new in zip(self.base, self.new, strict=True)]

    @property
    def is_worse(self) -> bool:
        """Whether NEW is worse than BASE by more than `ALLOWED`."""
        return self.ratio > 1 + ALLOWED if self.metric.better == "lower" else self.ratio < 1 - ALLOWED

    def __str__(self) -> str:
        sides = [
            f"{number(s.median)} ({number(s.least)} to {number(s.most)})" for s in (spread(self.base), spread(self.new))
        ]
        pairs = spread(self.pair_ratios)
        text = f"{self.metric.label}, {self.metric.unit}: base {sides[0]}, new {sides[1]}, ratio {self.ratio:.3f}"
        return f"{text}, pairs {pairs.median:.3f} ({pairs.least:.3f} to {pairs.most:.3f})"


def order(rounds: int) -> Iterator[str]:
    """The sides in the order of their runs: base, new, new, base, base, new and so on."""
    for turn in range(rounds):
        yield from ("base", "new") if turn % 2 == 0 else ("new", "base")


def compare(metrics: tuple[Metric, ...], figures: dict[str, list[Figures]]) -> list[Comparison]:
    """One comparison for each metric that the server has, from the figures of all rounds by side."""
    base, new = figures["base"], figures["new"]
    return [
        Comparison(each, [found[each.name] for found in base], [found[each.name] for found in new])
        for each in metrics
        if each.name in base[0]
    ]


def _ratio(new: float, base: float) -> float:
    found = ratio(new, base)
    return inf if found is None else found


def main() -> int:
    """Run the comparison of the command line. Returns the exit code."""
    ours = (OURS, PLAIN, REDIS, ELSEWHERE)
    scenarios = {scenario.name: scenario for scenario in SCENARIOS if not set(ours).isdisjoint(scenario.servers)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Compare two checkouts.")
    parser.add_argument("base", type=Path, help="checkout of the older commit")
    parser.add_argument("new", type=Path, help="checkout of the newer commit")
    parser.add_argument(
        "--scenarios", default="pace,flood-1", help=f"some of {','.join(scenarios)} (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--server", choices=ours, default=OURS, help="default: %(default)s")
    arguments = parser.parse_args()
    names = arguments.scenarios.split(",")
    if unknown := set(names) - set(scenarios):
        parser.error(f"unknown scenarios: {', '.join(sorted(unknown))}")
    # Other scenarios start no Redis.
    if SERVERS[arguments.server].log == "redis" and not all(scenarios[name].needs_redis for name in names):
        parser.error(f"{arguments.server} takes part only in the scenarios with the log in Redis")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    servers = {
        side: replace(SERVERS[arguments.server], checkout=require_checkout(folder.resolve()))
        for side, folder in (("base", arguments.base), ("new", arguments.new))
    }
    take_client_core()
    worse = False
    for name in names:
        figures: dict[str, list[Figures]] = {"base": [], "new": []}
        for side in order(arguments.rounds):
            figures[side].append(scenarios[name].run(servers[side]))
            print(f"{name}, {side}, round {len(figures[side])} of {arguments.rounds}", file=sys.stderr, flush=True)
        is_windowed = _WAITED.name in figures["base"][0]
        comparisons = compare(scenarios[name].metrics + (_WAITED,) * is_windowed, figures)
        print(f"{name}: {'WORSE' if comparisons[0].is_worse else f'not more than {ALLOWED:.0%} worse'}")
        print(*(f"  {comparison}" for comparison in comparisons), sep="\n", flush=True)
        worse = worse or comparisons[0].is_worse
    return 1 if worse else 0


def require_checkout(folder: Path) -> Path:
    """Check that a server of this checkout imports the checkout's package, and not an installed one."""
    done = subprocess.run(
        [sys.executable, "-c", _FIND_PACKAGE],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if Path(done.stdout.strip()).parent.parent != folder:
        sys.exit(f"{folder} is not a checkout: python imports {done.stdout.strip() or done.stderr} there")
    return folder


if __name__ == "__main__":
    sys.exit(main())
