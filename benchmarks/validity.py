"""Whether a run can be trusted: the bare forms of the rivals against what they did on a quiet machine.

A rival that does far worse than then is not a rival but a mistake of this benchmark's. Ratios to raw trio TCP are
compared, because absolute figures drift with the machine. Raw ASGI on uvicorn is shown and decides nothing: it is no
rival but a floor, and how many events it merges into a write depends on how quickly the client happens to read.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.process import ServerFailedError, running
from benchmarks.servers import bare_form
from benchmarks.servers.bare import EVENTS

FLOOR: Final = "trio-tcp"
MERGING_FLOOR: Final = "uvicorn"
# Events per second: one connection, 50,000 events of 111 bytes, one event per send; a quiet machine of two cores.
REFERENCE: Final = {
    FLOOR: 85_800.0,
    MERGING_FLOOR: 442_800.0,
    "sse-starlette": 76_200.0,
    "fastapi": 22_100.0,
    "aiohttp-sse": 81_300.0,
    "quart-trio": 21_000.0,
}
# Tokens per second of sse-starlette's full form in a flood, there and then.
FULL_FORM: Final = "sse-starlette"
REFERENCE_FLOOD: Final = 61_000.0
SHARE: Final = 0.8

_TIMES: Final = 3  # the first is the warm-up
_END: Final = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        what: Of what.
        got: The ratio of this run.
        wanted: The reference's.
        decides: Whether the run is invalid if it is too little.
    """

    what: str
    got: float
    wanted: float
    decides: bool = True

    @property
    def share(self) -> float:
        """How much of the reference it reaches."""
        return self.got / self.wanted

    @property
    def passed(self) -> bool:
        """Whether that is enough, or does not matter."""
        return self.share >= SHARE or not self.decides


def checks(bare_rates: dict[str, float], flood: float | None) -> list[Check]:
    """Compare a run with the reference.

    Args:
        bare_rates: Events per second by form.
        flood: Tokens per second of sse-starlette's full form; None if that was not measured.
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
    """Events per second of every bare form: the median of so many rounds in turn, each the best of some."""
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
