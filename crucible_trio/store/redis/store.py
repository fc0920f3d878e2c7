"""The store in Redis: its streams can be read, and its keys be used, from every process.

The process that runs a stream's engine has its log in memory too (`SharedLog`), and keeps the finished stream as the
store in memory does. All other streams are read from Redis (`Mirrors`).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final, final

import msgspec
import trio

from crucible_trio.background import background_tasks
from crucible_trio.config import Settings
from crucible_trio.errors import (
    IdempotencyConflictError,
    LogUnavailableError,
    OwnerLimitError,
    StreamExpiredError,
    StreamNotFoundError,
)
from crucible_trio.log.contract import Log
from crucible_trio.log.memory import ByteAccount
from crucible_trio.log.shared import SharedLog
from crucible_trio.metrics import Metrics
from crucible_trio.store.memory import ANONYMOUS, MemoryStore
from crucible_trio.store.redis import scripts
from crucible_trio.store.redis.address import parse_url
from crucible_trio.store.redis.checks import LinkCheck, first_connection
from crucible_trio.store.redis.commits import Commits, OwnStream
from crucible_trio.store.redis.connection import RedisDownError, ResponseError
from crucible_trio.store.redis.following import Follower
from crucible_trio.store.redis.health import Health, log_internal_error
from crucible_trio.store.redis.heartbeat import Heartbeat
from crucible_trio.store.redis.link import Link
from crucible_trio.store.redis.messages import Message, Outbox
from crucible_trio.store.redis.mirrors import Mirrors
from crucible_trio.store.redis.presence import Presence
from crucible_trio.store.redis.times import Times
from crucible_trio.stream import Stream, StreamFacts
from crucible_trio.timers import Timers

logger = logging.getLogger(__name__)

_WATCH_SECONDS: Final = 1.0
# How long a start waits before it asks again whether another start with its key is done.
_CLAIM_PAUSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2)


@final
class RedisStore:
    """Streams of several processes. `crucible_trio.store.contract.StreamStore` documents the methods.

    Args:
        settings: Limits and retention.
        timers: Fire when a stream's retention is over.
        metrics: The numbers of the readers.
        commands: The link for everything but the waiting for records.
        health: Whether Redis takes writes.
        nursery: Runs what goes on after a call has returned.
    """

    def __init__(
        self,
        settings: Settings,
        timers: Timers,
        metrics: Metrics,
        commands: Link,
        health: Health,
        nursery: trio.Nursery,
    ) -> None:
        self.process = secrets.token_hex(8)
        self._settings = settings
        self._times = Times.of(settings)
        self._link = commands
        self._health = health
        self._nursery = nursery
        self._own: dict[str, OwnStream] = {}  # streams whose generation has not ended
        self._creating: OwnStream
        self._claims: dict[str, bytes] = {}  # digests of the claimed keys, by the id of the stream that starts
        self._local = MemoryStore(settings, timers, new_log=self._new_log)
        self.commits = Commits(commands, self.process, self._times, health)
        self.outbox = Outbox(commands, self.process)
        self.mirrors = Mirrors(
            commands, self.process, self.outbox, settings, metrics, self._times, self._local, nursery
        )
        self._presence = Presence(self._own)
        self.heartbeat = Heartbeat(commands, self.process, self._times, health, self._own, self._local)

    @property
    def ready(self) -> bool:
        """Whether Redis takes records, or has not failed for long."""
        return not self._health.is_out

    @property
    def failures(self) -> int:
        """How often the connection was lost, or a write was refused."""
        return self._health.failures

    @property
    def running(self) -> int:
        """Streams of this process that have not ended."""
        return self._local.running

    @property
    def kept(self) -> int:
        """Finished streams that are in the memory of this process."""
        return self._local.kept + self.mirrors.finished

    @property
    def log_bytes(self) -> int:
        """Bytes of all logs and facts in the memory of this process."""
        return self._local.log_bytes

    # Starting

    async def claim(self, owner: str, key: str, digest: bytes, stream_id: str) -> str:
        """Claim an idempotency key."""
        name = scripts.idempotency_key(owner, key)
        pauses = iter(_CLAIM_PAUSES)
        self._check_ready()
        try:
            while True:
                answer = await self._link.patient(scripts.CLAIM, name, digest, stream_id, 2 * self._times.lease)
                if answer == -1:
                    raise IdempotencyConflictError  # noqa: TRY301 - the claim is released in any case
                if answer != 0:
                    break
                await trio.sleep(next(pauses, _CLAIM_PAUSES[-1]))
        except BaseException:
            self._later(scripts.RELEASE, name, stream_id)  # Redis may have executed a call without an answer
            raise
        holder = bytes(answer).decode()
        if holder == stream_id:
            self._claims[stream_id] = digest
        return holder

    async def release(self, owner: str, key: str, stream_id: str) -> None:
        """Give a claimed key back."""
        self._claims.pop(stream_id, None)
        with suppress(LogUnavailableError):  # then the claim lapses
            await self._link.patient(scripts.RELEASE, scripts.idempotency_key(owner, key), stream_id)

    async def create(self, facts: StreamFacts) -> Log:
        """Make the log of a new stream."""
        self._check_ready()
        try:
            if facts.owner != ANONYMOUS:
                limit = self._settings.max_streams_per_owner
                arguments = (facts.owner, facts.id, limit, 2 * self._times.lease)
                if not await self._link.patient(scripts.RESERVE, *arguments):
                    raise OwnerLimitError(limit)  # noqa: TRY301 - the handler takes the count back
            self._creating = OwnStream(facts, self.commits)
            log = await self._local.create(facts)  # without a checkpoint
        except BaseException:
            self._later(scripts.DROP, facts.id, facts.owner)
            raise
        self._own[facts.id] = self._creating
        return log

    def _new_log(self, *, room_without_readers: bool, account: ByteAccount | None) -> Log:
        own = self._creating
        own.log = SharedLog(
            own, room_without_readers=room_without_readers, slack=self._settings.log_slack_tokens, account=account
        )
        return own.log

    async def started(self, stream: Stream, key: str | None) -> None:
        """Let a stream be found."""
        own = self._own[stream.id]
        if key is not None:
            own.idempotency_key = scripts.idempotency_key(stream.owner, key)
            own.digest = self._claims.pop(stream.id)
        if stream.facts.label is not None:
            own.label_key = scripts.label_key(stream.owner, stream.facts.label)
        answer = await self._link.patient(
            scripts.START,
            stream.id,
            stream.owner,
            own.idempotency_key,
            own.digest,
            self._times.running,
            self._times.gone,
            own.label_key,
        )
        if not answer:
            raise LogUnavailableError
        own.stream = stream
        await self._local.started(stream, None)
        own.settled.set()

    # Finding

    async def find(self, stream_id: str, owner: str | None) -> Stream:
        """Find a stream."""
        try:
            return await self._local.find(stream_id, owner)
        except StreamExpiredError:  # this process may have evicted it
            with suppress(StreamNotFoundError):
                return await self._open(stream_id, owner)
            raise
        except StreamNotFoundError:
            own = self._own.get(stream_id)
            if own is None:
                return await self._open(stream_id, owner)
            if own.settled.is_set():  # of another owner, or deleted
                raise
            await own.settled.wait()  # Redis knew earlier than this process that it has started
            return await self._local.find(stream_id, owner)

    async def _open(self, stream_id: str, owner: str | None) -> Stream:
        self._check_ready()
        return await self.mirrors.open(stream_id, owner)

    async def find_labelled(self, owner: str, label: str) -> Stream | None:
        """Find the newest stream with a label."""
        self._check_ready()
        stream_id = await self._link.patient_call("GET", scripts.label_key(owner, label))
        if stream_id is None:
            return None
        with suppress(StreamNotFoundError, StreamExpiredError):
            return await self.find(bytes(stream_id).decode(), owner)
        return None

    async def count_readers(self, stream_id: str, *, attached: int = 0, away: int = 0) -> int:
        """Count the readers of a labelled stream that have not been sent the end."""
        change = secrets.token_hex(8)  # Redis counts it once, however often it is sent
        return int(await self._link.patient(scripts.COUNT_READERS, stream_id, attached, away, change))

    async def list(self, owner: str) -> list[Stream]:
        """The owner's streams, newest first. Those of other processes show their facts and their status."""
        self._check_ready()
        own = {stream.id: stream for stream in await self._local.list(owner)}
        streams: list[Stream] = []
        for entry in await self._link.patient(scripts.LIST, owner):
            stream_id = bytes(entry[0]).decode()
            stream = own.get(stream_id) or await self.mirrors.listed(stream_id, *entry[1:])
            if stream is not None:
                streams.append(stream)
        return streams

    # Ending

    def ended(self, stream: Stream) -> None:
        """Keep a stream whose generation has ended for its retention, if it was started and not forgotten."""
        own = self._own.pop(stream.id)
        own.settled.set()
        self._presence.ended(stream.id)
        self._claims.pop(stream.id, None)
        if own.log.is_lost:  # then it has no end here, and perhaps another one in Redis
            self._local.forget_now(stream)
        if own.stream is None:
            self._later(scripts.DROP, stream.id, stream.owner)
        else:
            self.heartbeat.ended(own)
        self._local.ended(stream)

    async def forget(self, stream: Stream) -> None:
        """Let no caller find a stream again."""
        await self._local.forget(stream)
        time = self._times.running + self._times.gone
        message = msgspec.json.encode(Message(self.process, forget=[stream.id]))
        await self._link.patient(scripts.FORGET, stream.id, stream.owner, time, message)

    def wake_readers(self) -> None:
        """Wake all waiting readers of this process."""
        self._local.wake_readers()
        for mirror in self.mirrors:
            mirror.log.wake()

    # Service

    def received(self, message: Message) -> None:
        """Another process has sent a message (`Inbox`)."""
        self._presence.report(message)
        asked = (self._own.get(stream_id) for stream_id in (*message.cancel, *message.forget))
        starting = [own for own in asked if own is not None and not own.settled.is_set()]
        if starting:  # Redis, and so another process, knew earlier than this process that they have started
            self._nursery.start_soon(self._end_later, message, starting)
        else:
            self._end(message)

    async def _end_later(self, message: Message, starting: Iterable[OwnStream]) -> None:
        for own in starting:
            await own.settled.wait()
        self._end(message)

    def _end(self, message: Message) -> None:
        for stream_id, by in message.cancel.items():
            if (own := self._own.get(stream_id)) is not None and own.stream is not None:
                own.stream.cancel(by)
        for stream_id in message.forget:
            if (own := self._own.get(stream_id) or self.heartbeat.finished.get(stream_id)) is not None:
                assert own.stream is not None
                self._local.forget_now(own.stream)

    async def watch(self) -> None:
        """Compare streams with Redis every second until cancelled. No error leaves it."""
        while True:
            try:
                self._presence.forget_silent()
                if self._health.is_out:
                    self._give_up()
                else:
                    await self.mirrors.watch()
            except (RedisDownError, ResponseError):
                pass
            except Exception as error:
                log_internal_error("while comparing streams", error)
            await trio.sleep(_WATCH_SECONDS)

    def _give_up(self) -> None:
        for own in list(self._own.values()):
            own.log.lose()
        for mirror in list(self.mirrors.running().values()):
            self.mirrors.lose(mirror)

    async def close(self) -> None:
        """Store the pending records and send the pending messages. Other processes are told that this one has gone."""
        await self.commits.empty()
        await self.outbox.empty()
        with suppress(RedisDownError, ResponseError):
            await self._link.call("DEL", scripts.control_key(self.process), scripts.alive_key(self.process))

    def _check_ready(self) -> None:
        if self._health.is_out:
            raise LogUnavailableError

    def _later(self, script: scripts.Script, *arguments: str) -> None:
        async def run() -> None:
            with suppress(LogUnavailableError, ResponseError):
                await self._link.patient(script, *arguments)

        self._nursery.start_soon(run)


@asynccontextmanager
async def open_redis_store(settings: Settings, timers: Timers, metrics: Metrics) -> AsyncIterator[RedisStore]:
    """Connect to the Redis of `log_url`, and run a store over it.

    Raises:
        ConfigError: The URL is wrong, Redis cannot be reached, or it does not fit.
    """
    assert settings.log_url is not None
    address = parse_url(settings.log_url)
    health = Health(settings.log_outage_seconds)
    check = LinkCheck(health)
    commands, reads = Link(address, check), Link(address, check)
    async with background_tasks() as nursery:
        nursery.start_soon(commands.run)
        await first_connection(commands, check)
        store = RedisStore(settings, timers, metrics, commands, health, nursery)
        follower = Follower(reads, store.process, store.mirrors, store)
        for task in (reads.run, store.commits.run, store.outbox.run, store.heartbeat.run, store.watch, follower.run):
            nursery.start_soon(task)
        try:
            yield store
        finally:
            with trio.move_on_after(settings.flush_seconds, shield=True):
                await store.close()
