"""`python -m benchmarks`: run the scenarios, print a report, write JSON and plots.

The JSON is written after each scenario, so an interrupted run keeps the results that it has.

Exit code:

- 0: The run is complete. The report lists missed goals, and they do not change the exit code.
- 1: crucible_trio failed in a scenario.
- 3: The run is invalid (see `validity.py`).
- 130: The run was interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, validity
from benchmarks.process import take_client_core
from benchmarks.report import RESULTS, report, scenario_report
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.scenario import Scenario
from benchmarks.servers import SERVERS
from benchmarks.verdict import Rounds, summary

ROUNDS: Final = 5


def main() -> int:
    """Run the scenarios of the command line. Returns the exit code."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are ended before this process exits
    chosen, skipped = _choose(arguments)
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    run: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        "rounds": rounds,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "busy": machine.busy_share(2.0),
        "reference": validity.reference(),
        "bare": {},
        "full_form_flood": None,
        "skipped": skipped,
        "scenarios": {},
        "failures": [],
    }
    _log("\n".join(skipped))
    take_client_core()
    if not arguments.no_bare:
        _log("measuring the bare forms")
        try:
            run["bare"] = validity.measure_bare(min(rounds, 3))
        except Exception as error:  # the results say that it is unknown whether the run is valid
            run["failures"].append(_failure("bare forms", "", error))
    run_scenarios(run, chosen, arguments.servers, arguments.out)
    flood = summary(run["scenarios"].get("flood-1", {}), validity.FULL_FORM, "tokens_per_s")
    run["full_form_flood"] = flood and flood.median
    _save(run, arguments.out)
    if len(chosen) == len(SCENARIOS) and not (arguments.servers or arguments.quick) and arguments.out == RESULTS:
        _publish(run)
    print(report(run))
    if validity.status(run) == "invalid":
        print("INVALID RUN: a rival is far below its reference. See the table of validity.", file=sys.stderr)
        return 3
    failed = {failure["server"] for failure in run["failures"]}
    return 1 if any(server in failed for server in SERVERS if SERVERS[server].side == "ours") else 0


def run_scenarios(run: dict[str, Any], chosen: list[Scenario], only: list[str] | None, folder: Path) -> None:
    """Run scenarios, and put their results and failures into the run. Saves the run after each of them.

    Args:
        run: The run so far.
        chosen: The scenarios.
        only: The servers that take part. None: those of each scenario.
        folder: Where the run is saved.
    """
    for scenario in chosen:
        results = _run_scenario(scenario, run["rounds"], only, run["failures"])
        run["scenarios"][scenario.name] = results
        _save(run, folder)
        _log(scenario_report(scenario, results, verdict=not run["quick"]) + "\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure crucible_trio and other servers."
    )
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument(
        "--quick", action="store_true", help="one round of the main scenarios, without judging the goals"
    )
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, or 1 with --quick")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), metavar="NAME", help=", ".join(SERVERS))
    parser.add_argument(
        "--no-bare", action="store_true", help="skip the bare forms, which show whether the run is valid"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file (default: %(default)s)")
    return parser.parse_args()


def _choose(arguments: argparse.Namespace) -> tuple[list[Scenario], list[str]]:
    """The scenarios of the command line, and a sentence about those that cannot run here."""
    chosen = [
        scenario
        for scenario in SCENARIOS
        if (scenario.name in arguments.only if arguments.only else scenario.main or not arguments.quick)
    ]
    if shutil.which("redis-server") is not None:
        return chosen, []
    skipped = ", ".join(scenario.name for scenario in chosen if scenario.needs_redis)
    chosen = [scenario for scenario in chosen if not scenario.needs_redis]
    return chosen, [f"Skipped {skipped}: redis-server is not installed."] if skipped else []


def _run_scenario(scenario: Scenario, rounds: int, only: list[str] | None, failures: list[dict[str, str]]) -> Rounds:
    servers = [server for server in scenario.servers if only is None or server in only]
    results: Rounds = {server: [] for server in servers}
    for turn in range(min(rounds, scenario.most_rounds)):
        for server in servers:
            began = time.monotonic()
            try:
                results[server].append(scenario.run(SERVERS[server]))
                outcome = ""
            except Exception as error:  # keep the earlier rounds
                outcome = f", failed: {error}"
                failures.append(_failure(scenario.name, server, error))
            _log(f"{scenario.name}, round {turn + 1}, {server}: {time.monotonic() - began:.1f} s{outcome}")
    return results


def _failure(scenario: str, server: str, error: Exception) -> dict[str, str]:
    notes = "\n".join(getattr(error, "__notes__", []))
    return {"scenario": scenario, "server": server, "why": f"{type(error).__name__}: {error}", "said": notes}


def _save(run: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{run['when'].replace(':', '').replace('+0000', 'Z')}.json"
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(run, indent=1) + "\n")
    unfinished.replace(file)  # a run that is killed here keeps the file of the scenario before


def _publish(run: dict[str, Any]) -> None:
    (RESULTS / "latest.json").write_text(json.dumps(run, indent=1) + "\n")
    from benchmarks import docs  # imports matplotlib, which nothing else needs

    docs.write(run)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
