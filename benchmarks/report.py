"""What a run says, as Markdown. `python -m benchmarks.report [FILE]` says it again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Metric, Scenario
from benchmarks.servers import OURS, SERVERS
from benchmarks.stats import number
from benchmarks.validity import SHARE, checks
from benchmarks.verdict import Rounds, judge, ratio, summary

RESULTS: Final = Path(__file__).parent / "results"
# Over this a round says more about the other process on the core than about the server.
_DISTURBED: Final = 0.05
# Over this the client may have been what was measured.
_CLIENT_BOUND: Final = 0.9


def report(run: dict[str, Any]) -> str:
    """The whole run."""
    measured = [scenario for scenario in SCENARIOS if scenario.name in run["scenarios"]]
    parts = [
        _conditions(run),
        *(scenario_report(s, run["scenarios"][s.name], verdict=not run["quick"]) for s in measured),
        _remarks(run),
        validity_report(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def scenario_report(scenario: Scenario, rounds: Rounds, *, verdict: bool) -> str:
    """One scenario: a table, and whether its goals are met."""
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
        return "failed"
    text = f"{number(found.median)}"
    if found.rounds > 1:
        text += f" ({number(found.least)} to {number(found.most)})"
    ours = summary(rounds, OURS, metric.name)
    if server != OURS and ours is not None and (compared := ratio(ours.median, found.median)) is not None:
        text += f"; ours {compared:.2f}"
    return text


def _conditions(run: dict[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    versions = ", ".join(f"{name} {value}" for name, value in run["versions"].items())
    text = (
        f"{run['when']}. Rounds in turn: median (least to most); ours relative to theirs.\n\n"
        f"Machine: {machine}.\n\nVersions: {versions}."
    )
    if run["busy"] > _DISTURBED:
        text += f"\n\n**Not a quiet machine**: others used {run['busy']:.0%} of it before the run."
    return text


def _remarks(run: dict[str, Any]) -> str:
    lines = [
        f"- **failed**: {failure['scenario']}, {failure['server']}: {failure['why']}" for failure in run["failures"]
    ]
    for name, rounds in run["scenarios"].items():
        for server in rounds:
            waited = summary(rounds, server, "server_waited")
            if waited is not None and waited.median > _DISTURBED:
                lines.append(f"- disturbed: {name}, {server} waited {waited.median:.0%} of the time for its core")
            ran = summary(rounds, server, "client_ran")
            if ran is not None and ran.median > _CLIENT_BOUND:
                lines.append(f"- {name}, {server}: the client was busy for {ran.median:.0%} of the time")
    return "\n".join(["## Remarks", "", *lines]) if lines else ""


def validity_report(run: dict[str, Any]) -> str:
    """Whether the run can be trusted."""
    if not run["bare"]:
        return "## Validity\n\nThe bare forms were not measured: no verdict on this run."
    lines = ["## Validity", "", "| bare form | events/s |", "|---|---|"]
    lines += [f"| {form} | {number(rate)} |" for form, rate in run["bare"].items()]
    lines += ["", "| to raw trio TCP | this run | reference | share |", "|---|---|---|---|"]
    found = checks(run["bare"], run["full_form_flood"])
    for check in found:
        mark = "" if check.passed else " **too little**"
        lines.append(f"| {check.what} | {check.got:.3g} | {check.wanted:.3g} | {check.share:.0%}{mark} |")
    if all(check.passed for check in found):
        lines += ["", f"Valid: none is below {SHARE:.0%} of its reference."]
    else:
        lines += ["", f"**INVALID RUN**: below {SHARE:.0%} of the reference. Nothing above counts."]
    return "\n".join(lines)


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "latest.json"
    print(report(json.loads(file.read_text())))
