"""Scripts for `ScriptedEngine`: the steps they are made of, and functions that build them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import trio

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.request import Request

Step: TypeAlias = (
    "str | Reasoning | float | Finish | BaseException | Gate | trio.Event | Queued | Repeat | CallTool | Sequence[Step]"
    " | Callable[[Request], Step]"
)
"""One thing that a scripted engine does. `ScriptedEngine` lists them."""

# The last code point that is one UTF-16 unit. A higher one is a surrogate pair.
_LAST_SINGLE: Final = 0xFFFF


@final
class Gate:
    """A step that makes every stream wait until the test opens the gate.

    Attributes:
        waiting: The number of streams that wait at the gate now.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._reached = trio.Event()
        self._opened = trio.Event()

    def open(self) -> None:
        """Let all streams pass, including those that arrive later."""
        self._opened.set()

    async def wait_reached(self) -> None:
        """Wait until the first stream has arrived at the gate. Checkpoints: always. Cancellation: safe."""
        await self._reached.wait()

    async def wait_opened(self) -> None:
        """Wait at the gate, as a stream does. Checkpoints: always. Cancellation: safe."""
        self.waiting += 1
        self._reached.set()
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1


@final
@dataclass(frozen=True, slots=True)
class Queued:
    """Runs a step while the engine is queued for a model slot. Only the `total` deadline counts this time."""

    step: Step


@final
@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeats a step: `Repeat("word ", 1000)` is a burst. Without a number it never ends."""

    step: Step
    times: float = math.inf


@final
@dataclass(frozen=True, slots=True)
class CallTool:
    """Calls a tool: `CallTool("weather", ('{"city": ', 1.0, '"Paris"}'))`.

    Attributes:
        name: The tool's name.
        steps: Texts in them are pieces of the arguments. A `Finish` or an exception cuts the call.
        id: The call's id.
    """

    name: str
    steps: Step = "{}"
    id: str = "call_1"


def check_step(step: object) -> None:
    """Refuse a step that no engine can run.

    Raises:
        TypeError: It is not a step, or contains something that is not a step.
        ValueError: A pause is negative.
    """
    match step:
        case bool() | bytes() | bytearray() | type():
            message = f"not a step of a script: {step!r}"
            raise TypeError(message)
        case int() | float() if not step >= 0:
            message = f"a pause must be 0 seconds or more, not {step}"
            raise ValueError(message)
        case Queued() | Repeat():
            check_step(step.step)
        case CallTool():
            check_step(step.steps)
        case str() | Reasoning() | int() | float() | Finish() | BaseException() | Gate() | trio.Event():
            pass
        case Sequence():
            for part in step:
                check_step(part)
        case _ if not callable(step):
            message = f"not a step of a script: {step!r}"
            raise TypeError(message)


def interrupted(steps: Iterable[Step], at: Mapping[int, Step]) -> list[Step]:
    """Insert steps into a script.

    Args:
        steps: The script.
        at: The steps to insert, by index. Each goes before the step with that index. The script's length means its end.

    Raises:
        IndexError: An index is negative or beyond the end of the script.
    """
    script: list[Step] = []
    rest = dict(at)
    for number, step in enumerate([*steps, ()]):
        if number in rest:
            script.append(rest.pop(number))
        script.append(step)
    if rest:
        message = f"negative index: {min(rest)}" if min(rest) < 0 else f"the script ends before index {max(rest)}"
        raise IndexError(message)
    return script[:-1]


def split_text(text: str, pieces: int, *, seed: int | None = None) -> list[str]:
    """Cut a text into pieces at any UTF-16 unit. Some models cut inside a character in the same way.

    Args:
        text: The text to cut.
        pieces: Number of pieces. A text with fewer UTF-16 units gives one piece per unit.
        seed: Selects the places to cut. None makes pieces of equal length.

    Returns:
        The pieces in order. None is empty. A piece may begin or end with half a surrogate pair. The engine's output
        joins the halves, so all pieces together give `text`.

    Raises:
        ValueError: `pieces` is less than 1.
    """
    if pieces < 1:
        message = f"a text has at least 1 piece, not {pieces}"
        raise ValueError(message)
    units = "".join(character if ord(character) <= _LAST_SINGLE else _surrogates(character) for character in text)
    pieces = min(pieces, len(units))
    if seed is None:
        marks = [number * len(units) // pieces for number in range(1, pieces)]
    else:
        marks = sorted(random.Random(seed).sample(range(1, len(units)), pieces - 1)) if units else []
    return [_rejoin(units[begin:end]) for begin, end in zip([0, *marks], [*marks, len(units)], strict=True) if units]


def _surrogates(character: str) -> str:
    high_and_low = character.encode("utf-16-be")
    return chr(int.from_bytes(high_and_low[:2], "big")) + chr(int.from_bytes(high_and_low[2:], "big"))


def _rejoin(units: str) -> str:
    """Turn every surrogate pair that was not cut back into a character."""
    return units.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass") if units else ""
