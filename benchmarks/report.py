"""The report of a run, in Markdown. `python -m benchmarks.report [FILE]` prints it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Metric, Scenario
from benchmarks.servers import OURS, SERVERS
from benchmarks.stats import number
from benchmarks.validity import SHARE, checks, status
from benchmarks.verdict import Rounds, judge, ratio, summary

RESULTS: Final = Path(__file__).parent / "results"
_STATUSES: Final = {
    "valid": f"Valid: no rival is below {SHARE:.0%} of its reference.",
    "invalid": f"**INVALID RUN**: a rival is below {SHARE:.0%} of its reference. Do not use the results above.",
    "unknown": "Unknown: the reference is from another kind of machine. `python -m benchmarks.validity` measures one.",
}
# Share of the time. Above it, other processes on the core affected the result.
_DISTURBED: Final = 0.05
# Share of the time. Above it, the client may have been the limit.
_CLIENT_BOUND: Final = 0.9


def report(run: dict[str, Any]) -> str:
    """The report of the whole run."""
    measured = [scenario for scenario in SCENARIOS if scenario.name in run["scenarios"]]
    parts = [
        _conditions(run),
        *(scenario_report(s, run["scenarios"][s.name], verdict=not run["quick"]) for s in measured),
        _remarks(run),
        validity_report(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def scenario_report(scenario: Scenario, rounds: Rounds, *, verdict: bool) -> str:
    """The table of one scenario, and whether its goals are met."""
    servers = [server for server in scenario.servers if server in rounds]
    least = min((len(rounds[server]) for server in servers if rounds[server]), default=0)
    lines = [
        f"## {scenario.title}",
        "",
        f"Rounds: {least}.",
        "",
        f"| | {' | '.join(SERVERS[server].label for server in servers)} |",
    ]
    lines.append(f"|---|{'---|' * len(servers)}")
    for metric in scenario.metrics:
        cells = " | ".join(_cell(rounds, server, metric) for server in servers)
        lines.append(f"| {metric.label}, {metric.unit} | {cells} |")
    if verdict:
        lines += ["", *(f"- {judgement}" for judgement in judge(scenario, rounds))]
    return "\n".join(lines)


def _cell(rounds: Rounds, server: str, metric: Metric) -> str:
    found = summary(rounds, server, metric.name)
    if found is None:
        return "-" if rounds[server] else "failed"
    text = f"{number(found.median)}"
    if found.rounds > 1:
        text += f" ({number(found.least)} to {number(found.most)})"
    ours = summary(rounds, OURS, metric.name)
    if server == OURS or ours is None or metric.is_difference:
        return text
    if (compared := ratio(ours.median, found.median)) is not None:
        text += f", ratio {compared:.2f}"
    return text


def _conditions(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    text = (
        f"{run['when']}. The rounds alternate between the servers. A cell has the median (minimum to maximum) and the "
        f"ratio of {SERVERS[OURS].label}'s median to it.\n\n"
        f"Machine: {_machine(run)}.\n\nVersions: {versions}."
    )
    if run["busy"] > _DISTURBED:
        text += (
            f"\n\n**The machine was not idle**: before the run, other processes used {run['busy']:.0%} of all cores."
        )
    return text


def _machine(run: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in run["machine"].items())


def _remarks(run: dict[str, Any]) -> str:
    lines = [f"- {sentence}" for sentence in run.get("skipped", [])]
    lines += [
        f"- **Failed**: {failure['scenario']}, {failure['server']}: {failure['why']}" for failure in run["failures"]
    ]
    for name, rounds in run["scenarios"].items():
        for server in rounds:
            waited = summary(rounds, server, "server_waited")
            if waited is not None and waited.median > _DISTURBED:
                lines.append(f"- Disturbed: {name}, {server} waited for its core {waited.median:.0%} of the time.")
            ran = summary(rounds, server, "client_ran")
            if ran is not None and ran.median > _CLIENT_BOUND:
                lines.append(f"- Client near its limit: {name}, {server}: it was busy {ran.median:.0%} of the time.")
    return "\n".join(["## Remarks", "", *lines]) if lines else ""


def validity_report(run: dict[str, Any]) -> str:
    """Whether the run is valid."""
    if not run["bare"]:
        return "## Validity\n\nUnknown: the bare forms were not measured."
    lines = ["## Validity", "", "| bare form | events/s |", "|---|---|"]
    lines += [f"| {form} | {number(rate)} |" for form, rate in run["bare"].items()]
    lines += ["", f"The reference is from {run['reference']['when']}: {_machine(run['reference'])}."]
    lines += ["", "| ratio to raw trio TCP | this run | reference | share |", "|---|---|---|---|"]
    for check in checks(run):
        mark = "" if check.passed else " **too low**"
        lines.append(f"| {check.what} | {check.got:.3g} | {check.wanted:.3g} | {check.share:.0%}{mark} |")
    lines += ["", _STATUSES[status(run)]]
    return "\n".join(lines)


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "latest.json"
    print(report(json.loads(file.read_text())))
