"""The plots of the documentation, as SVG, for light and dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.servers import OURS, SERVERS
from benchmarks.stats import number
from benchmarks.verdict import summary

_TEXT: Final = {"light": "#1f2328", "dark": "#e6edf3"}
_OURS: Final = {"light": "#0969da", "dark": "#4493f8"}
_PLAIN: Final = {"light": "#80b4f0", "dark": "#2a5da8"}
_THEIRS: Final = {"light": "#8c959f", "dark": "#6e7681"}

# Name of the file: title, scenario and metric of each panel.
_BARS: Final = {
    "proxy": (
        ("Gateway, 100 streams, 50 tokens/s:\nCPU per token, µs", "proxy-100", "cpu_us"),
        ("Gateway, 400 streams, 50 tokens/s:\nCPU per token, µs", "proxy-400", "cpu_us"),
        ("Gateway, 100 streams, 50 tokens/s:\nadded latency p50, ms", "proxy-100", "added_p50_ms"),
    ),
    "cpu": (
        ("200 streams, 50 tokens/s:\nCPU per token, µs", "pace", "cpu_us"),
        ("1,000 streams, 20 tokens/s:\nCPU per token, µs", "many", "cpu_us"),
        ("100 readers of one stream:\nCPU per token, µs", "fan-out", "cpu_us"),
    ),
    "latency": (
        ("200 streams, 50 tokens/s:\nlatency p50, ms", "pace", "p50_ms"),
        ("200 streams, 50 tokens/s:\nlatency p99, ms", "pace", "p99_ms"),
        ("100 simultaneous requests:\nfirst token p99, ms", "first-byte", "token_p99_ms"),
    ),
    "throughput": (
        ("A model that never waits, 1 stream:\n1,000 tokens/s", "flood-1", "tokens_per_s"),
        ("1,000 streams, 100 tokens/s each:\n1,000 tokens/s", "overload", "tokens_per_s"),
        ("Replay of 10,000 records:\n1,000 records/s", "resume", "records_per_s"),
    ),
    "idle": (
        ("1,000 silent streams:\nKiB each", "idle", "few_kib"),
        ("5,000 silent streams:\nKiB each", "idle", "many_kib"),
    ),
}
_LINES: Final = (
    ("CPU per token, µs, by streams", "growth-streams", ("1", "10", "100", "1000")),
    ("CPU per token, µs, by records in the log", "growth-log", ("100", "1000", "10000", "100000")),
)


def draw(run: dict[str, Any], folder: Path) -> None:
    """Draw the plots of a run. Scenarios that it did not measure are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "crucible_trio"  # equal figures give an equal file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text: a quarter of the size, and screen readers can read it
    for theme in ("light", "dark"):
        for name, panels in _BARS.items():
            measured = [panel for panel in panels if run["scenarios"].get(panel[1])]
            if measured:
                figure = Figure(figsize=(3.6 * len(measured), 2.6), layout="constrained")
                for axes, panel in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
                    _bars(axes, run, panel, theme)
                _save(figure, folder / f"{name}-{theme}.svg")
        measured_lines = [line for line in _LINES if run["scenarios"].get(line[1])]
        if measured_lines:
            figure = Figure(figsize=(4.4 * len(measured_lines), 2.8), layout="constrained")
            for axes, line in zip(
                figure.subplots(1, len(measured_lines), squeeze=False)[0], measured_lines, strict=True
            ):
                _growth(axes, run, line, theme)
            _save(figure, folder / f"growth-{theme}.svg")


def _bars(axes: Axes, run: dict[str, Any], panel: tuple[str, str, str], theme: str) -> None:
    title, scenario, metric = panel
    scale = 1000 if "1,000 tokens/s" in title.split("\n")[1] or "1,000 records/s" in title else 1
    rounds = run["scenarios"][scenario]
    found = {server: summary(rounds, server, metric) for server in reversed(SERVERS) if server in rounds}
    shown = {server: figure for server, figure in found.items() if figure is not None}
    medians = [figure.median / scale for figure in shown.values()]
    spreads = [
        [(figure.median - figure.least) / scale for figure in shown.values()],
        [(figure.most - figure.median) / scale for figure in shown.values()],
    ]
    labels = [SERVERS[server].label.replace(", ", ",\n") for server in shown]
    bars = axes.barh(
        labels,
        medians,
        xerr=spreads,
        color=[_colour(server, theme) for server in shown],
        error_kw={"ecolor": _TEXT[theme], "elinewidth": 0.8},
    )
    axes.bar_label(bars, [number(median) for median in medians], padding=4, color=_TEXT[theme], fontsize=7)
    axes.margins(x=0.18)
    _style(axes, title, theme)


def _growth(axes: Axes, run: dict[str, Any], line: tuple[str, str, tuple[str, ...]], theme: str) -> None:
    title, scenario, sizes = line
    rounds = run["scenarios"][scenario]
    for server in rounds:
        found = [summary(rounds, server, size) for size in sizes]
        if all(found):
            medians = [figure.median for figure in found if figure is not None]
            axes.plot(
                [int(size) for size in sizes], medians, "o-", label=SERVERS[server].label, color=_colour(server, theme)
            )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=_TEXT[theme], fontsize=7)
    _style(axes, title, theme)


def _colour(server: str, theme: str) -> str:
    if server == OURS:
        return _OURS[theme]
    return (_PLAIN if SERVERS[server].side == "ours" else _THEIRS)[theme]


def _style(axes: Axes, title: str, theme: str) -> None:
    axes.set_title(title, fontsize=9, color=_TEXT[theme])
    axes.set_facecolor("none")
    axes.tick_params(colors=_TEXT[theme], labelsize=7)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_TEXT[theme])


def _save(figure: Figure, file: Path) -> None:
    figure.patch.set_alpha(0)
    figure.savefig(file, metadata={"Date": None})
