"""What is to happen to a connection, and to one connection after the other. No I/O: `chaos.py` carries it out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final, get_args

Cut: TypeAlias = Literal["fin", "rst", "half_close_answer", "half_close_request"]
"""How a connection ends.

`fin` closes both sides in good order, `rst` resets both. `half_close_answer` tells the client that the answer is over
and says nothing to the server, as a middlebox does that has lost one direction. `half_close_request` tells the server
that the client will send no more; the answer still passes.
"""

CUTS: Final = get_args(Cut)

_PIECE_BYTES: Final = 64 * 1024
_DELAYED: Final = 0.2  # share of connections


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What happens to one connection. Bytes are those of the answer, head and framing included.

    Attributes:
        refuse: Reset it before the server hears of it.
        delay_seconds: Wait before the server is called.
        piece_bytes: Pass the answer on in writes of at most so many bytes.
        bytes_per_second: Pass it on no faster than this.
        stall_after: Stop passing it on after so many bytes; 0 is once the server has begun to answer.
        stall_seconds: For this long, then go on; until the client leaves by default.
        cut_after: End the connection after so many bytes, as `cut` says; 0 is once the server has begun to answer.
        cut: How.

    Raises:
        ValueError: A number makes no sense, at construction.
    """

    refuse: bool = False
    delay_seconds: float = 0.0
    piece_bytes: int = _PIECE_BYTES
    bytes_per_second: float = math.inf
    stall_after: int | None = None
    stall_seconds: float = math.inf
    cut_after: int | None = None
    cut: Cut = "rst"

    def __post_init__(self) -> None:
        numbers = (self.delay_seconds, self.stall_seconds, self.stall_after or 0, self.cut_after or 0)
        if not all(number >= 0 for number in numbers) or self.piece_bytes < 1 or not self.bytes_per_second > 0:
            message = f"a number is too small: {self}"
            raise ValueError(message)
        if self.cut not in CUTS:
            message = f"a cut is one of {', '.join(CUTS)}, not {self.cut!r}"
            raise ValueError(message)

    def __repr__(self) -> str:
        """What differs from a connection that is left alone: short, and still the Python that makes it again."""
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, known in self.__dataclass_fields__.items()
            if getattr(self, name) != known.default
        )
        return f"Treatment({', '.join(changed)})"


UNTOUCHED: Final = Treatment()

Chaos: TypeAlias = Sequence[Treatment] | Callable[[int], Treatment]
"""The treatments of the first connections in order, the rest left alone; or a function of a connection's number."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EveryByte:
    """Cuts at one byte after the other: connections 0, 2, 4, ... after `first`, `first + step`, ... bytes.

    Those between are left alone, so that a client which reads one stream after the other, and comes back once for each,
    meets every cut. A connection that ended before its cut says that the answers have no more bytes.
    """

    cut: Cut = "rst"
    first: int = 0
    step: int = 1

    def __call__(self, number: int) -> Treatment:
        """The treatment of a connection."""
        if number % 2:
            return UNTOUCHED
        return Treatment(cut=self.cut, cut_after=self.first + number // 2 * self.step)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomChaos:
    """Something else for each connection, the same for the same seed and number.

    Attributes:
        seed: Its `repr`, which every message of the proxy holds, is all that is needed to repeat a run.
        untouched: Share of connections that are left alone; without any, a client that gives up after so many failures
            would have to.
        max_bytes: Cuts and stalls fall on a byte up to this; most on a small one, where heads and first records are.
        max_seconds: Delays and stalls that pass take at most this long.
        stalls_for_ever: Whether some stalls last until the client leaves.
        cuts: The cuts to choose from.
    """

    seed: int
    untouched: float = 0.3
    max_bytes: int = 8192
    max_seconds: float = 0.3
    stalls_for_ever: bool = True
    cuts: tuple[Cut, ...] = CUTS

    def __call__(self, number: int) -> Treatment:
        """The treatment of a connection."""
        dice = random.Random(f"{self.seed}.{number}")  # of its own: the order in which others come does not matter
        if dice.random() < self.untouched:
            return UNTOUCHED
        position = int((self.max_bytes + 1) ** dice.random()) - 1
        delay = dice.uniform(0, self.max_seconds) if dice.random() < _DELAYED else 0.0
        piece_bytes = dice.choice([1, 7, 100, _PIECE_BYTES, _PIECE_BYTES, _PIECE_BYTES])
        match dice.choice(["refuse", "stall", "stall and cut", "throttle", "cut", "cut", "cut", "cut"]):
            case "refuse":
                return Treatment(refuse=True)
            case "stall":
                seconds = dice.choice([math.inf, 0.0]) if self.stalls_for_ever else 0.0
                seconds = seconds or dice.uniform(0, self.max_seconds)
                # It passes all the rest: byte by byte a long answer would take the machine's time, not the network's.
                return Treatment(
                    delay_seconds=delay, piece_bytes=max(piece_bytes, 100), stall_after=position, stall_seconds=seconds
                )
            case "stall and cut":
                return Treatment(
                    delay_seconds=delay,
                    piece_bytes=piece_bytes,
                    stall_after=position,
                    stall_seconds=dice.uniform(0, self.max_seconds),
                    cut_after=position + dice.choice([0, 1, 100]),
                    cut=dice.choice(self.cuts),
                )
            case "throttle":
                # Such that what may come before the cut takes no longer than a stall.
                return Treatment(
                    piece_bytes=min(piece_bytes, 1024),
                    bytes_per_second=max(2.0 * position / max(self.max_seconds, 0.01), 1000.0),
                    cut_after=position,
                    cut=dice.choice(self.cuts),
                )
            case _:
                return Treatment(
                    delay_seconds=delay, piece_bytes=piece_bytes, cut_after=position, cut=dice.choice(self.cuts)
                )
