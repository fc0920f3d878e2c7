"""The body of an event stream.

A `ResponseBody` with a class iterator: Quart itself enters, iterates and leaves it, in any quart-trio app, and a
disconnect reaches `__aexit__` as cancellation. An async generator that was never started would never run its `finally`.
"""

from __future__ import annotations

from math import inf
from types import TracebackType
from typing import Final, Self, final

import trio
from quart import request
from quart.wrappers.response import ResponseBody

from crucible_trio import sse
from crucible_trio.dialects import Dialect
from crucible_trio.direct_writes import EXTENSION, DirectWriter
from crucible_trio.errors import TooManyReadersError
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import ServerBusy, ServerDraining, encode_control
from crucible_trio.stream import Stream
from crucible_trio.timers import Timer

# One body message: one write with one deadline on our server, one join of a log's frames here.
MESSAGE_BYTES: Final = 16 * 1024


@final
class EventStreamBody(ResponseBody):
    """Follows a stream from a position to its terminal record.

    The reader is attached while Quart has entered the body. Being asked for the next message says that the last one has
    been written: that, and not the reading, moves the cursor and gives the engine room.

    Where the server offers it, a piece for a client that keeps up is written in the middle of the append that brought
    it, and no task is woken.

    Args:
        pipeline: For its settings, and to announce that it drains.
        stream: What to follow.
        dialect: How its records look, fed up to `after`.
        after: The position up to which the client has everything.
    """

    def __init__(self, pipeline: Pipeline, stream: Stream, dialect: Dialect, after: int) -> None:
        self._pipeline = pipeline
        self._settings = pipeline.settings
        self._dialect = dialect
        self._reader = stream.attach(after)
        self._direct = _direct_writes()
        if self._direct is not None:
            self._reader.write_at_once = self._write_at_once
        self._unsent = memoryview(b"")
        self._is_held = False  # the server has the rest of a direct write
        self._failure: Exception | None = None  # in the middle of somebody else's append
        self._begun = False
        self._refused = False
        self._announced = False
        self._silent_since = 0.0
        self._timer = Timer(inf, self)

    async def __aenter__(self) -> Self:
        try:
            await self._reader.__aenter__()
        except TooManyReadersError:
            if not self._dialect.resumes:
                raise
            # The status line is out, and a browser would give up for ever on any status that refuses a reconnect.
            self._refused = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._reader.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._silent_since = trio.current_time()
        if self._unsent:
            return self._next_piece()
        if not self._begun:
            return self._begin()
        if self._refused:
            raise StopAsyncIteration
        while True:
            written = self._reader.taken
            self._reader.passed(written)
            if events := self._take(MESSAGE_BYTES):
                self._unsent = memoryview(events)
                return self._next_piece()
            if self._reader.taken > written:  # the view leaves these out: they pass without a write
                await trio.lowlevel.checkpoint()
                continue
            if self._reader.at_end:
                raise StopAsyncIteration
            if self._pipeline.draining and not self._announced and self._dialect.resumes:
                self._announced = True
                return encode_control(ServerDraining(self._settings.retry_milliseconds))
            if trio.current_time() >= self._silent_since + self._settings.heartbeat_seconds:
                return sse.HEARTBEAT
            self._set_timer()
            await self._reader.wait()
            if self._failure is not None:
                raise self._failure
            if self._is_held and self._direct is not None:
                await self._direct.flush()
                self._is_held = False
            if self._unsent:
                return self._next_piece()

    def _write_at_once(self) -> int:
        """Write what has been appended while this waits in `__anext__`; returns up to where all is written."""
        before = self._reader.taken
        if not self._can_write_at_once:
            return before
        try:
            events = self._take(MESSAGE_BYTES)
        except Exception as error:  # this body's, and not the engine's that appends
            self._failure = error
            return before
        if len(events) > MESSAGE_BYTES:
            self._unsent = memoryview(events)
            return before
        if events and not self._write_directly(events):
            return before
        return self._reader.taken

    def timer_fired(self) -> None:
        """The heartbeat may be due; the timer comes early when something has been written since it was set."""
        is_due = trio.current_time() >= self._silent_since + self._settings.heartbeat_seconds
        can_write = self._reader.waits and self._can_write_at_once
        if is_due and can_write and self._write_directly(sse.HEARTBEAT):
            self._set_timer()
        else:
            self._reader.wake()

    def _set_timer(self) -> None:
        at = self._silent_since + self._settings.heartbeat_seconds
        self._timer = self._pipeline.timers.set_no_later(self._timer, at, self)

    @property
    def _can_write_at_once(self) -> bool:
        return not self._unsent and not self._is_held and self._direct is not None and self._direct.ready

    def _write_directly(self, data: bytes) -> bool:
        assert self._direct is not None
        self._silent_since = trio.current_time()
        self._pipeline.pacing.direct_writes += 1
        self._is_held = not self._direct.write_nowait(data)
        return not self._is_held

    def _begin(self) -> bytes:
        self._begun = True
        retry = sse.retry_line(self._settings.retry_milliseconds) if self._dialect.resumes else b""
        if self._refused:
            return retry + encode_control(ServerBusy(self._settings.retry_milliseconds))
        self._unsent = memoryview(retry + self._take(MESSAGE_BYTES - len(retry)))
        return self._next_piece()

    def _next_piece(self) -> bytes:
        piece, self._unsent = self._unsent[:MESSAGE_BYTES], self._unsent[MESSAGE_BYTES:]
        return bytes(piece)

    def _take(self, limit_bytes: int) -> bytes:
        return self._dialect.feed(self._reader.take(limit_bytes))


def _direct_writes() -> DirectWriter | None:
    extensions = request.scope.get("extensions") or {}
    return extensions.get(EXTENSION, {}).get("body")
