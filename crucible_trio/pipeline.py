"""All generations of an application: their nursery, ids, owners, idempotency keys, caps and retention."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Final, final

import msgspec
import trio

from crucible_trio.config import Settings
from crucible_trio.engine import (
    Engine,
    GenerateFunction,
    GeneratorFunction,
    OnDisconnect,
    Request,
    SafeChannelFunction,
    as_engine,
    check_request,
)
from crucible_trio.errors import (
    DrainingError,
    OverloadedError,
    OwnerLimitError,
    StreamNotFoundError,
)
from crucible_trio.idempotency import Keys
from crucible_trio.metrics import Metrics
from crucible_trio.pacing import Pacing
from crucible_trio.retention import Retention
from crucible_trio.stream import Stream
from crucible_trio.timers import Timer, Timers

logger = logging.getLogger(__name__)

ANONYMOUS: Final = ""
"""The owner of every stream where no keys are configured."""


@final
class Pipeline:
    """All streams of an application. `open_pipeline` makes one and runs it.

    Attributes:
        engine: Where tokens come from.
        settings: Its limits.
        metrics: Its numbers.
        timers: Its timers.
        pacing: Decides when its streams record.
        draining: Whether it starts nothing new because it is shutting down.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics()
        self.timers = Timers()
        self.pacing = Pacing(self.timers)
        self.draining = False
        self._nursery: trio.Nursery | None = None
        self._running: dict[str, Stream] = {}
        self._running_by_owner: Counter[str] = Counter()
        self._forgotten: set[Stream] = set()  # deleted while it ran, until it has ended
        self._retention = Retention(settings.retention_seconds)
        self._expiry = Timer(inf, self)
        self._keys = Keys()
        self._log_bytes = 0
        self._ended = trio.lowlevel.ParkingLot()
        self.metrics.log_bytes.set_function(lambda: self._log_bytes)
        self.metrics.running.set_function(lambda: len(self._running))
        self.metrics.kept.set_function(lambda: len(self._retention))
        self.metrics.abandoned_threads.set_function(lambda: getattr(engine, "abandoned_threads", 0))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the streams, until cancelled; for `nursery.start`. No error of a stream leaves it.

        Cancellation: every running stream ends as `cancelled` by `shutdown`, then this returns.
        """
        trio.lowlevel.add_instrument(self.pacing)
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                try:
                    await self.timers.run()
                finally:
                    self._stop_all()
        finally:
            self._nursery = None
            trio.lowlevel.remove_instrument(self.pacing)

    def _stop_all(self) -> None:
        # Not left to the engines' own end: one that does not let go would keep its readers waiting for theirs.
        for stream in self._running.values():
            stream.cancel("shutdown")
            stream.record()

    # Starting

    async def start(
        self,
        request: Request,
        *,
        owner: str = ANONYMOUS,
        on_disconnect: OnDisconnect = "pause",
        starts_with_reader: bool = False,
    ) -> Stream:
        """Start a stream; its record 1 is in the log when this returns.

        Args:
            request: What to generate.
            owner: Who may read and stop it.
            on_disconnect: Counts if the request does not say.
            starts_with_reader: Call the engine when a reader has record 1; otherwise at once.

        Raises:
            InvalidRequestError: The engine does not do that, or a number is over the server's maximum.
            OwnerLimitError, OverloadedError, DrainingError: Not now.
            trio.ClosedResourceError: The pipeline does not run.

        Checkpoints: always, before the stream is started. Cancellation: then nothing has been started.
        """
        await trio.lowlevel.checkpoint()
        return self._start(request, owner, on_disconnect, starts_with_reader=starts_with_reader)

    def start_or_join(
        self, request: Request, key: str | None, *, owner: str, on_disconnect: OnDisconnect, starts_with_reader: bool
    ) -> tuple[Stream, bool]:
        """Start a stream, or find the one that this idempotency key started.

        Returns:
            The stream, and whether it was there before. No checkpoint lies between looking a key up and entering it.

        Raises:
            IdempotencyConflictError: The key was used with another request.
            StreamExpiredError: The stream it started is gone.
            StreamNotFoundError: Its owner has deleted it.
            Otherwise as `start`; a refused start leaves no key behind.
        """
        if key is not None and (started := self._keys.find(owner, key, request)) is not None:
            return self.get(started, owner=owner), True
        stream = self._start(request, owner, on_disconnect, starts_with_reader=starts_with_reader)
        if key is not None:
            self._keys.enter(owner, key, request, stream.id)
        return stream, False

    def _start(self, request: Request, owner: str, on_disconnect: OnDisconnect, *, starts_with_reader: bool) -> Stream:
        if self._nursery is None:
            raise trio.ClosedResourceError
        check_request(request, self.engine.info, self.settings)
        self._check_capacity(owner)
        stream = Stream(
            self.engine,
            msgspec.structs.replace(request, model=request.model or self.engine.info.models[0]),
            self.settings,
            self.metrics,
            self.timers,
            self.pacing,
            owner=owner,
            on_disconnect=request.on_disconnect or on_disconnect,
            starts_with_reader=starts_with_reader,
            on_growth=self._log_grew,
        )
        self._running[stream.id] = stream
        self._running_by_owner[owner] += 1
        self.metrics.started.labels(request.mode).inc()
        self._nursery.start_soon(self._run_stream, stream)
        return stream

    def _check_capacity(self, owner: str) -> None:
        if self.draining:
            raise DrainingError
        if owner != ANONYMOUS and self._running_by_owner[owner] >= self.settings.max_streams_per_owner:
            raise OwnerLimitError(self.settings.max_streams_per_owner)
        if len(self._running) >= self.settings.max_streams:
            message = f"the server already has {self.settings.max_streams} running streams"
            raise OverloadedError(message)
        self._evict()
        if self._log_bytes >= self.settings.total_log_bytes:
            message = "the server's logs are full"
            raise OverloadedError(message)

    # Finding

    def get(self, stream_id: str, *, owner: str | None = ANONYMOUS) -> Stream:
        """Find a stream.

        Args:
            stream_id: Its id.
            owner: Who asks; None for somebody who has shown the right to this one stream otherwise.

        Raises:
            StreamExpiredError: It was there and yours, less than an hour ago.
            StreamNotFoundError: It is not there, or not yours.
        """
        stream = self._running.get(stream_id)
        if stream is None:
            return self._retention.find(stream_id, owner)
        if owner not in {None, stream.owner} or stream in self._forgotten:
            raise StreamNotFoundError
        return stream

    def streams(self, *, owner: str = ANONYMOUS) -> list[Stream]:
        """The owner's streams, newest first."""
        found = [*self._running.values(), *self._retention]
        own = [stream for stream in found if stream.owner == owner and stream not in self._forgotten]
        return sorted(own, key=lambda stream: (stream.accepted_at, stream.created_at), reverse=True)

    # Ending

    def forget(self, stream: Stream) -> None:
        """Cancel a stream and let nobody find it again; readers that are attached still get the terminal record."""
        stream.cancel()
        if stream.id in self._running:
            self._forgotten.add(stream)
        else:
            self._drop(stream, forgotten=True)

    async def drain(self, timeout: float | None = None) -> None:
        """Start nothing new, let running streams finish, and stop those that do not.

        Readers stay attached, and one that is cut may attach again: they get `server.draining` now and the terminal
        record at the end.

        Args:
            timeout: How long streams may go on, in seconds; None is the setting. Then they end `cancelled` by
                `shutdown`.

        Returns when no stream runs, or `flush_seconds` later if an engine does not let go. Checkpoints: always.
        Cancellation: safe; the pipeline goes on refusing new streams.
        """
        await trio.lowlevel.checkpoint()
        self.draining = True
        for stream in (*self._running.values(), *self._retention):
            stream.log.wake()
        with trio.move_on_after(self.settings.drain_seconds if timeout is None else timeout):
            await self._nothing_runs()
        for stream in self._running.values():
            stream.cancel("shutdown")
        with trio.move_on_after(self.settings.flush_seconds):
            await self._nothing_runs()

    async def _nothing_runs(self) -> None:
        while self._running:
            await self._ended.park()

    async def _run_stream(self, stream: Stream) -> None:
        try:
            await stream.run()
        except* Exception:
            logger.exception("stream %s: an error of our own", stream.id)
        finally:
            self._stream_ended(stream)

    def _stream_ended(self, stream: Stream) -> None:
        del self._running[stream.id]
        self._running_by_owner[stream.owner] -= 1
        if not self._running_by_owner[stream.owner]:
            del self._running_by_owner[stream.owner]
        if stream in self._forgotten:
            self._forgotten.discard(stream)
            self._drop(stream, forgotten=True)
        else:
            self._retention.keep(stream, trio.current_time())
            self._set_expiry()
        self._ended.unpark_all()
        status = stream.status
        self.metrics.ended.labels(status).inc()
        timings = stream.terminal.timings if stream.terminal is not None else None
        logger.info(
            "stream %s ended: mode=%s status=%s tokens=%d first_token_ms=%s total_ms=%s",
            stream.id,
            stream.request.mode,
            status,
            stream.tokens,
            timings and timings.first_token_ms,
            timings and timings.total_ms,
        )

    # Retention

    def timer_fired(self) -> None:
        """The retention of a stream may be over (`Timed`)."""
        now = trio.current_time()
        for stream in self._retention.expired(now):
            self._drop(stream)
        for stream_id in self._retention.unremember(now):
            self._keys.drop(stream_id)
        self._set_expiry()

    def _set_expiry(self) -> None:
        self._expiry = self.timers.set_no_later(self._expiry, self._retention.next_change(), self)

    def _drop(self, stream: Stream, *, forgotten: bool = False) -> None:
        self._retention.drop(stream, trio.current_time(), forgotten=forgotten)
        self._set_expiry()
        self._log_bytes -= stream.size_bytes

    def _log_grew(self, size: int) -> None:
        self._log_bytes += size
        self._evict()

    def _evict(self) -> None:
        while self._log_bytes >= self.settings.total_log_bytes:
            stream = self._retention.oldest_unread()
            if stream is None:
                return
            self._drop(stream)


@asynccontextmanager
async def open_pipeline(
    engine: Engine | GenerateFunction | GeneratorFunction | SafeChannelFunction, settings: Settings | None = None
) -> AsyncIterator[Pipeline]:
    """Open a pipeline over an engine; what `as_engine` takes is one.

    Leaving it ends every running stream as `cancelled` by `shutdown`: no stream outlives its pipeline. An error of the
    body leaves it as it is, not in a group.
    """
    pipeline = Pipeline(as_engine(engine), settings or Settings())
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(pipeline.run)
        try:
            yield pipeline
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
