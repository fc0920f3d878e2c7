"""The engine's end of the buffer: the one queue of the system.

An engine awaits `output.delta` and `output.reasoning`; they wait when the buffer is full, and that is how a slow client
slows a model down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import final

import msgspec
import trio

from crucible_trio.pacing import Pacing
from crucible_trio.timers import Timers


@final
class Token(msgspec.Struct, frozen=True, gc=False):
    """One piece of text on its way from the engine to the log, never empty.

    Attributes:
        text: The piece; it may begin or end with half a character (a lone surrogate), which the recorder joins.
        segment: The segment of the reasoning trace it belongs to; None for the answer.
    """

    text: str
    segment: int | None


@final
class Output:
    """What an engine writes to. Its stream opens and closes it.

    Args:
        send: The buffer.
        pacing: When a call lets others run; by default, always.
        record: Asked with a token that comes first in its pass of the scheduler: whether it is in the log already.
        written: Called when a token has been put into the buffer, and when the buffer is full.
    """

    def __init__(
        self,
        send: trio.MemorySendChannel[Token],
        pacing: Pacing | None = None,
        record: Callable[[Token], bool] = lambda _: False,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._pacing = pacing or Pacing(Timers())
        self._record = record
        self._written = written
        self._pass = -1  # of the last piece
        self._pieces = 0  # in that pass
        self._segment = -1  # of the last piece of the trace
        self._queued_since: float | None = None
        self._queued_seconds = 0.0

    async def delta(self, text: str) -> None:
        """Write a piece of the answer.

        Waits while the buffer is full. Checkpoints: always looks for cancellation; lets other tasks run when it waits,
        and for an engine that never does, at every 64th piece and every 5 ms. Cancellation: a piece whose call was
        cancelled may or may not be in the log; one whose call has returned is.

        Raises:
            TypeError: `text` is not a `str`.
            trio.ClosedResourceError: The stream has ended.
        """
        await self._write(text, None)

    async def reasoning(self, text: str, segment: int) -> None:
        """Write a piece of the reasoning trace; otherwise as `delta`.

        Args:
            text: The piece.
            segment: Counts from 0 without holes: the last piece's segment, or the next.

        Raises:
            ValueError: `segment` is neither.
            TypeError: `text` is not a `str`.
            trio.ClosedResourceError: The stream has ended.
        """
        if segment < 0 or segment not in (self._segment, self._segment + 1):
            message = f"segment {segment} cannot follow segment {self._segment}"
            raise ValueError(message)
        if text:  # an empty piece leaves no trace of its segment, so the next may not count from it
            self._segment = segment
        await self._write(text, int(segment))  # True counts like 1, and is not the same in JSON

    @asynccontextmanager
    async def queued(self) -> AsyncIterator[None]:
        """Mark time spent waiting for a place at the model: only the `total` deadline counts it."""
        self._queued_since = trio.current_time()
        try:
            yield
        finally:
            self._queued_seconds = self.queued_seconds
            self._queued_since = None

    @property
    def is_queued(self) -> bool:
        """Whether the engine waits for a place at the model just now."""
        return self._queued_since is not None

    @property
    def queued_seconds(self) -> float:
        """How long the engine has waited for a place so far, all times together."""
        if self._queued_since is None:
            return self._queued_seconds
        return self._queued_seconds + trio.current_time() - self._queued_since

    async def _write(self, text: str, segment: int | None) -> None:
        if not isinstance(text, str):  # raised here it ends the stream as `failed`; in the recorder it is our own error
            message = f"a piece of text is a str, not {type(text).__name__}"
            raise TypeError(message)
        if not text:  # carries nothing, but an engine relies on its call as a place where it can be cancelled
            await trio.lowlevel.checkpoint()
            return
        is_first = self._pass != self._pacing.passes
        if not is_first and self._pacing.is_over(self._pieces):
            await trio.lowlevel.checkpoint()
            self._pieces = 0  # in a new pass, and still the same burst
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        self._pieces = 1 if is_first else self._pieces + 1
        self._pass = self._pacing.passes
        token = Token(text, segment)
        if is_first and self._record(token):
            return
        try:
            try:
                self._send.send_nowait(token)
            except trio.WouldBlock:
                self._written()
                await self._send.send(token)
                self._pass = self._pacing.passes
        except trio.BrokenResourceError:  # the stream has closed the other end; to an engine that is the end of it
            raise trio.ClosedResourceError from None
        self._written()
