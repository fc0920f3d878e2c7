"""The streams of a soak test. The prompt determines the stream, for the server and for the check."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from crucible_trio import EngineError, Finish, Reasoning, Request, Usage
from crucible_trio.testing import Step, split_text

# How many clients of each kind, out of their sum.
KINDS = {"reads": 10, "fails": 2, "cancels": 2, "leaves": 2, "slow": 2, "frozen": 2}

WORDS = (
    "the ",
    "naïve ",
    "Boxkämpfer ",
    "🦊 ",
    "🏳️\u200d🌈 ",
    "\n\n",
    "id: forged.7\n",
    "data: x ",
    "\u2028",
    "\x85",
    "漢字 ",
)


@dataclass(frozen=True)
class SoakScript:
    """One stream.

    Attributes:
        steps: For the scripted engine.
        text: The trace and the answer that a client must get. Of a cancelled stream it gets the beginning.
        end: The type of the terminal record, and its error code.
    """

    steps: list[Step]
    text: str
    end: tuple[str, str | None] = ("StreamCompleted", None)


def prompts(seed: int, part: int, count: int) -> list[str]:
    """`count` prompts of mixed kinds. Another `part` of the run has other prompts."""
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    return [f"{kinds[number * 7 % len(kinds)]} {seed} {part} {number}" for number in range(count)]


def kind_of(prompt: str) -> str:
    return prompt.partition(" ")[0]


def request_for(prompt: str) -> Request:
    """The request of a client. Both modes occur, because their default policies without a reader differ."""
    policies = {"leaves": "cancel", "cancels": "continue"}
    mode = "deep" if random.Random(prompt).random() < 0.5 else "standard"
    return Request(prompt, mode=mode, on_disconnect=policies.get(kind_of(prompt)))


@lru_cache(maxsize=10)
def script_for(prompt: str) -> SoakScript:
    """The script for this prompt. Each prompt has a different text."""
    dice = random.Random(prompt)
    pieces: list[Step]
    match kind_of(prompt):
        case "reads" | "drains" as kind:
            trace, answer = [_text(dice, 200), _text(dice, 100)], _text(dice, 1500)
            giant = str(dice.getrandbits(64)) * 5000 if dice.random() < 0.1 else ""
            pieces = [Reasoning(part, number) for number, part in enumerate(trace)]
            pieces += [*split_text(answer, dice.randint(20, 100), seed=dice.getrandbits(32)), giant]
            # Streams last while other streams start. The more there are, the longer.
            pauses = [0.0, 0.002, 0.02, 0.1] if kind == "reads" else [0.001 * int(prompt.split()[2])]
            steps = [step for piece in pieces for step in (piece, dice.choice(pauses)) if step or dice.random() < 0.3]
            usage = Usage(output_tokens=len(pieces))
            return SoakScript([*steps, Finish("stop", usage)], "".join(trace) + answer + giant)
        case "fails":
            answer = _text(dice, 600)
            error = dice.choice([EngineError("soaked", "On purpose.", retryable=True), RuntimeError("on purpose")])
            code = error.code if isinstance(error, EngineError) else "engine_error"
            return SoakScript([*split_text(answer, 30, seed=1), 0.05, error], answer, ("StreamFailed", code))
        case "cancels":
            answer = _text(dice, 4000)
            steps = [step for piece in split_text(answer, 1000) for step in (piece, 0.01)]
            return SoakScript([*steps, math.inf], answer, ("StreamCancelled", None))
        case "leaves":
            answer = _text(dice, 200)
            return SoakScript([*split_text(answer, 10), math.inf], answer, ("StreamCancelled", None))
        case _:  # slow, frozen: more text than all buffers between engine and client hold
            # One repeated block, so that making the text takes no CPU time from the server.
            block = _text(dice, 1000)
            pieces = [f"{number:05} {block}" for number in range(400)]
            return SoakScript(pieces, "".join(map(str, pieces)))


def _text(dice: random.Random, length: int) -> str:
    text = ""
    while len(text) < length:
        text += dice.choice(WORDS) + str(dice.randrange(1000)) + " "
    return text[:length]
