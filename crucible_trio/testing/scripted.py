"""`ScriptedEngine` follows a script, so a test decides the output and its timing.

A script is a sequence of steps. It is deterministic, and the engine waits only where a step tells it to. Under trio's
`MockClock` a script with an hour of pauses takes no time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

import trio

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, EngineInfo, Finish
from crucible_trio.output import Output, ToolCallOutput
from crucible_trio.request import Request
from crucible_trio.testing.script import CallTool, Gate, Queued, Repeat, Step, check_step

End: TypeAlias = Literal["running", "finished", "failed", "cancelled"]


@final
@dataclass(slots=True)
class Run:
    """One call of a scripted engine.

    Attributes:
        request: The request.
        made: Pieces that the engine has started to write.
        written: Pieces whose write has returned. The server promises not to lose these.
        end: How the call ended. It is `failed` if another exception replaced the cancellation.
        ended: Set when the call has ended.
    """

    request: Request
    made: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    end: End = "running"
    ended: trio.Event = field(default_factory=trio.Event)


@final
class ScriptedEngine:
    """An engine that follows a script. Every stream runs the same script, unless a step depends on the request.

    * `str`: writes a piece of the answer, of any length. It may begin or end with half a surrogate pair.
    * `Reasoning(text, segment)`: writes a piece of the trace.
    * `CallTool(name, steps, id)`: calls a tool and runs the steps. A `str` in them is a piece of the arguments.
    * a number: pauses for this many seconds. `math.inf` stalls until the stream is cancelled.
    * `Gate()`, `trio.Event()`: waits until the gate is opened, or the event is set.
    * `Queued(step)`: runs the step while the engine counts as queued for a model slot.
    * `Repeat(step, times)`: repeats the step.
    * a list or tuple: runs its steps in order.
    * a function: calls it with the request and runs the step that it returns.
    * `Finish(reason, usage)`: ends the stream. A script without it ends with `Finish()`.
    * an exception: raises it.

    The engine ignores the limits in a request. A script that should end early contains a `Finish`.

    Args:
        steps: The script.
        name: Name of the engine. Without `models` it is also the name of its only model.
        models: The models that a request may name.
        sampling: The sampling fields that the engine claims to honour. Only functions in the script can read them.
        capabilities: The capabilities that it claims, in place of `sampling` alone.
        keep_runs: Number of most recent calls to keep in `runs`. None keeps all. Set it in long tests.

    Attributes:
        info: The engine's description.
        steps: The script.
        runs: The calls that are kept, oldest first.
        calls: Number of calls so far.
        live: Number of calls that have not ended.

    Raises:
        TypeError: Something in the script is not a step. Raised at construction, or by `generate` for a step that a
            function returns.
        ValueError: A pause is negative. Raised in the same places.
    """

    def __init__(
        self,
        *steps: Step,
        name: str = "scripted",
        models: Sequence[str] = (),
        sampling: Iterable[str] = (),
        capabilities: Capabilities | None = None,
        keep_runs: int | None = None,
    ) -> None:
        check_step(steps)
        can = capabilities or Capabilities(sampling=frozenset(sampling))
        self.info = EngineInfo(name=name, models=tuple(models) or (name,), capabilities=can)
        self.steps = steps
        self.runs: deque[Run] = deque(maxlen=keep_runs)
        self.calls = 0
        self.live = 0

    @property
    def made(self) -> list[str]:
        """Pieces that the calls in `runs` have started to write, in order of the calls."""
        return [piece for run in self.runs for piece in run.made]

    @property
    def written(self) -> list[str]:
        """Pieces of the calls in `runs` whose write has returned, in order of the calls."""
        return [piece for run in self.runs for piece in run.written]

    async def generate(self, request: Request, output: Output) -> Finish:
        """Follow the script.

        Cancellation: takes effect at the current step. The steps before it are complete and the steps after it are not
        started.

        Raises:
            BaseException: The exception that is a step of the script.
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


async def _follow(step: Step, run: Run, output: Output, call: ToolCallOutput | None = None) -> Finish | None:
    """Run a step. A `Finish` anywhere in it ends the whole script. `call` is the open tool call."""
    match step:
        case str() | Reasoning():
            await _write(step, run, output, call)
        case int() | float():
            await trio.sleep(step)
        case Finish():
            return step
        case BaseException():
            # Several streams may raise the same object. Each raise starts with an empty traceback.
            raise step.with_traceback(None)
        case Gate():
            await step.wait_opened()
        case trio.Event():
            await step.wait()
        case Queued():
            async with output.queued():
                return await _follow(step.step, run, output, call)
        case Repeat():
            done = 0
            while done < step.times:
                done += 1
                if finish := await _follow(step.step, run, output, call):
                    return finish
        case CallTool():
            async with output.tool_call(step.id, step.name) as opened:
                if finish := await _follow(step.steps, run, output, opened):
                    opened.cut()
                return finish
        case Sequence():
            for part in step:
                if finish := await _follow(part, run, output, call):
                    return finish
        case _:
            chosen = step(run.request)
            check_step(chosen)
            return await _follow(chosen, run, output, call)
    return None


async def _write(piece: str | Reasoning, run: Run, output: Output, call: ToolCallOutput | None) -> None:
    text = piece if isinstance(piece, str) else piece.text
    run.made.append(text)
    if isinstance(piece, Reasoning):
        await output.reasoning(text, piece.segment)
    elif call is not None:
        await call.arguments(text)
    else:
        await output.delta(text)
    run.written.append(text)
