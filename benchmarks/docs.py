"""Puts a run into docs/performance.md: its plots and its tables, so that no figure there is typed by hand.

`python -m benchmarks.docs [FILE]` draws the plots and writes the page's generated part.
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
    "cpu": "What a delivered token costs the server, beside other servers",
    "latency": "How long a token is under way, and a first token takes",
    "throughput": "How many tokens get through when there are too many, and how fast a log is read again",
    "idle": "What a silent open stream takes",
    "growth": "What a token costs as there are more streams and longer logs",
}


def write(run: dict[str, Any]) -> None:
    """Draw the plots of a run and put them and its tables into the page."""
    plots.draw(run, PLOTS)
    PAGE.write_text(with_run(PAGE.read_text("utf-8"), run), "utf-8")


def with_run(page: str, run: dict[str, Any]) -> str:
    """The page with this run in it."""
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
