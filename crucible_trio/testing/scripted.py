"""An engine that does as it is told, so that a test decides what a model does and when.

A script is a row of steps. Nothing in it is random and nothing waits unless a step says so: under trio's `MockClock` a
script with an hour of pauses takes no time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

import trio

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, EngineInfo, Finish
from crucible_trio.output import Output
from crucible_trio.request import Request

Step: TypeAlias = (
    "str | Reasoning | float | Finish | BaseException | Gate | trio.Event | Queued | Repeat | Sequence[Step]"
    " | Callable[[Request], Step]"
)
"""One thing that a scripted engine does; `ScriptedEngine` says what each means."""

End: TypeAlias = Literal["running", "finished", "failed", "cancelled"]

# UTF-16 knows no halves below this; above it a character is a pair.
_LAST_SINGLE = 0xFFFF


@final
class Gate:
    """A place in a script where the engine waits until somebody opens it, for all streams at once.

    Attributes:
        waiting: How many streams wait at it just now.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._reached = trio.Event()
        self._opened = trio.Event()

    def open(self) -> None:
        """Let everybody through, those who have not come yet too."""
        self._opened.set()

    async def wait_reached(self) -> None:
        """Wait until the first stream has come to it. Checkpoints: always. Cancellation: safe."""
        await self._reached.wait()

    async def wait_opened(self) -> None:
        """Wait at the gate, as a script does. Checkpoints: always. Cancellation: safe."""
        self.waiting += 1
        self._reached.set()
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1


@final
@dataclass(frozen=True, slots=True)
class Queued:
    """A step during which the engine waits for a place at the model: only the `total` deadline counts it."""

    step: Step


@final
@dataclass(frozen=True, slots=True)
class Repeat:
    """The same step again and again: `Repeat("word ", 1000)` is a burst, without a number it never ends."""

    step: Step
    times: float = math.inf


@final
@dataclass(slots=True)
class Run:
    """One call of a scripted engine.

    Attributes:
        request: What was asked.
        made: Pieces it has begun to write.
        written: Pieces whose call has returned; what promise "nothing lost" is about.
        end: How the call ended. An engine that raised something of its own while it was cancelled has `failed`.
        ended: Set when it has ended.
    """

    request: Request
    made: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    end: End = "running"
    ended: trio.Event = field(default_factory=trio.Event)


@final
class ScriptedEngine:
    """An engine that follows a script, the same one for every stream, or one that depends on the request.

    * `str`: writes a piece of the answer, of any length; half a surrogate pair at either end is allowed
    * `Reasoning(text, segment)`: writes a piece of the trace
    * a number: pauses so many seconds; `math.inf` stalls for ever
    * `Gate()`, `trio.Event()`: waits until it is opened, or set
    * `Queued(step)`: does the step while it counts as waiting for a place at the model
    * `Repeat(step, times)`: does the step so many times
    * a list or tuple: does its steps in order
    * a function of the request: does the step that it returns
    * `Finish(reason, usage)`: ends the stream; at the end of the script `Finish()` is understood
    * an exception: raises it

    Limits that a request sets are not looked at: a script that ends early says so itself.

    Args:
        steps: The script.
        name: Of the engine, and of its only model unless there are others.
        models: The models that a request may name.
        sampling: The sampling fields it says that it honours; a script may look at them, nothing else does.
        keep_runs: How many calls are remembered, the newest; None for all. For runs that last.

    Attributes:
        info: What the engine can do.
        steps: The script.
        runs: Its calls, oldest first.
        calls: How often it was called.
        live: How many calls have not ended.

    Raises:
        TypeError: Something in the script is no step; at construction, for what a function returns when it is called.
        ValueError: A pause is negative.
    """

    def __init__(
        self,
        *steps: Step,
        name: str = "scripted",
        models: Sequence[str] = (),
        sampling: Iterable[str] = (),
        keep_runs: int | None = None,
    ) -> None:
        _check(steps)
        self.info = EngineInfo(
            name=name, models=tuple(models) or (name,), capabilities=Capabilities(sampling=frozenset(sampling))
        )
        self.steps = steps
        self.runs: deque[Run] = deque(maxlen=keep_runs)
        self.calls = 0
        self.live = 0

    @property
    def made(self) -> list[str]:
        """Pieces that the remembered calls have begun to write, call by call."""
        return [piece for run in self.runs for piece in run.made]

    @property
    def written(self) -> list[str]:
        """Pieces of the remembered calls whose writing has returned, call by call."""
        return [piece for run in self.runs for piece in run.written]

    async def generate(self, request: Request, output: Output) -> Finish:
        """Follow the script.

        Cancellation: at the step it is at; the pieces before it are written, none after it is begun.

        Raises:
            BaseException: Whatever the script raises.
        """
        run = Run(request)
        self.runs.append(run)
        self.calls += 1
        self.live += 1
        try:
            finish = await _follow(self.steps, run, output)
            run.end = "finished"
        except trio.Cancelled:
            run.end = "cancelled"
            raise
        except BaseException:
            run.end = "failed"
            raise
        finally:
            self.live -= 1
            run.ended.set()
        return finish or Finish()


async def _follow(step: Step, run: Run, output: Output) -> Finish | None:
    """Do a step; a `Finish` ends all that it is part of."""
    match step:
        case str() | Reasoning():
            await _write(step, run, output)
        case int() | float():
            await trio.sleep(step)
        case Finish():
            return step
        case BaseException():
            # Several streams may raise the one object; each traceback shall be its own.
            raise step.with_traceback(None)
        case Gate():
            await step.wait_opened()
        case trio.Event():
            await step.wait()
        case Queued():
            async with output.queued():
                return await _follow(step.step, run, output)
        case Repeat():
            done = 0
            while done < step.times:
                done += 1
                if finish := await _follow(step.step, run, output):
                    return finish
        case Sequence():
            for part in step:
                if finish := await _follow(part, run, output):
                    return finish
        case _:
            chosen = step(run.request)
            _check(chosen)
            return await _follow(chosen, run, output)
    return None


async def _write(piece: str | Reasoning, run: Run, output: Output) -> None:
    text = piece if isinstance(piece, str) else piece.text
    run.made.append(text)
    if isinstance(piece, str):
        await output.delta(text)
    else:
        await output.reasoning(text, piece.segment)
    run.written.append(text)


def _check(step: object) -> None:
    match step:
        case bool() | bytes() | bytearray() | type():
            message = f"{step!r} is no step of a script"
            raise TypeError(message)
        case int() | float() if not step >= 0:
            message = f"a pause takes 0 seconds or more, not {step}"
            raise ValueError(message)
        case Queued() | Repeat():
            _check(step.step)
        case str() | Reasoning() | int() | float() | Finish() | BaseException() | Gate() | trio.Event():
            pass
        case Sequence():
            for part in step:
                _check(part)
        case _ if not callable(step):
            message = f"{step!r} is no step of a script"
            raise TypeError(message)


def split_text(text: str, pieces: int, *, seed: int | None = None) -> list[str]:
    """Cut a text into pieces at any UTF-16 unit, as models do that cut inside a character.

    Args:
        text: What to cut.
        pieces: How many; fewer where the text has not so many units.
        seed: Where to cut; None for pieces of one length.

    Returns:
        The pieces, none empty, in order. One may begin or end with half a surrogate pair; what the engine's output
        makes of all of them together is `text`.
    """
    if pieces < 1:
        message = f"a text has at least 1 piece, not {pieces}"
        raise ValueError(message)
    units = "".join(character if ord(character) <= _LAST_SINGLE else _pair(character) for character in text)
    pieces = min(pieces, len(units))
    if seed is None:
        marks = [number * len(units) // pieces for number in range(1, pieces)]
    else:
        marks = sorted(random.Random(seed).sample(range(1, len(units)), pieces - 1)) if units else []
    return [_whole(units[begin:end]) for begin, end in zip([0, *marks], [*marks, len(units)], strict=True) if units]


def _pair(character: str) -> str:
    high_and_low = character.encode("utf-16-be")
    return chr(int.from_bytes(high_and_low[:2], "big")) + chr(int.from_bytes(high_and_low[2:], "big"))


def _whole(units: str) -> str:
    """Put the pairs together again that were not cut apart."""
    return units.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass") if units else ""


def interrupted(steps: Iterable[Step], at: Mapping[int, Step]) -> list[Step]:
    """Put steps at given points of a script.

    Args:
        steps: The script.
        at: Each step goes before the one that has this number in `steps`; their length is its end.

    Raises:
        IndexError: The script is shorter than that.
    """
    script: list[Step] = []
    rest = dict(at)
    for number, step in enumerate([*steps, ()]):
        if number in rest:
            script.append(rest.pop(number))
        script.append(step)
    if rest:
        message = f"the script has no step {min(rest)}" if min(rest) < 0 else f"the script ends before {max(rest)}"
        raise IndexError(message)
    return script[:-1]
