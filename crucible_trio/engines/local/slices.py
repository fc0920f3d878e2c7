"""One call into a model of this process: a slot of the model, a worker thread, and the stream's task that reads.

The model does not slow down for a slow reader. So it is asked for a slice at a time, and for the next one only when the
reader has taken the last. What keeps a slot busy is decided here, in one place:

* A slice takes a slot, and its stream keeps it for the next slice while it keeps up: its text is still in the slot's
  cache, and another stream in between would cost reading all of it again.
* A reader that has not taken a whole slice shortly after its end is slow or gone: the slot goes to somebody else, and
  the thread ends. A stalled stream holds neither.
* A slice that is no longer wanted is told to stop. Its thread looks for that at every token, and between the batches in
  which a prompt is read. The slot is free when the thread has ended, never before.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, TypeVarTuple, final

import msgspec
import trio

from crucible_trio.errors import EngineError
from crucible_trio.output import Output

Ts = TypeVarTuple("Ts")

logger = logging.getLogger(__name__)

# After a slice's end, how long its reader may take for what is left of it. Far over what a task that keeps up needs,
# which is a turn of the loop; far under what a waiting stream would notice.
READER_PATIENCE_SECONDS: Final = 0.05

# A thread that makes tokens stops in 2 to 20 ms. One that reads a prompt stops after its batch, with the default model
# within 0.5 s, and nobody should wait for that.
ABANDON_AFTER_SECONDS: Final = 0.1


class Server(Protocol):
    """What is used of xllamacpp's Server."""

    def handle_chat_completions(self, request: dict[str, object], callback: Callable[[object], bool], /) -> object:
        """Block until the last chunk, or until the callback returns True. The callback's exceptions are swallowed."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _PromptProgress(msgspec.Struct):
    total: int


class _Timings(msgspec.Struct):
    predicted_n: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None
    prompt_progress: _PromptProgress | None = None
    timings: _Timings | None = None


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text in whole characters, and how many tokens its slice has made up to its end."""

    text: str
    tokens: int


@final
class Place:
    """A stream's claim to one of the model's slots; it runs one slice at a time in it.

    Args:
        slots: The model's slots.
        output: Where waiting for one is marked.

    Attributes:
        threads_abandoned: Threads that were left running.
    """

    def __init__(self, slots: trio.CapacityLimiter, output: Output) -> None:
        self.threads_abandoned = 0
        self._slots = slots
        self._output = output
        self._held = False
        self._busy = False  # a thread runs in the slot, and frees it

    async def take(self) -> None:
        """Wait for a slot, unless the last slice's was kept, and mark it busy. Cancellation: nothing is held."""
        if not self._held:
            try:
                self._slots.acquire_on_behalf_of_nowait(self)
            except trio.WouldBlock:
                async with self._output.queued():
                    await self._slots.acquire_on_behalf_of(self)
            self._held = True
        self._busy = True

    def keep(self) -> None:
        """Hold the slot for the next slice; it may have been freed already."""
        self._busy = False

    def free(self) -> None:
        """Give the slot back: its thread has ended."""
        self._busy = False
        self.leave()

    def leave(self) -> None:
        """Give the slot back, unless a thread still runs in it, which will do so."""
        if self._held and not self._busy:
            self._held = False
            self._slots.release_on_behalf_of(self)


@final
class Slice:
    """One call into the model: an async context manager, and in it an async iterator of pieces.

    Whoever leaves the context after the last piece keeps the slot; the time until then counts as taking the slice.
    Leaving it before stops the model: that waits for the thread no longer than a moment, and then abandons it.

    Args:
        server: The model.
        request: A streamed chat completion with `return_progress` and `timings_per_token`.
        place: The stream's.
        max_prompt_tokens: A longer prompt fails before it is read; None: it was checked before.

    Attributes:
        prompt_tokens: Of the prompt; None where the model did not say.
        tokens: Made in all.
        reason: Why the model ended, `stop` or `length`.
        left: Set when the thread has ended and no slot is held for it any more.
    """

    def __init__(
        self, server: Server, request: dict[str, object], place: Place, *, max_prompt_tokens: int | None = None
    ) -> None:
        self.prompt_tokens: int | None = None
        self.tokens = 0
        self.reason: str | None = None
        self.left = trio.Event()
        self._server = server
        self._request = request
        self._place = place
        self._max_prompt_tokens = max_prompt_tokens
        self._failure: EngineError | None = None
        self._unwanted = False
        self._exhausted = False
        self._kept = False
        self._reader_is_done = threading.Event()
        self._loop = trio.lowlevel.current_trio_token()
        # Not bounded by its places, because a slice is bounded by its tokens and the thread must not wait.
        self._send, self._receive = trio.open_memory_channel[Piece](math.inf)

    async def __aenter__(self) -> Self:
        try:
            await self._place.take()
            # Not `to_thread.run_sync`: it needs a task, and a nursery around the reader would wrap its output's errors.
            trio.lowlevel.start_thread_soon(self._run, lambda _: None, "crucible-model")
        except BaseException:  # cancelled while waiting, or the system has no thread for us
            self._thread_left()
            raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        """The next piece.

        Raises:
            EngineError: The model failed, or does not take the prompt.
            trio.ClosedResourceError: The model has been closed.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            if self.reason is None:  # stopped from outside: an end like any other would pass for the whole answer
                raise trio.ClosedResourceError from None
            self._exhausted = True
            raise StopAsyncIteration from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._receive.close()
        if self._exhausted and kind is None:
            if not self.left.is_set():
                self._kept = True
                self._place.keep()
            self._reader_is_done.set()
            return
        self.stop()
        with trio.move_on_after(ABANDON_AFTER_SECONDS, shield=True):
            await self.left.wait()
        if not self.left.is_set():
            self._place.threads_abandoned += 1

    def stop(self) -> None:
        """Tell the thread to end; does not wait for it."""
        self._unwanted = True
        self._reader_is_done.set()

    def _ended(self) -> None:
        self._send.close()

    def _thread_left(self) -> None:
        if not self._kept:
            self._place.free()
        self.left.set()

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            if not self._unwanted:
                self._server.handle_chat_completions(self._request, self._take)
        except Exception as error:
            # Only its type: the message may quote the prompt.
            logger.warning("the model refused a request: %s", type(error).__name__)
            self._failure = EngineError("model_refused", "The model cannot take this conversation.")
        if self.reason is None and self._failure is None and not self._unwanted:
            self._failure = EngineError("model_failed", "The model ended without saying why.", retryable=True)
        self._post(self._ended)
        self._reader_is_done.wait(READER_PATIENCE_SECONDS)
        self._post(self._thread_left)

    def _take(self, raw: object) -> bool:
        try:
            self._read(msgspec.convert(raw, _Chunk))
        except Exception as error:
            logger.warning("a chunk of the model cannot be read: %s", type(error).__name__)
            self._failure = EngineError("model_failed", "The model sent something unknown.")
        return self._unwanted or self._failure is not None

    def _read(self, chunk: _Chunk) -> None:
        if chunk.error is not None:
            self._read_error(chunk.error)
        if chunk.prompt_progress is not None:
            self.prompt_tokens = chunk.prompt_progress.total
            if self._max_prompt_tokens is not None and self.prompt_tokens > self._max_prompt_tokens:
                self._failure = prompt_too_long(self.prompt_tokens, self._max_prompt_tokens)
        if chunk.timings is not None:
            self.tokens = chunk.timings.predicted_n
        for choice in chunk.choices:
            if choice.delta.content:
                self._post(self._deliver, Piece(choice.delta.content, self.tokens))
            if choice.finish_reason is not None:
                self.reason = choice.finish_reason

    def _read_error(self, error: _Error) -> None:
        if error.type != "exceed_context_size_error":
            logger.warning("the model refused a request: %s", error.type)
            self._failure = EngineError("model_refused", "The model cannot take this conversation.")
        elif self._max_prompt_tokens is not None:
            self._failure = prompt_too_long(error.n_prompt_tokens, min(error.n_ctx, self._max_prompt_tokens))
        else:  # not the prompt, the text so far fills the context
            self.reason = "length"

    def _deliver(self, piece: Piece) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the reader has left
            self._send.send_nowait(piece)

    def _post(self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        try:
            self._loop.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            self._unwanted = True


def prompt_too_long(tokens: int, limit: int) -> EngineError:
    """The error for a prompt that the model does not take."""
    return EngineError("prompt_too_long", f"The prompt has {tokens} tokens; this model takes {limit} at most.")
