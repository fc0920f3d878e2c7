"""All generations of an application: their nursery, their starts and their shutdown."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, final

import msgspec
import trio

from crucible_trio.background import background_tasks
from crucible_trio.batching import Batcher
from crucible_trio.checks import check_request
from crucible_trio.config import Settings
from crucible_trio.engine import Engine, EngineSource, as_engine, engine_of
from crucible_trio.errors import ConfigError, DrainingError, LogUnavailableError
from crucible_trio.generation import Generation
from crucible_trio.metrics import Metrics
from crucible_trio.owed_ends import OwedEnds
from crucible_trio.records import new_stream_id
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.snapshot import status_of
from crucible_trio.store.contract import StreamStore
from crucible_trio.store.idempotency import digest_of
from crucible_trio.store.memory import ANONYMOUS, MemoryStore
from crucible_trio.stream import Stream, StreamFacts
from crucible_trio.timers import Timers

logger = logging.getLogger(__name__)

_NO_FACTS: Final[Mapping[str, msgspec.Raw]] = {}


@final
class Pipeline:
    """Starts and runs the streams of an application. `open_pipeline` makes one and runs it.

    Attributes:
        engine: Generates the content.
        settings: Limits and defaults.
        metrics: Its numbers.
        timers: Its timers.
        batcher: Tells its generations when to record.
        store: Holds its streams.
        owed_ends: Which labelled streams still owe their end to a client.
        draining: Whether it starts nothing new because it is shutting down.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        timers: Timers | None = None,
        store: StreamStore | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.timers = timers or Timers()
        self.batcher = Batcher(self.timers)
        self.store: StreamStore = store or MemoryStore(settings, self.timers)
        self.owed_ends = OwedEnds(self.store, settings.flush_seconds)
        self.draining = False
        self._nursery: trio.Nursery | None = None
        self._running: set[Generation] = set()
        self._starting: set[trio.CancelScope] = set()  # of the starts that wait for their store
        self._ended = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the generations until cancelled, for `nursery.start`. No stream's error leaves it.

        Cancellation: every running stream ends as `cancelled` by `shutdown`, then this returns.
        """
        trio.lowlevel.add_instrument(self.batcher)
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    await self._nursery.start(self.owed_ends.run)
                    task_status.started()
                    await self.timers.run()
                finally:
                    self._stop_all()
        finally:
            trio.lowlevel.remove_instrument(self.batcher)

    def _stop_all(self) -> None:
        self._nursery = None  # a start that waits for the store must not add a task now
        # An engine that does not let go would keep its readers waiting for the end, so the end is recorded here.
        for generation in self._running:
            generation.cancel("shutdown")
            generation.record()
        for start in self._starting:  # no start may outlive its pipeline
            start.cancel()

    # Starting

    async def start(
        self,
        request: Request,
        *,
        owner: str = ANONYMOUS,
        on_disconnect: OnDisconnect = "pause",
        starts_with_reader: bool = False,
        facts: Mapping[str, msgspec.Raw] = _NO_FACTS,
        label: str | None = None,
    ) -> Stream:
        """Start a stream. Its record 1 is in the log when this returns.

        Args:
            request: What to generate.
            owner: Who may read and stop it.
            on_disconnect: Counts if the request does not say.
            starts_with_reader: Call the engine when a reader has record 1. Otherwise immediately.
            facts: Facts of the stream that APIs need, by the API's name (`StreamFacts.for_apis`).
            label: A name by which the newest stream that has it can be found (`find_labelled`).

        Raises:
            InvalidRequestError: The model does not support a field, or a number is over the server's maximum.
            OwnerLimitError, OverloadedError, DrainingError: A limit, or a shutdown, refuses new streams for now.
            trio.ClosedResourceError: The pipeline is not running.
            LogUnavailableError: The store took longer than `flush_seconds` to start the stream.

        Checkpoints: always, before the stream is started. Cancellation: as `start_or_join`.
        """
        await trio.lowlevel.checkpoint()
        stream, _ = await self.start_or_join(
            request,
            None,
            owner=owner,
            on_disconnect=on_disconnect,
            starts_with_reader=starts_with_reader,
            facts=facts,
            label=label,
        )
        return stream

    async def start_or_join(
        self,
        request: Request,
        key: str | None,
        *,
        owner: str,
        on_disconnect: OnDisconnect,
        starts_with_reader: bool,
        may_hold: bool = False,
        client_retries: bool = False,
        facts: Mapping[str, msgspec.Raw] = _NO_FACTS,
        label: str | None = None,
        identity: object = None,
        keeps_input: bool = True,
    ) -> tuple[Stream, bool]:
        """Start a stream, or find the one that this idempotency key started.

        Two starts with one key at the same time start one generation. The second waits for the first.

        Args:
            request: What to generate.
            key: The idempotency key, if there is one.
            owner: Who may read and stop it.
            on_disconnect: Counts if the request does not say.
            starts_with_reader: As for `start`.
            may_hold: The caller waits in `Stream.hold` before it attaches a reader. If the engine waits for an
                upstream, the stream is held: the engine is called immediately.
            client_retries: As `Output.client_retries`.
            facts: As for `start`.
            label: As for `start`.
            identity: Everything that a repeated start with the key must have in common with the first: values that
                JSON can hold. None: the request.
            keeps_input: As `StreamFacts.keeps_input`.

        Returns:
            The stream, and whether it was there before.

        Raises:
            IdempotencyConflictError: The key was used with another request.
            StreamExpiredError: The stream that the key started has expired.
            StreamNotFoundError: Its owner has deleted it.
            Otherwise as `start`. A refused start leaves no key behind.

        Checkpoints: only while the store waits, as for another start with the key.
        Cancellation: the engine is not called, the stream cannot be found, and the key is free again. Once the store
        has been told that the stream starts, another start may join it. So from then on this start is completed.
        """
        stream_id = new_stream_id()
        if key is not None:
            digest = digest_of(request if identity is None else identity, label)
            holder = await self.store.claim(owner, key, digest, stream_id)
            if holder != stream_id:
                return await self.store.find(holder, owner), True
        try:
            model = self._check(request)
            stream_facts = StreamFacts(
                id=stream_id,
                owner=owner,
                # A copy is checked again, which takes a while for a large request.
                request=request if request.model == model else msgspec.structs.replace(request, model=model),
                on_disconnect=request.on_disconnect or on_disconnect,
                created_at=time.time(),
                for_apis=facts,
                label=label,
                keeps_input=keeps_input,
            )
            stream = await self._start(
                stream_facts,
                key,
                starts_with_reader=starts_with_reader,
                may_hold=may_hold,
                client_retries=client_retries,
            )
        except BaseException:
            await self._release(owner, key, stream_id)
            raise
        return stream, False

    async def find_started(self, key: str, *, owner: str, identity: object) -> Stream | None:
        """Find the stream that an idempotency key started. The arguments are those of `start_or_join`.

        For an API that cannot make the request of a repeated start any more.

        Raises:
            IdempotencyConflictError, StreamExpiredError, StreamNotFoundError: As `start_or_join`.

        Checkpoints: only while the store waits. Cancellation: safe.
        """
        stream_id = new_stream_id()
        holder = await self.store.claim(owner, key, digest_of(identity), stream_id)
        if holder != stream_id:
            return await self.store.find(holder, owner)
        await self._release(owner, key, stream_id)
        return None

    def _check(self, request: Request) -> str:
        """Check a request. Returns its model."""
        info = self.engine.info
        check_request(request, info, self.settings)
        return request.model or info.models[0]

    async def _start(
        self, facts: StreamFacts, key: str | None, *, starts_with_reader: bool, may_hold: bool, client_retries: bool
    ) -> Stream:
        self._check_takes_streams()
        # Asked once: while the stream runs, a router's engine may lose the model.
        assert facts.request.model is not None
        engine_info = engine_of(self.engine, facts.request.model).info
        held = may_hold and engine_info.waits_for_upstream
        log = await self.store.create(facts)
        generation = Generation(
            self.engine,
            facts,
            log,
            self.settings,
            self.metrics,
            engine_info.name,
            self.timers,
            self.batcher,
            starts_with_reader=starts_with_reader and not held,
            held=held,
            client_retries=client_retries,
        )
        stream = Stream(facts, log, generation, self.metrics, max_readers=self.settings.max_readers_per_stream)
        self._running.add(generation)
        generation.metrics.started[facts.request.mode] += 1
        try:
            await self._publish(generation, stream, key)
        except BaseException:
            generation.cancel()
            raise
        finally:
            # Not earlier. Otherwise a cancelled start would have called the engine, and a stream could end before the
            # store knows that it has started.
            if self._nursery is not None:
                self._nursery.start_soon(self._run_generation, generation, stream)
            else:  # the pipeline has been closed, so this only records the end
                generation.cancel("shutdown")
                await self._run_generation(generation, stream)
        return stream

    async def _publish(self, generation: Generation, stream: Stream, key: str | None) -> None:
        if generation.log.head < generation.log.pending_head:  # a cancel scope takes longer than a log in memory
            with trio.CancelScope() as scope:
                self._starting.add(scope)
                try:
                    await generation.log.flushed()
                finally:
                    self._starting.discard(scope)
        self._check_takes_streams()  # `create` and `flushed` may have waited
        try:
            with trio.fail_after(self.settings.flush_seconds, shield=True):
                await self.store.started(stream, key)
        except trio.TooSlowError:
            raise LogUnavailableError from None

    def _check_takes_streams(self) -> None:
        if self._nursery is None:
            raise trio.ClosedResourceError
        if self.draining:
            raise DrainingError

    async def _release(self, owner: str, key: str | None, stream_id: str) -> None:
        if key is not None:
            with trio.move_on_after(self.settings.flush_seconds, shield=True):
                await self.store.release(owner, key, stream_id)

    # Finding

    async def find(self, stream_id: str, *, owner: str | None = ANONYMOUS) -> Stream:
        """Find a stream.

        Args:
            stream_id: Its id.
            owner: Who asks. None for a caller that has shown the right to read this one stream in another way.

        Raises:
            StreamExpiredError: The stream was there and belonged to the owner, less than an hour ago.
            StreamNotFoundError: It is not there, or belongs to another owner.

        Checkpoints: only while the store waits. Cancellation: safe.
        """
        return await self.store.find(stream_id, owner)

    async def list(self, *, owner: str = ANONYMOUS) -> list[Stream]:
        """The owner's streams, newest first. Checkpoints: only while the store waits. Cancellation: safe."""
        return await self.store.list(owner)

    async def find_labelled(self, label: str, *, owner: str = ANONYMOUS) -> Stream | None:
        """The newest stream that the owner has started with a label. None if there is none, or it is gone.

        Checkpoints: only while the store waits. Cancellation: safe.
        """
        return await self.store.find_labelled(owner, label)

    # Ending

    async def forget(self, stream: Stream) -> None:
        """Cancel a stream and let no caller find it again. Attached readers still get the terminal record.

        Checkpoints: only while the store waits. Cancellation: the stream is cancelled, and may still be found.
        """
        stream.cancel()
        await self.store.forget(stream)

    async def discard(self, stream: Stream, key: str | None) -> None:
        """Forget a stream that was refused before it began, and give back its idempotency key. Cancellation: safe."""
        await self._release(stream.owner, key, stream.id)
        with trio.move_on_after(self.settings.flush_seconds, shield=True):
            await self.forget(stream)

    async def drain(self, timeout: float | None = None) -> None:
        """Start nothing new, let running streams finish, and stop those that do not.

        Readers stay attached, and one that is cut may attach again. They get `server.draining` now and the terminal
        record at the end.

        Args:
            timeout: How long streams may go on, in seconds. None is the setting. Then they end `cancelled` by
                `shutdown`.

        Returns when no stream is running, or `flush_seconds` later if an engine does not let go. Checkpoints: always.
        Cancellation: safe, the pipeline goes on refusing new streams.
        """
        await trio.lowlevel.checkpoint()
        self.draining = True
        self.store.wake_readers()
        with trio.move_on_after(self.settings.drain_seconds if timeout is None else timeout):
            await self._all_ended()
        for generation in self._running:
            generation.cancel("shutdown")
        with trio.move_on_after(self.settings.flush_seconds):
            await self._all_ended()

    async def _all_ended(self) -> None:
        while self._running:
            await self._ended.park()

    async def _run_generation(self, generation: Generation, stream: Stream) -> None:
        try:
            await generation.run()
        except* Exception:
            logger.exception("stream %s: internal error", stream.id)
            generation.fail_internally()
        finally:
            self._generation_ended(generation, stream)

    def _generation_ended(self, generation: Generation, stream: Stream) -> None:
        self._running.discard(generation)
        if not stream.facts.keeps_input:
            stream.release_input()
            generation.facts = stream.facts
        self.store.ended(stream)
        self._ended.unpark_all()
        terminal = generation.terminal  # not the stream's: it may not be visible yet
        assert terminal is not None
        status = status_of(terminal)
        generation.metrics.ended[status] += 1
        logger.info(
            "stream %s ended: engine=%s mode=%s status=%s pieces=%d first_token_ms=%s total_ms=%s",
            stream.id,
            generation.engine_name,
            stream.request.mode,
            status,
            generation.pieces,
            terminal.timings.first_token_ms,
            terminal.timings.total_ms,
        )


@asynccontextmanager
async def open_pipeline(engine: EngineSource, settings: Settings | None = None) -> AsyncIterator[Pipeline]:
    """Open a pipeline over an engine. `as_engine` says what an engine can be.

    Leaving it ends every running stream as `cancelled` by `shutdown`, so no stream outlives its pipeline. An error in
    the body is raised unchanged, not in a group.

    Raises:
        ConfigError: The Redis that `log_url` names cannot be used.
    """
    settings = settings or Settings()
    if settings.log_url is None:
        async with run_pipeline(Pipeline(as_engine(engine), settings)) as pipeline:
            yield pipeline
        return
    try:
        # Only where it is used: its client is not installed with this package.
        from crucible_trio.store.redis.store import open_redis_store
    except ImportError as error:
        message = "log_url needs the client of Redis: pip install 'crucible_trio[redis]'"
        raise ConfigError(message, "log_url") from error
    timers, metrics = Timers(), Metrics()
    async with open_redis_store(settings, timers, metrics) as store:
        shared = Pipeline(as_engine(engine), settings, timers=timers, store=store, metrics=metrics)
        async with run_pipeline(shared) as pipeline:
            yield pipeline


@asynccontextmanager
async def run_pipeline(pipeline: Pipeline) -> AsyncIterator[Pipeline]:
    """Run a pipeline while the context is open, as `open_pipeline` does."""
    async with background_tasks() as nursery:
        await nursery.start(pipeline.run)
        yield pipeline
