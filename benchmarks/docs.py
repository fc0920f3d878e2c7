"""Writes the plots and tables of a run into docs/performance.md, so that no figure is copied by hand.

`python -m benchmarks.docs [FILE]` draws the plots and writes the generated part of the page.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks import plots
from benchmarks.report import RESULTS, report

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
PLOTS: Final = PAGE.parent / "assets" / "bench"
BEGIN, END = "<!-- generated: begin -->\n", "<!-- generated: end -->\n"

_CAPTIONS: Final = {
    "proxy": "CPU time and latency that a gateway adds to each token, compared with other gateways",
    "cpu": "CPU time per delivered token, compared with other servers",
    "latency": "Latency of a token, and time to the first token",
    "throughput": "Throughput under overload, and speed of replaying a log",
    "idle": "Memory per silent open stream",
    "growth": "CPU time per token by number of streams and by length of log",
}


def write(run: dict[str, Any]) -> None:
    """Draw the plots of a run, and write plots and tables into the page."""
    plots.draw(run, PLOTS)
    PAGE.write_text(with_run(PAGE.read_text("utf-8"), run), "utf-8")


def with_run(page: str, run: dict[str, Any]) -> str:
    """The page with the plots and tables of this run."""
    pictures = "\n".join(
        f"```{{image}} assets/bench/{name}-{theme}.svg\n:class: only-{theme}\n:alt: {caption}\n```\n"
        for name, caption in _CAPTIONS.items()
        if (PLOTS / f"{name}-light.svg").exists()
        for theme in ("light", "dark")
    )
    tables = report(run).replace("\n## ", "\n### ")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{pictures}\n{tables}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "latest.json"
    write(json.loads(source.read_text()))
