"""The body of an event stream.

It is a `ResponseBody` with a class as iterator. Quart enters, iterates and leaves it in any quart-trio application, and
a client's disconnect reaches `__aexit__` as cancellation. An async generator would not do: one that was never started
never runs its `finally`.
"""

from __future__ import annotations

from math import inf
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, final

import trio
from quart.wrappers.response import ResponseBody

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.dialect import Dialect
from crucible_trio.apis.kit.direct import MESSAGE_BYTES, AppendWriter, direct_writer
from crucible_trio.apis.kit.downloads import LARGE_BYTES, Download
from crucible_trio.apis.kit.silence import Silence
from crucible_trio.errors import TooManyReadersError
from crucible_trio.stream import Stream
from crucible_trio.timers import Timer

# The first message's size. Each later one may be twice as large, up to `MESSAGE_BYTES`. Some clients hand on whole HTTP
# chunks only (urllib3's `stream`), and make no progress if every connection is cut inside its first chunk.
_FIRST_MESSAGE_BYTES: Final = 1024

_Phase: TypeAlias = Literal[
    "opening",  # nothing has been sent
    "following",  # the opening has been sent
    "draining",  # the same, and the client has been told that the server drains
    "ended",  # everything has been written
    "refused",  # the stream had no place for this reader, and the client is told so
]


@final
class EventStreamBody(ResponseBody):
    """Follows a stream from the dialect's `resume_offset` to the terminal record.

    The reader is attached while Quart has entered the body. Quart asks for the next message when the last one has been
    written. This, and not reading from the log, moves the cursor and gives the engine room: here is the backpressure.

    Make it inside a request: it asks the request's connection for direct writes.

    Args:
        context: For the settings, for the pipeline's timers, and for whether it drains.
        stream: The stream to follow.
        dialect: How the records look on this wire.
        window: Send at most this many records, then wait for the client to ask again. None: no limit.
        download: Bytes that have been reserved for the first events.
    """

    def __init__(
        self,
        context: ApiContext,
        stream: Stream,
        dialect: Dialect,
        *,
        window: int | None = None,
        download: Download | None = None,
    ) -> None:
        pipeline = self._pipeline = context.pipeline
        self._downloads = context.downloads
        self._download = download
        self._dialect = dialect
        self._reader = stream.attach(dialect.resume_offset)
        if window is not None:
            self._reader.until = dialect.resume_offset + window
        self._silence = Silence(context.settings.heartbeat_seconds)
        self._timer = Timer(inf, self)
        writer = direct_writer()
        self._direct = (
            None if writer is None else AppendWriter(writer, self._reader, dialect, pipeline.batcher, self._silence)
        )
        self._phase: _Phase = "opening"
        self._limit = _FIRST_MESSAGE_BYTES  # of the next message
        self._unsent = memoryview(b"")  # events that did not fit into the last message

    @property
    def has_sent_end(self) -> bool:
        """Whether the terminal record has been written."""
        return self._phase == "ended"

    async def __aenter__(self) -> Self:
        try:
            await self._reader.__aenter__()
        except TooManyReadersError:
            # The status line has been sent, so no status can refuse the reader any more. It would not help either: a
            # browser's EventSource stops for good when a reconnect is answered with an error status.
            busy = self._dialect.busy()
            if busy is None:
                raise
            self._phase = "refused"
            self._unsent = memoryview(self._dialect.opening() + busy)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._count(0)
        await self._reader.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._silence.since = trio.current_time()
        if self._unsent:
            return self._rest_of_message()
        if self._phase == "opening":
            self._phase = "following"
            opening = self._dialect.opening()
            return self._message(opening + self._dialect.feed(self._reader.take(self._limit - len(opening))))
        if self._phase == "refused":
            raise StopAsyncIteration
        while True:
            written = self._reader.taken
            self._reader.passed(written)
            if events := self._dialect.feed(self._reader.take(self._limit)):
                return self._message(events)
            if self._reader.taken > written:  # the dialect left these records out, so there is nothing to write
                await trio.lowlevel.checkpoint()
                continue
            if self._reader.at_end:
                self._phase = "ended"
                raise StopAsyncIteration
            if self._pipeline.draining and self._phase == "following":
                self._phase = "draining"
                if event := self._dialect.draining():
                    return event
            if self._silence.is_over:
                return self._message(self._dialect.keep_alive())
            if self._reader.taken == self._reader.until:  # no record can end this wait, only the client
                await trio.sleep_until(self._silence.deadline)
                continue
            self._timer = self._pipeline.timers.set_no_later(self._timer, self._silence.deadline, self)
            await self._reader.wait()
            if self._direct is not None and (events := await self._direct.settle()):
                return self._message(events)

    def timer_fired(self) -> None:
        """A keep-alive may be due. The timer is early if something was written after it was set (`Timed`)."""
        if self._silence.is_over and self._direct is not None and self._direct.write_keep_alive():
            self._timer = self._pipeline.timers.set_no_later(self._timer, self._silence.deadline, self)
        else:
            self._reader.wake()

    def _message(self, events: bytes) -> bytes:
        self._unsent = memoryview(events)
        self._count(len(events))
        return self._rest_of_message()

    def _count(self, size: int) -> None:
        """Count the events that wait to be sent, if they are large."""
        if self._download is not None:
            self._download.close()
        self._download = self._downloads.count(size) if size > LARGE_BYTES else None

    def _rest_of_message(self) -> bytes:
        message, self._unsent = self._unsent[: self._limit], self._unsent[self._limit :]
        self._limit = min(2 * self._limit, MESSAGE_BYTES)
        if not self._unsent:
            self._count(0)
        return bytes(message)


class WatchedBody(ResponseBody):
    """The events of a stream, for a route that acts when their reader has come and when it has left.

    Subclasses override `came` and `left`. `left` runs after every reader for which `came` was called without an error.

    Args:
        body: The events.
    """

    def __init__(self, body: EventStreamBody) -> None:
        self._body = body

    async def came(self) -> None:
        """Called when the reader is attached."""

    async def left(self, *, has_end: bool) -> None:
        """Called when the reader is gone.

        Args:
            has_end: Whether the terminal record has been written.
        """

    async def __aenter__(self) -> Self:
        await self._body.__aenter__()
        try:
            await self.came()
        except BaseException as error:
            await self._body.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._body.__aexit__(kind, error, trace)
        finally:
            await self.left(has_end=self._body.has_sent_end)

    def __aiter__(self) -> EventStreamBody:
        return self._body
