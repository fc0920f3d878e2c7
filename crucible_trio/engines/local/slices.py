"""One call into a model of this process: a slot of the model, a worker thread, and the stream's task that reads.

The model does not slow down for a slow reader. Backpressure comes from asking for one slice at a time: the next slice
begins when the buffer has taken the last one. This module alone decides how long a slot stays busy:

* A slice takes a slot. A stream that keeps up keeps its slot for the next slice, because its text is still in the
  slot's cache. Another stream in between would make the model read the whole text again.
* A reader that has not taken a whole slice shortly after its end is slow or has left. The slot is released and the
  thread ends. A stalled stream holds neither.
* A slice that is no longer wanted is told to stop. Its thread checks for that at every token, and between the batches
  of a prompt. The slot is released only when the thread has ended.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVarTuple, final

import msgspec
import trio

from crucible_trio.engines.local.chunks import ModelChunk, ModelError, ModelServer
from crucible_trio.errors import EngineError
from crucible_trio.output import Output

Ts = TypeVarTuple("Ts")

logger = logging.getLogger(__name__)

# How long after a slice's end its reader may take for the rest of it. A reader that keeps up needs one scheduler pass,
# far less than this. Another stream waiting for the slot does not notice so short a time.
READER_PATIENCE_SECONDS: Final = 0.05

# A thread that generates tokens stops in 2 to 20 ms. A thread that reads a prompt stops after its batch, within 0.5 s
# with the default model. A cancelled stream should not wait that long.
ABANDON_AFTER_SECONDS: Final = 0.1


@final
@dataclass(frozen=True, slots=True)
class SlicePiece:
    """A piece of text in whole characters, and the number of tokens of its slice up to its end."""

    text: str
    tokens: int


@final
class SlotClaim:
    """A stream's claim to one of the model's slots. It runs one slice at a time there.

    Args:
        slots: The model's slots.
        output: Marks the time spent waiting for a slot.

    Attributes:
        threads_abandoned: Threads that were left running.
    """

    def __init__(self, slots: trio.CapacityLimiter, output: Output) -> None:
        self.threads_abandoned = 0
        self._slots = slots
        self._output = output
        self._held = False
        self._busy = False  # a thread runs in the slot and will release it

    async def take(self) -> None:
        """Wait for a slot, unless the last slice kept it, and mark it busy. Cancellation: no slot is taken."""
        if not self._held:
            try:
                self._slots.acquire_on_behalf_of_nowait(self)
            except trio.WouldBlock:
                async with self._output.queued():
                    await self._slots.acquire_on_behalf_of(self)
            self._held = True
        self._busy = True

    def keep(self) -> None:
        """Keep the slot for the next slice. The slot may have been released already."""
        self._busy = False

    def thread_ended(self) -> None:
        """Release the slot: its thread has ended."""
        self._busy = False
        self.release()

    def release(self) -> None:
        """Release the slot. If a thread still runs in it, the thread's end releases it."""
        if self._held and not self._busy:
            self._held = False
            self._slots.release_on_behalf_of(self)


@final
class Slice:
    """One call into the model: an async context manager, and inside it an async iterator of pieces.

    A reader that leaves the context after the last piece keeps the slot. The time until then counts as reading the
    slice. A reader that leaves earlier stops the model. It waits `ABANDON_AFTER_SECONDS` for the thread, then abandons
    it.

    Args:
        server: The model.
        request: A streamed chat completion with `return_progress` and `timings_per_token`.
        claim: The stream's claim to a slot.
        max_prompt_tokens: A longer prompt fails before the model reads it. None: it was checked before.

    Attributes:
        prompt_tokens: Tokens of the prompt. None if the model did not report them.
        tokens: Tokens generated so far.
        reason: Why the model ended, `stop` or `length`. None until then.
        ended: Set when the thread has ended and no longer holds a slot.
    """

    def __init__(
        self,
        server: ModelServer,
        request: dict[str, object],
        claim: SlotClaim,
        *,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.prompt_tokens: int | None = None
        self.tokens = 0
        self.reason: str | None = None
        self.ended = trio.Event()
        self._server = server
        self._request = request
        self._claim = claim
        self._max_prompt_tokens = max_prompt_tokens
        self._failure: EngineError | None = None
        self._unwanted = False
        self._exhausted = False
        self._kept = False
        self._reader_is_done = threading.Event()
        self._loop = trio.lowlevel.current_trio_token()
        # Unbounded, because the thread must not wait. The number of tokens in a slice bounds it.
        self._send, self._receive = trio.open_memory_channel[SlicePiece](math.inf)

    async def __aenter__(self) -> Self:
        try:
            await self._claim.take()
            # Not `to_thread.run_sync`: it needs a task, and a nursery around the reader would wrap errors in a group.
            trio.lowlevel.start_thread_soon(self._run, lambda _: None, "crucible-model")
        except BaseException:  # cancelled while waiting, or the system refused a thread
            self._thread_ended()
            raise
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SlicePiece:
        """Wait for the next piece. Cancellation: no piece is lost.

        Raises:
            EngineError: The model failed, or does not accept the prompt.
            trio.ClosedResourceError: The model has been closed.
        """
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            if self.reason is None:  # stopped from outside: a normal end would make the answer look complete
                raise trio.ClosedResourceError from None
            self._exhausted = True
            raise StopAsyncIteration from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._receive.close()
        if self._exhausted and kind is None:
            if not self.ended.is_set():
                self._kept = True
                self._claim.keep()
            self._reader_is_done.set()
            return
        self.stop()
        with trio.move_on_after(ABANDON_AFTER_SECONDS, shield=True):
            await self.ended.wait()
        if not self.ended.is_set():
            self._claim.threads_abandoned += 1

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._unwanted = True
        self._reader_is_done.set()

    def _text_ended(self) -> None:
        self._send.close()

    def _thread_ended(self) -> None:
        if not self._kept:
            self._claim.thread_ended()
        self.ended.set()

    # The methods below run in the thread, except `_deliver`.

    def _run(self) -> None:
        try:
            if not self._unwanted:
                self._server.handle_chat_completions(self._request, self._take)
        except Exception as error:
            # Log only the type: the message may quote the prompt.
            self._fail_as_unsupported(type(error).__name__)
        if self.reason is None and self._failure is None and not self._unwanted:
            message = "The model ended without a finish reason."
            self._failure = EngineError("model_failed", message, retryable=True)
        self._post(self._text_ended)
        self._reader_is_done.wait(READER_PATIENCE_SECONDS)
        self._post(self._thread_ended)

    def _take(self, raw: object) -> bool:
        try:
            self._read(msgspec.convert(raw, ModelChunk))
        except Exception as error:
            logger.warning("the model sent an invalid chunk: %s", type(error).__name__)
            self._failure = EngineError("model_failed", "The model sent an invalid chunk.")
        return self._unwanted or self._failure is not None

    def _read(self, chunk: ModelChunk) -> None:
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
                self._post(self._deliver, SlicePiece(choice.delta.content, self.tokens))
            if choice.finish_reason is not None:
                self.reason = choice.finish_reason

    def _read_error(self, error: ModelError) -> None:
        if error.type != "exceed_context_size_error":
            self._fail_as_unsupported(error.type)
        elif self._max_prompt_tokens is not None:
            self._failure = prompt_too_long(error.n_prompt_tokens, min(error.n_ctx, self._max_prompt_tokens))
        else:  # the prompt was checked before, so prompt and answer together fill the context
            self.reason = "length"

    def _fail_as_unsupported(self, kind: str) -> None:
        logger.warning("the model rejected a request: %s", kind)
        self._failure = EngineError("unsupported_conversation", "The model does not support this conversation.")

    def _deliver(self, piece: SlicePiece) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the reader has left
            self._send.send_nowait(piece)

    def _post(self, function: Callable[[*Ts], object], *arguments: *Ts) -> None:
        try:
            self._loop.run_sync_soon(function, *arguments)
        except trio.RunFinishedError:
            self._unwanted = True


def prompt_too_long(tokens: int, limit: int) -> EngineError:
    """The error for a prompt with too many tokens."""
    return EngineError("prompt_too_long", f"The prompt has {tokens} tokens. The model accepts at most {limit}.")
