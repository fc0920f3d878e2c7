"""`python -m benchmarks`: run the scenarios, print a report, write JSON and plots.

Exit code:

- 0: The run is complete. The report lists missed goals, and they do not change the exit code.
- 1: crucible_trio failed in a scenario.
- 3: The run is invalid (see `validity.py`).
- 130: The run was interrupted.
"""

from __future__ import annotations

import argparse
import json
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
    chosen = [scenario for scenario in SCENARIOS if _is_chosen(scenario, arguments)]
    rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
    run: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": arguments.quick,
        "rounds": rounds,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "busy": machine.busy_share(2.0),
        "bare": {},
        "full_form_flood": None,
        "scenarios": {},
        "failures": [],
    }
    take_client_core()
    if not arguments.no_bare:
        _log("measuring the bare forms")
        run["bare"] = validity.measure_bare(min(rounds, 3))
    for scenario in chosen:
        results = _run_scenario(scenario, rounds, arguments.servers, run["failures"])
        run["scenarios"][scenario.name] = results
        _log(scenario_report(scenario, results, verdict=not arguments.quick) + "\n")
    flood = summary(run["scenarios"].get("flood-1", {}), validity.FULL_FORM, "tokens_per_s")
    run["full_form_flood"] = flood and flood.median
    _write(run, arguments.out, whole=len(chosen) == len(SCENARIOS) and not arguments.servers)
    print(report(run))
    if run["bare"] and not all(check.passed for check in validity.checks(run["bare"], run["full_form_flood"])):
        print("INVALID RUN: a rival is far below its reference. See the table of validity.", file=sys.stderr)
        return 3
    return 1 if any(SERVERS[failure["server"]].side == "ours" for failure in run["failures"]) else 0


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


def _is_chosen(scenario: Scenario, arguments: argparse.Namespace) -> bool:
    if arguments.only:
        return scenario.name in arguments.only
    return scenario.main or not arguments.quick


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
                notes = "\n".join(getattr(error, "__notes__", []))
                failures.append(
                    {
                        "scenario": scenario.name,
                        "server": server,
                        "why": f"{type(error).__name__}: {error}",
                        "said": notes,
                    }
                )
            _log(f"{scenario.name}, round {turn + 1}, {server}: {time.monotonic() - began:.1f} s{outcome}")
    return results


def _write(run: dict[str, Any], folder: Path, *, whole: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(run, indent=1) + "\n"
    (folder / f"{run['when'].replace(':', '').replace('+0000', 'Z')}.json").write_text(text)
    if whole and not run["quick"] and folder == RESULTS:
        (folder / "latest.json").write_text(text)
        from benchmarks import docs  # imports matplotlib, which nothing else needs

        docs.write(run)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
