"""Decides whether a run is valid: compares the bare forms of the rivals with a reference run on an idle machine.

If a rival is far below its reference, the benchmark has a mistake. The compared figures are ratios to raw trio TCP,
because absolute figures change with the machine. Raw ASGI on uvicorn is only shown. It is a baseline and not a rival,
and the number of events that it merges into a write depends on how fast the client reads.

The ratios change with the processor too, because the kernel's share of an event does. FastAPI's bare form reached 0.29
of raw trio TCP on an AMD EPYC and 0.20 on an Intel Xeon, with the same versions and the same code. So the reference
belongs to one kind of machine. `python -m benchmarks.validity` measures it, in three minutes.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks import machine
from benchmarks.process import ServerFailedError, running, take_client_core
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import SERVERS, bare_form
from benchmarks.servers.bare import EVENTS

FLOOR: Final = "trio-tcp"
MERGING_FLOOR: Final = "uvicorn"
REFERENCE_MACHINE: Final = "Intel(R) Xeon(R) Processor, 2 cores, 26 November 2026"
# Events per second over one connection: 50,000 events of 111 bytes, one event per send.
REFERENCE: Final = {
    FLOOR: 74_800.0,
    MERGING_FLOOR: 322_300.0,
    "sse-starlette": 111_400.0,
    "fastapi": 15_000.0,
    "aiohttp-sse": 75_600.0,
    "quart-trio": 16_000.0,
}
# Tokens per second of sse-starlette's full form in `flood-1`, in the same reference run.
FULL_FORM: Final = "sse-starlette"
REFERENCE_FLOOD: Final = 58_800.0
SHARE: Final = 0.8

_TIMES: Final = 3  # the first one warms up
_REFERENCE_ROUNDS: Final = 5
_END: Final = b"\r\n0\r\n\r\n"


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


def checks(bare_rates: dict[str, float], flood: float | None) -> list[Check]:
    """Compare a run with the reference.

    Args:
        bare_rates: Events per second, by form.
        flood: Tokens per second of sse-starlette's full form. None if it was not measured.
    """
    floor = bare_rates[FLOOR]
    found = [
        Check(f"bare {form}", rate / floor, REFERENCE[form] / REFERENCE[FLOOR], decides=form != MERGING_FLOOR)
        for form, rate in bare_rates.items()
        if form != FLOOR
    ]
    if flood is not None:
        found.append(Check(f"{FULL_FORM} in a flood", flood / floor, REFERENCE_FLOOD / REFERENCE[FLOOR]))
    return found


def measure_bare(rounds: int) -> dict[str, float]:
    """Events per second of every bare form: the median over the rounds. Each round takes the best of `_TIMES` tries."""
    rates: dict[str, list[float]] = {form: [] for form in REFERENCE}
    for _ in range(rounds):
        for form in REFERENCE:
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
    """Print the values of a new reference."""
    print(*machine.describe().values(), f"{machine.busy_share(2.0):.0%} busy", sep=", ")
    take_client_core()
    for form, rate in measure_bare(_REFERENCE_ROUNDS).items():
        print(f"{form}: {rate:,.0f} events/s")
    [flood] = [scenario for scenario in SCENARIOS if scenario.name == "flood-1"]
    rates = [flood.run(SERVERS[FULL_FORM])["tokens_per_s"] for _ in range(_REFERENCE_ROUNDS)]
    print(f"{FULL_FORM} in a flood: {median(rates):,.0f} tokens/s")


if __name__ == "__main__":
    main()
