"""Treatments: how the chaos proxy delays, slows, stalls or cuts each connection. No I/O: `chaos.py` applies them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final, get_args

Cut: TypeAlias = Literal["fin", "rst", "half_close_answer", "half_close_request"]
"""How a connection ends.

`fin` closes both sides normally. `rst` resets both. `half_close_answer` sends a FIN to the client only, like a
middlebox that has lost one direction. `half_close_request` sends a FIN to the server only, and the answer still passes.
"""

CUTS: Final = get_args(Cut)

_PIECE_BYTES: Final = 64 * 1024
_DELAYED: Final = 0.2  # share of connections


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """The treatment of one connection. Byte counts refer to the answer, including its head and chunk framing.

    Attributes:
        refuse: Reset the connection before connecting to the server.
        delay_seconds: Wait this long before connecting to the server.
        piece_bytes: Forward the answer in writes of at most this many bytes.
        bytes_per_second: Forward the answer at this rate or slower.
        stall_after: Stop forwarding after this many bytes. 0 means as soon as the server begins to answer.
        stall_seconds: Length of the stall. By default it lasts until the client leaves.
        cut_after: Cut the connection after this many bytes. 0 means as soon as the server begins to answer.
        cut: How to cut it.

    Raises:
        ValueError: At construction, if a number is out of range or `cut` is unknown.
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
            message = f"a number is out of range: {self}"
            raise ValueError(message)
        if self.cut not in CUTS:
            message = f"cut must be one of {', '.join(CUTS)}, not {self.cut!r}"
            raise ValueError(message)

    def __repr__(self) -> str:
        """A Python expression that makes an equal treatment. It omits the defaults."""
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, known in self.__dataclass_fields__.items()
            if getattr(self, name) != known.default
        )
        return f"Treatment({', '.join(changed)})"


UNTOUCHED: Final = Treatment()

Chaos: TypeAlias = Sequence[Treatment] | Callable[[int], Treatment]
"""A treatment for each connection in order (later connections are untouched), or a function of its number."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EveryByte:
    """Cuts connections 0, 2, 4, ... after `first`, `first + step`, ... bytes.

    The connections between are untouched. A client that reads one stream after another and reconnects once for each
    meets every cut. When a connection ends before its cut, every byte of the answer has been cut.
    """

    cut: Cut = "rst"
    first: int = 0
    step: int = 1

    def __call__(self, number: int) -> Treatment:
        """Return the treatment of connection `number`."""
        if number % 2:
            return UNTOUCHED
        return Treatment(cut=self.cut, cut_after=self.first + number // 2 * self.step)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomChaos:
    """A random treatment for each connection, derived from the seed and the connection's number.

    `repr(chaos)` is in every report of the proxy and is enough to repeat a run.

    Attributes:
        seed: Selects the treatments.
        untouched: Share of connections that pass unchanged. At 0, a client with a limited number of retries would run
            out of them.
        max_bytes: Cuts and stalls happen at or before this byte. Most happen early, in the head and the first records.
        max_seconds: Upper limit for delays and for stalls that end.
        endless_stalls: Whether some stalls last until the client leaves.
        cuts: The cuts to choose from.
    """

    seed: int
    untouched: float = 0.3
    max_bytes: int = 8192
    max_seconds: float = 0.3
    endless_stalls: bool = True
    cuts: tuple[Cut, ...] = CUTS

    def __call__(self, number: int) -> Treatment:
        """Return the treatment of connection `number`."""
        # One generator per connection: the order of the other connections has no influence.
        dice = random.Random(f"{self.seed}.{number}")
        if dice.random() < self.untouched:
            return UNTOUCHED
        mark = int((self.max_bytes + 1) ** dice.random()) - 1
        delay = dice.uniform(0, self.max_seconds) if dice.random() < _DELAYED else 0.0
        piece_bytes = dice.choice([1, 7, 100, _PIECE_BYTES, _PIECE_BYTES, _PIECE_BYTES])
        match dice.choice(["refuse", "stall", "stall and cut", "throttle", "cut", "cut", "cut", "cut"]):
            case "refuse":
                return Treatment(refuse=True)
            case "stall":
                seconds = dice.choice([math.inf, 0.0]) if self.endless_stalls else 0.0
                seconds = seconds or dice.uniform(0, self.max_seconds)
                # The rest of the answer passes too. Byte by byte, a long answer would measure the CPU, not the network.
                return Treatment(
                    delay_seconds=delay, piece_bytes=max(piece_bytes, 100), stall_after=mark, stall_seconds=seconds
                )
            case "stall and cut":
                return Treatment(
                    delay_seconds=delay,
                    piece_bytes=piece_bytes,
                    stall_after=mark,
                    stall_seconds=dice.uniform(0, self.max_seconds),
                    cut_after=mark + dice.choice([0, 1, 100]),
                    cut=dice.choice(self.cuts),
                )
            case "throttle":
                # The bytes before the cut take no longer than a stall.
                return Treatment(
                    piece_bytes=min(piece_bytes, 1024),
                    bytes_per_second=max(2.0 * mark / max(self.max_seconds, 0.01), 1000.0),
                    cut_after=mark,
                    cut=dice.choice(self.cuts),
                )
            case _:
                return Treatment(
                    delay_seconds=delay, piece_bytes=piece_bytes, cut_after=mark, cut=dice.choice(self.cuts)
                )
