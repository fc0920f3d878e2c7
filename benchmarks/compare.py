"""`python -m benchmarks.compare BASE [NEW]`: one scenario after another on the servers of two checkouts, in pairs.

The two servers take turns in the order A B, B A, A B, ..., so that a machine that becomes slower or faster meanwhile
affects both. The driver is that of this checkout. Each server runs the code of its own checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.process import PROJECT, take_client_core
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Scenario
from benchmarks.servers import SERVERS

ROUNDS: Final = 7


def main() -> int:
    """Compare what the command line names."""
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description="Compare two checkouts.")
    parser.add_argument("base", type=Path, help="folder of the older checkout")
    parser.add_argument("new", type=Path, nargs="?", default=PROJECT, help="folder of the newer one (default: this)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=["pace", "flood-1"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--server", choices=[*SERVERS], default="crucible")
    arguments = parser.parse_args()
    take_client_core()
    for scenario in SCENARIOS:
        if scenario.name in arguments.only:
            folders = (arguments.base.resolve(), arguments.new.resolve())
            print(f"{scenario.name}, {arguments.rounds} paired rounds, base {folders[0]}, new {folders[1]}")
            for line in _compare(scenario, folders, arguments.server, arguments.rounds):
                print(line, flush=True)
    return 0


def _compare(scenario: Scenario, folders: tuple[Path, Path], server: str, rounds: int) -> list[str]:
    figures: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            placed = dataclasses.replace(SERVERS[server], folder=folders[side])
            figures[side].append(scenario.run(placed))
            print(f"{scenario.name}, round {turn + 1}, {'base' if side == 0 else 'new'}", file=sys.stderr, flush=True)
    return [
        row(
            metric.label, [figure[metric.name] for figure in figures[0]], [figure[metric.name] for figure in figures[1]]
        )
        for metric in scenario.metrics
    ]


def row(label: str, base: Sequence[float], new: Sequence[float]) -> str:
    """One metric: both medians, the median of the ratios of the pairs, and their range."""
    ratios = sorted(after / before for before, after in zip(base, new, strict=True) if before)
    middle = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})" if ratios else "-"
    return f"  {label}: base {statistics.median(base):.4g}, new {statistics.median(new):.4g}, ratio {middle}"


if __name__ == "__main__":
    sys.exit(main())
