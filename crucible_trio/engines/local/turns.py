"""One turn of a model in this process: a row of slices, and where their text goes.

Each slice continues the text so far as the beginning of the assistant's message; the slot's cache makes that cheap.
Slices end after a count of tokens and never because of the reader, so that the same request with the same seed gives
the same text at any reader's pace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol, TypeAlias, final

import trio

from crucible_trio.engines.local.slices import Slice
from crucible_trio.engines.local.stops import StopCutter
from crucible_trio.engines.segments import SegmentCutter
from crucible_trio.output import Output
from crucible_trio.request import Message, Sampling

# A stalled stream runs at most this far ahead of its buffer.
SLICE_TOKENS: Final = 32

# What the default model was tried with. Without the penalty a model of this size repeats itself for ever.
_TEMPERATURE = 0.3
_REPEAT_PENALTY = 1.1

# To the model, the highest seed there is means a random one.
_SEEDS = 2**32 - 1

OpenSlice: TypeAlias = Callable[[dict[str, object], int | None], Slice]
"""From a chat completion and the most tokens of its prompt (None: any) to a slice, not yet entered."""


class Writer(Protocol):
    """Where the text of a turn goes."""

    @property
    def full(self) -> bool:
        """Whether nothing more is wanted."""

    async def write(self, text: str) -> None:
        """Take a piece."""

    async def end(self) -> None:
        """Write what was held back."""


@final
class Answer:
    """Writes the answer, up to the first stop string."""

    def __init__(self, output: Output, stops: Sequence[str]) -> None:
        self._output = output
        self._cutter = StopCutter(stops)

    @property
    def full(self) -> bool:
        """Whether a stop string was found."""
        return self._cutter.stopped

    async def write(self, text: str) -> None:
        """Take a piece; waits while the buffer is full."""
        await self._output.delta(self._cutter.feed(text))

    async def end(self) -> None:
        """Write what might have become a stop string."""
        await self._output.delta(self._cutter.flush())


@final
class Trace:
    """Writes the reasoning trace, a segment for each numbered step."""

    full: Final = False

    def __init__(self, output: Output) -> None:
        self._output = output
        self._cutter = SegmentCutter()

    async def write(self, text: str) -> None:
        """Take a piece; waits while the buffer is full."""
        await self._write(self._cutter.feed(text))

    async def end(self) -> None:
        """Write what might have become the number of a step."""
        await self._write(self._cutter.flush())

    async def _write(self, pieces: Sequence[tuple[int, str]]) -> None:
        if not pieces:  # a slice whose pieces are all held back is a loop, too
            await trio.lowlevel.checkpoint()
        for segment, text in pieces:
            await self._output.reasoning(text, segment)


@final
class Style:
    """How the tokens of a request are picked, over all its turns."""

    def __init__(self, sampling: Sampling) -> None:
        self._options: dict[str, object] = {
            "temperature": _TEMPERATURE if sampling.temperature is None else sampling.temperature,
            "repeat_penalty": _REPEAT_PENALTY,
        }
        if sampling.top_p is not None:
            self._options["top_p"] = sampling.top_p
        self._seeds: Iterator[int] | None = None if sampling.seed is None else count(sampling.seed)

    def next_options(self) -> dict[str, object]:
        """For the next slice. A slice starts the model's dice anew, so that each needs a seed of its own."""
        if self._seeds is None:
            return self._options
        return self._options | {"seed": next(self._seeds) % _SEEDS}


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """What the model has said.

    Attributes:
        text: All of it, stop strings included.
        prompt_tokens: What it has read; None where it did not say.
        tokens: What it has made.
        reason: `stop`, or `length`: `max_tokens` or the end of the context.
    """

    text: str
    prompt_tokens: int | None
    tokens: int
    reason: str


async def take_turn(
    open_slice: OpenSlice,
    messages: Sequence[Message],
    writer: Writer,
    style: Style,
    *,
    max_tokens: int,
    max_prompt_tokens: int | None,
) -> Turn:
    """Let the model speak until it ends, the writer is full or `max_tokens` tokens are made.

    Args:
        open_slice: Begins a call.
        messages: The conversation; where the last message is the assistant's, the model continues it.
        writer: Gets the text.
        style: How tokens are picked.
        max_tokens: At least 1.
        max_prompt_tokens: A longer prompt fails; None: any that leaves room in the context.

    Raises:
        EngineError: As `Slice`.
    """
    conversation = [{"role": message.role, "content": _whole(message.text)} for message in messages]
    beginning = ""
    while conversation and conversation[-1]["role"] == "assistant":  # the model takes one such message, the last
        beginning = conversation.pop()["content"] + beginning
    text = ""
    tokens = 0
    prompt_tokens: int | None = None
    reason: str | None = None
    while reason is None:
        size = min(SLICE_TOKENS, max_tokens - tokens)
        said = [{"role": "assistant", "content": beginning + text}] if beginning or text else []
        request: dict[str, object] = {
            "messages": conversation + said,
            "max_tokens": size,
            "stream": True,
            "return_progress": True,
            "timings_per_token": True,
            "reasoning_format": "none",
            **style.next_options(),
        }
        async with open_slice(request, max_prompt_tokens if not tokens else None) as slice_:
            async for piece in slice_:
                text += piece.text
                await writer.write(piece.text)
                if writer.full:
                    return Turn(text, prompt_tokens or slice_.prompt_tokens, tokens + piece.tokens, "stop")
            tokens += slice_.tokens
            prompt_tokens = prompt_tokens or slice_.prompt_tokens
            if slice_.reason != "length":
                reason = "stop"
            elif slice_.tokens < size or tokens >= max_tokens:  # fewer than asked for: the context is full
                reason = "length"
            if reason is not None:
                await writer.end()  # in here: if it has to wait, the slot goes to somebody else meanwhile
    return Turn(text, prompt_tokens, tokens, reason)


def _whole(text: str) -> str:
    """Halves of characters, which the model refuses, joined or replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
