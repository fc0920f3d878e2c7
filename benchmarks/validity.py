"""Decides whether a run is valid: compares the bare forms of the rivals with a reference run on an idle machine.

If a rival is far below its reference, the benchmark has a mistake. The compared figures are ratios to raw trio TCP,
because absolute figures change with the machine. Raw ASGI on uvicorn is only shown. It is a baseline and not a rival,
and the number of events that it merges into a write depends on how fast the client reads.

The ratios change with the kind of machine, too. So a run is compared only with a reference from the same processor.
`python -m benchmarks.validity` measures the reference, with the same code as a run, and takes three minutes. So the
comparison finds a rival that was slow in one run. It cannot find a mistake that is in the reference as well.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, TypeAlias

from benchmarks import machine
from benchmarks.process import ServerFailedError, running, take_client_core
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import SERVERS, bare_form
from benchmarks.servers.bare import EVENTS

FLOOR: Final = "trio-tcp"
MERGING_FLOOR: Final = "uvicorn"
# The reference run: its date, machine and versions, the rates of the bare forms, and that of the full form.
REFERENCE: Final = Path(__file__).parent / "results" / "reference.json"
# Events per second over one connection: 50,000 events of 111 bytes, one event per send.
FORMS: Final = (FLOOR, MERGING_FLOOR, "sse-starlette", "fastapi", "aiohttp-sse", "quart-trio")
FULL_FORM: Final = "sse-starlette"
"""Its full form is measured as well, by `flood-1`, in tokens per second."""
SHARE: Final = 0.8

_TIMES: Final = 3  # the first one warms up
_REFERENCE_ROUNDS: Final = 5
_END: Final = b"\r\n0\r\n\r\n"

Status: TypeAlias = Literal["valid", "invalid", "unknown"]


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        what: The bare form, or the full form in a flood.
        got: Its ratio to raw trio TCP in this run.
        wanted: The same ratio in the reference run.
        decides: Whether a ratio that is too low makes the run invalid.
    """

    what: str
    got: float
    wanted: float
    decides: bool = True

    @property
    def share(self) -> float:
        """The ratio of this run as a share of the reference."""
        return self.got / self.wanted

    @property
    def passed(self) -> bool:
        """Whether the share is high enough, or does not decide."""
        return self.share >= SHARE or not self.decides


def reference() -> dict[str, Any]:
    """The reference run."""
    found = json.loads(REFERENCE.read_text())
    assert isinstance(found, dict)
    return found


def checks(run: dict[str, Any]) -> list[Check]:
    """Compare a run with the reference that it names. Empty if it has no bare forms."""
    bare, wanted = run["bare"], run["reference"]
    if not bare:
        return []
    floor, wanted_floor = bare[FLOOR], wanted["bare"][FLOOR]
    found = [
        Check(f"bare {form}", rate / floor, wanted["bare"][form] / wanted_floor, decides=form != MERGING_FLOOR)
        for form, rate in bare.items()
        if form != FLOOR
    ]
    if (flood := run["full_form_flood"]) is not None:
        found.append(Check(f"{FULL_FORM} in a flood", flood / floor, wanted["full_form_flood"] / wanted_floor))
    return found


def status(run: dict[str, Any]) -> Status:
    """Whether a run is valid. Unknown without bare forms, and if its reference is from another kind of machine."""
    found = checks(run)
    if not found or any(run["machine"][fact] != run["reference"]["machine"][fact] for fact in ("processor", "cores")):
        return "unknown"
    return "valid" if all(check.passed for check in found) else "invalid"


def measure_bare(rounds: int) -> dict[str, float]:
    """Events per second of every bare form: the median over the rounds. Each round takes the best of `_TIMES` tries."""
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form in FORMS:
            with running(bare_form(form)) as process:
                rates[form].append(max(_drive(process.port) for _ in range(_TIMES)))
    return {form: median(of_rounds) for form, of_rounds in rates.items()}


def _drive(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        began = time.monotonic()
        pieces = []
        tail = b""
        while piece := sock.recv(64 * 1024):
            pieces.append(piece)
            tail = (tail + piece)[-len(_END) :]
            if tail == _END:
                break
        seconds = time.monotonic() - began
    events = b"".join(pieces).count(b'"delta"')
    if events != EVENTS:
        raise ServerFailedError(f"{events} events instead of {EVENTS}")
    return EVENTS / seconds


def main() -> None:
    """Measure the reference anew, and save it."""
    [flood] = [scenario for scenario in SCENARIOS if scenario.name == "flood-1"]
    run: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "busy": machine.busy_share(2.0),
    }
    take_client_core()
    run["bare"] = measure_bare(_REFERENCE_ROUNDS)
    rates = [flood.run(SERVERS[FULL_FORM])["tokens_per_s"] for _ in range(_REFERENCE_ROUNDS)]
    run["full_form_flood"] = median(rates)
    REFERENCE.write_text(json.dumps(run, indent=1) + "\n")
    print(REFERENCE.read_text())


if __name__ == "__main__":
    main()
