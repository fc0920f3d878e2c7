"""One turn of a model in this process: a series of slices, and the writers that pass their text on.

Each slice continues the assistant's message with the text so far as its beginning. The slot's cache makes that cheap.
A slice ends after a number of tokens, never because of the reader. So the same request with the same seed gives the
same text, however fast the client reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol, final

import trio

from crucible_trio.engines.local.slices import Slice
from crucible_trio.engines.local.stops import StopCutter
from crucible_trio.engines.segments import SegmentCutter
from crucible_trio.output import Output
from crucible_trio.request import Message, Sampling

# Tokens. A stalled stream runs at most this far ahead of its buffer.
SLICE_TOKENS: Final = 32

# The values that the default model was tested with. Without the penalty a model of this size repeats itself endlessly.
_TEMPERATURE = 0.3
_REPEAT_PENALTY = 1.1

# llama.cpp takes the highest 32-bit seed as a request for a random one.
_SEEDS = 2**32 - 1


class OpenSlice(Protocol):
    """Makes the slices of one stream."""

    def __call__(self, request: dict[str, object], max_prompt_tokens: int | None, /) -> Slice:
        """Make a slice, not yet entered.

        Args:
            request: A chat completion.
            max_prompt_tokens: A longer prompt fails. None: no limit.
        """


class TurnWriter(Protocol):
    """Writes the text of a turn to the stream's output."""

    @property
    def full(self) -> bool:
        """Whether the writer needs no more text."""

    async def write(self, text: str) -> None:
        """Write a piece. Waits while the buffer is full."""

    async def end(self) -> None:
        """Write the text held back."""


@final
class AnswerWriter:
    """Writes the answer, up to the first stop string."""

    def __init__(self, output: Output, stops: Sequence[str]) -> None:
        self._output = output
        self._cutter = StopCutter(stops)

    @property
    def full(self) -> bool:
        """Whether a stop string was found."""
        return self.stop_string is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that was found."""
        return self._cutter.found

    async def write(self, text: str) -> None:
        """Write a piece, without an end that may become a stop string. Waits while the buffer is full."""
        await self._output.delta(self._cutter.feed(text))

    async def end(self) -> None:
        """Write the text held back, which did not become a stop string."""
        await self._output.delta(self._cutter.flush())


@final
class TraceWriter:
    """Writes the reasoning trace, one segment per numbered step."""

    full: Final = False

    def __init__(self, output: Output) -> None:
        self._output = output
        self._cutter = SegmentCutter()

    async def write(self, text: str) -> None:
        """Write a piece, without an end that may become a step's number. Waits while the buffer is full."""
        await self._write(self._cutter.feed(text))

    async def end(self) -> None:
        """Write the text held back."""
        await self._write(self._cutter.flush())

    async def _write(self, pieces: Sequence[tuple[int, str]]) -> None:
        if not pieces:  # a loop over pieces that are all held back needs a checkpoint, too
            await trio.lowlevel.checkpoint()
        for segment, text in pieces:
            await self._output.reasoning(text, segment)


@final
class SamplingOptions:
    """How the model picks the tokens of a request, in all its turns."""

    def __init__(self, sampling: Sampling) -> None:
        self._options: dict[str, object] = {
            "temperature": _TEMPERATURE if sampling.temperature is None else sampling.temperature,
            "repeat_penalty": _REPEAT_PENALTY,
        }
        if sampling.top_p is not None:
            self._options["top_p"] = sampling.top_p
        self._seeds: Iterator[int] | None = None if sampling.seed is None else count(sampling.seed)

    def next_options(self) -> dict[str, object]:
        """The fields for the next slice. A slice restarts the model's random generator, so each needs another seed."""
        if self._seeds is None:
            return self._options
        return self._options | {"seed": next(self._seeds) % _SEEDS}


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """A finished turn.

    Attributes:
        text: All the model wrote, stop strings included.
        prompt_tokens: Tokens that the model read. None if it did not report them.
        tokens: Tokens that the model generated.
        reason: `stop`, or `length` when `max_tokens` or the context's end was reached.
    """

    text: str
    prompt_tokens: int | None
    tokens: int
    reason: str


async def take_turn(
    open_slice: OpenSlice,
    messages: Sequence[Message],
    writer: TurnWriter,
    options: SamplingOptions,
    *,
    max_tokens: int,
    max_prompt_tokens: int | None,
) -> Turn:
    """Let the model write until it ends, the writer is full, or it has generated `max_tokens` tokens.

    Args:
        open_slice: Makes the slices.
        messages: The conversation. If the assistant's message is the last one, the model continues it.
        writer: Writes the text.
        options: How the model picks tokens.
        max_tokens: At least 1.
        max_prompt_tokens: A longer prompt fails. None: the prompt must leave room in the context.

    Cancellation: stops the model, as leaving a `Slice` does.

    Raises:
        EngineError: As in `Slice`.
    """
    conversation = [{"role": message.role, "content": _join_surrogates(message.text)} for message in messages]
    beginning = ""
    while conversation and conversation[-1]["role"] == "assistant":  # the model accepts one such message, the last
        beginning = conversation.pop()["content"] + beginning
    text = ""
    tokens = 0
    prompt_tokens: int | None = None
    reason: str | None = None
    while reason is None:
        size = min(SLICE_TOKENS, max_tokens - tokens)
        so_far = [{"role": "assistant", "content": beginning + text}] if beginning or text else []
        request: dict[str, object] = {
            "messages": conversation + so_far,
            "max_tokens": size,
            "stream": True,
            "return_progress": True,
            "timings_per_token": True,
            "reasoning_format": "none",
            **options.next_options(),
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
            elif slice_.tokens < size or tokens >= max_tokens:  # shorter than asked for: the context is full
                reason = "length"
            if reason is not None:
                await writer.end()  # inside the slice: if this has to wait, the slot goes to another stream
    return Turn(text, prompt_tokens, tokens, reason)


def _join_surrogates(text: str) -> str:
    """Join half characters, which the model rejects. A lone half becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
