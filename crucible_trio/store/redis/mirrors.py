"""The mirrors of one process: opens them, keeps them up to date, and ends the streams of processes that died."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from math import inf
from typing import Final, NamedTuple, final

import msgspec
import trio

from crucible_trio.config import Settings
from crucible_trio.errors import (
    CrucibleError,
    LogUnavailableError,
    StreamExpiredError,
    StreamNotFoundError,
)
from crucible_trio.log.memory import ByteAccount
from crucible_trio.metrics import Metrics
from crucible_trio.store.redis.connection import RedisDownError, ResponseError
from crucible_trio.store.redis.health import log_internal_error
from crucible_trio.store.redis.link import PATIENCE_SECONDS, Link
from crucible_trio.store.redis.listed import ListedLog
from crucible_trio.store.redis.messages import Outbox
from crucible_trio.store.redis.mirror import Mirror
from crucible_trio.store.redis.scripts import CHECK, LOOK, SCHEMA, SEAL, control_key, log_key
from crucible_trio.store.redis.sealing import sealing_frames
from crucible_trio.store.redis.times import Times
from crucible_trio.stream import Stream, StreamFacts

logger = logging.getLogger(__name__)

# Records of a page: as many as are about this many bytes, by the size of those before.
_PAGE_BYTES: Final = 1024 * 1024
_FIRST_PAGE: Final = 256
_LARGEST_PAGE: Final = 4096
_MESSAGES: Final = 256
_LINGER_SECONDS: Final = 10.0
# A process repeats where its readers are, in case that a report was lost.
_REPORT_SECONDS: Final = 5.0
# Leases after which a stream that Redis has lost is given up. Its own process writes it again within one.
_LOST_LEASES: Final = 3


class Look(NamedTuple):
    """What Redis knows of a stream: the answer of `LOOK`."""

    epoch: bytes | None
    head: bytes | None
    state: bytes | None
    owner: bytes | None
    schema: bytes | None
    started: bytes | None
    forgotten: bytes | None
    lease: bytes | None
    gone: bytes | None
    facts: bytes | None


@final
class Mirrors:
    """The mirrors of one process.

    Args:
        link: Where they are read.
        process: The id of this process.
        outbox: Messages to other processes.
        settings: Limits.
        metrics: The numbers of the readers.
        times: How long keys live.
        account: Counts the bytes of the mirrors.
        nursery: Runs the opening of mirrors.

    """

    def __init__(
        self,
        link: Link,
        process: str,
        outbox: Outbox,
        settings: Settings,
        metrics: Metrics,
        times: Times,
        account: ByteAccount,
        nursery: trio.Nursery,
    ) -> None:
        self._link = link
        self._process = process
        self._outbox = outbox
        self._settings = settings
        self._metrics = metrics
        self._times = times
        self._account = account
        self._nursery = nursery
        self._mirrors: dict[str, Mirror] = {}
        self._reported_at = -inf
        self._slow_at = -inf  # when Redis last took long to answer

    def __iter__(self) -> Iterator[Mirror]:
        return iter(self._mirrors.values())

    @property
    def finished(self) -> int:
        """How many mirrors are of finished streams."""
        return sum(mirror.log.finished for mirror in self)

    def running(self) -> dict[bytes, Mirror]:
        """The open mirrors whose streams go on, by the key of their records."""
        return {
            log_key(mirror.id).encode(): mirror
            for mirror in self
            if mirror.stream is not None and not mirror.log.finished
        }

    async def listed(
        self,
        stream_id: str,
        head: int,
        state: bytes,
        lease: bytes | None,
        schema: bytes | None,
        facts: bytes,
        last: bytes | None,
    ) -> Stream | None:
        """A stream in a list: its facts and its status, without its records.

        Returns:
            None if a newer version wrote it, or if it is gone since the list was made.

        Raises:
            LogUnavailableError: Redis does not answer.

        Checkpoints: only if the process of the stream is dead. Then the stream is opened, which ends it.
        """
        if int(schema or 0) > SCHEMA:
            return None
        if state == b"r" and lease is None:
            try:
                return await self.open(stream_id, None)
            except (StreamNotFoundError, StreamExpiredError):
                return None
            except LogUnavailableError:
                if self._link.since == inf:
                    raise
                # Redis has lost records of this stream. The others can be listed.
        mirror = Mirror(stream_id, self._outbox, self._account)
        mirror.lease_is(lease)
        log = ListedLog(head, last if state == b"d" else None)
        decoded = msgspec.json.decode(facts, type=StreamFacts)
        return Stream(decoded, log, mirror, self._metrics, max_readers=self._settings.max_readers_per_stream)

    # Opening

    async def open(self, stream_id: str, owner: str | None) -> Stream:
        """Find a stream of another process. Its log has everything that Redis has now.

        Raises:
            StreamNotFoundError, StreamExpiredError: As `StreamStore.find`.
            LogUnavailableError: Redis does not answer, or a newer version has written the stream.

        Checkpoints: always. Cancellation: safe.
        """
        mirror = self._mirrors.get(stream_id)
        try:
            if mirror is None:
                mirror = self._mirrors[stream_id] = Mirror(stream_id, self._outbox, self._account)
                self._nursery.start_soon(self._open, mirror)
            elif mirror.opened.is_set():
                mirror.used_at = trio.current_time()
                await self._catch_up(mirror)
            await mirror.opened.wait()
            if mirror.failure is not None:
                raise mirror.failure
        except StreamExpiredError:
            if mirror is None or owner not in {None, mirror.owner}:
                raise StreamNotFoundError from None
            raise
        except (RedisDownError, ResponseError):
            raise LogUnavailableError from None
        assert mirror.stream is not None
        if owner not in {None, mirror.owner}:
            raise StreamNotFoundError
        return mirror.stream

    async def _open(self, mirror: Mirror) -> None:
        try:
            look = await self._look(mirror, with_facts=True)
            facts = msgspec.json.decode(look.facts or b"", type=StreamFacts)
            await self._read(mirror, int(look.head or 0))
            mirror.stream = Stream(
                facts, mirror.log, mirror, self._metrics, max_readers=self._settings.max_readers_per_stream
            )
            mirror.lease_is(look.lease)
            if look.lease is None and not mirror.log.finished:
                await self._seal(mirror, int(look.head or 0))
            if not mirror.log.finished:
                # A message to this process ends the read that waits without this stream.
                await self._link.call("XADD", control_key(self._process), "MAXLEN", "~", _MESSAGES, "*", "m", b"")
        except Exception as error:
            if not isinstance(error, CrucibleError | RedisDownError):
                log_internal_error(f"while reading stream {mirror.id}", error)
            mirror.failure = error if isinstance(error, CrucibleError) else LogUnavailableError()
            self.drop(mirror)
        finally:
            mirror.opened.set()

    async def _catch_up(self, mirror: Mirror) -> None:
        try:
            look = await self._look(mirror, with_facts=False)
        except (StreamNotFoundError, StreamExpiredError):
            if not mirror.is_used:
                self.drop(mirror)
            raise
        if not mirror.log.finished:
            await self._read(mirror, int(look.head or 0))
        mirror.lease_is(look.lease)
        if look.lease is None and not mirror.log.finished:
            await self._seal(mirror, int(look.head or 0))

    async def _look(self, mirror: Mirror, *, with_facts: bool) -> Look:
        look = Look(*await self._link.patient(LOOK, mirror.id, int(with_facts)))
        if look.epoch is None:
            if look.gone is not None and look.gone.startswith(b"o"):
                mirror.owner = look.gone[1:].decode()
                raise StreamExpiredError
            raise StreamNotFoundError
        mirror.owner = (look.owner or b"").decode()
        if int(look.schema or 0) > SCHEMA:
            message = "a newer version of this server has written this stream: ask another process"
            raise LogUnavailableError(message)
        if look.forgotten is not None or look.started is None:
            raise StreamNotFoundError
        return look

    async def _read(self, mirror: Mirror, head: int) -> None:
        """Read until the mirror has the record `head`.

        Raises:
            LogUnavailableError: Redis does not answer, or has lost the records.
        """
        with trio.move_on_after(PATIENCE_SECONDS):
            while mirror.log.head < head and not mirror.is_dropped:
                await self._link.opened()
                try:
                    if not await self._page(mirror):
                        break
                except (RedisDownError, ResponseError):
                    await trio.sleep(0.1)
        if mirror.log.head < head:
            raise LogUnavailableError

    async def _page(self, mirror: Mirror) -> bool:
        """Read a page. Returns whether there was anything, without a gap."""
        async with mirror.reading:  # two tasks would read the same page
            after = f"({mirror.position}"
            count = _FIRST_PAGE
            if mirror.log.head:
                count = max(_FIRST_PAGE, min(_LARGEST_PAGE, _PAGE_BYTES * mirror.log.head // mirror.log.size_bytes))
            entries = await self._link.call("XRANGE", log_key(mirror.id), after, "+", "COUNT", count)
            return mirror.feed(entries or ()) and bool(entries)

    # Watching

    async def watch(self) -> None:
        """Compare the mirrors with Redis, as `run` of the store does every second.

        Reads missed records, ends streams whose process is dead, and drops mirrors that no reader needs.

        Raises:
            RedisDownError, ResponseError: Redis does not answer.
        """
        now = trio.current_time()
        for mirror in list(self):
            if mirror.opened.is_set() and not mirror.is_used and now > mirror.used_at + _LINGER_SECONDS:
                self.drop(mirror)
        running = list(self.running().values())
        if not running:
            return
        if now >= self._reported_at + _REPORT_SECONDS:
            self._reported_at = now
            for mirror in running:
                if mirror.log.readers:
                    mirror.report_now()
        answers = await self._link.script(CHECK, *(mirror.id for mirror in running))
        if trio.current_time() > now + self._times.lease / 1000 / 4:
            self._slow_at = trio.current_time()
        for mirror, answer in zip(running, answers, strict=True):
            try:
                await self._compare(mirror, *answer)
            except CrucibleError:
                logger.warning("stream %s cannot be read up to its head", mirror.id)

    async def _compare(self, mirror: Mirror, head: int, state: bytes | None, lease: bytes | None) -> None:
        now = trio.current_time()
        if head < 0:
            mirror.missing_since = now if mirror.missing_since is None else mirror.missing_since
            if now > mirror.missing_since + _LOST_LEASES * self._times.lease / 1000:
                self.lose(mirror)
            return
        mirror.missing_since = None
        mirror.lease_is(lease)
        if head > mirror.log.head:
            await self._read(mirror, head)
        if mirror.log.finished:
            return
        if state == b"d":
            self.lose(mirror)  # ended by a process that had less of it than this one
        elif lease is None:
            await self._seal(mirror, head)

    async def _seal(self, mirror: Mirror, head: int) -> None:
        """End a stream whose process is dead. Does nothing as long as leases may have lapsed during an outage."""
        if trio.current_time() < max(self._link.since, self._slow_at) + self._times.lease / 1000:
            return
        frames = mirror.log.read(0)
        assert mirror.stream is not None
        sealing = sealing_frames(mirror.id, frames, time.time() - mirror.stream.created_at)
        # If Redis has lost the last records together with the process, this mirror still has them.
        numbers = (head + 1, self._times.kept, self._times.gone)
        new_head = int(await self._link.script(SEAL, mirror.id, *numbers, *frames[head:], *sealing))
        if new_head > 0:
            logger.warning("stream %s: its process is lost, so this one has ended it", mirror.id)
            await self._read(mirror, new_head)

    def lose(self, mirror: Mirror) -> None:
        """Give a running stream up. Its readers get `LogLostError`."""
        mirror.log.lose()
        self.drop(mirror)

    def drop(self, mirror: Mirror) -> None:
        """Forget a mirror. Attached readers keep its records."""
        if self._mirrors.get(mirror.id) is mirror:
            del self._mirrors[mirror.id]
            mirror.is_dropped = True
            self._account.log_grew(-mirror.log.size_bytes)
