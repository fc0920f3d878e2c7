"""Tells Redis that this process is alive, and finds out what Redis has lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, final

import trio

from crucible_trio.store.memory import MemoryStore
from crucible_trio.store.redis.commits import ENDED_ELSEWHERE, OwnStream
from crucible_trio.store.redis.connection import Argument, RedisDownError, ResponseError
from crucible_trio.store.redis.health import Health, log_internal_error
from crucible_trio.store.redis.link import Link
from crucible_trio.store.redis.scripts import HEARTBEAT
from crucible_trio.store.redis.times import Times

logger = logging.getLogger(__name__)

_BEATS_PER_LEASE: Final = 3
# Streams in one call, which blocks Redis for less than a millisecond.
_STREAMS_PER_CALL: Final = 100
# Finished streams are looked at less often, because there may be many.
_BEATS_PER_LOOK: Final = 6
_PAUSE_SECONDS: Final = 0.2


@final
class Heartbeat:
    """Renews the leases of the streams that this process generates. `run` is its task.

    If Redis has lost a stream, or its last records, the process writes them again from its own memory. That includes
    finished streams, as long as it keeps them.

    Args:
        link: Where it writes.
        process: The id of this process.
        times: How long leases and keys live.
        health: Is told whether writes succeed.
        own: The running streams of this process.
        local: Keeps the finished ones.

    Attributes:
        finished: The finished streams of this process that can be written again.
    """

    def __init__(
        self,
        link: Link,
        process: str,
        times: Times,
        health: Health,
        own: Mapping[str, OwnStream],
        local: MemoryStore,
    ) -> None:
        self.finished: dict[str, OwnStream] = {}
        self._link = link
        self._first: tuple[Argument, ...] = (process, times.lease, times.running, times.gone)
        self._seconds = times.lease / 1000 / _BEATS_PER_LEASE
        self._health = health
        self._own = own
        self._local = local

    def ended(self, own: OwnStream) -> None:
        """A stream has ended."""
        self.finished[own.facts.id] = own

    async def run(self) -> None:
        """Beat until cancelled. No error leaves it."""
        beats = 0
        while True:
            await self._link.opened()
            try:
                await self._beat([own for own in self._own.values() if own.log.head])
                if beats % _BEATS_PER_LOOK == 0:
                    self._drop_unkept()
                    await self._beat(list(self.finished.values()))
            except RedisDownError as error:
                self._health.failed(str(error))
                await trio.sleep(_PAUSE_SECONDS)
                continue
            except (ResponseError, OSError) as error:
                self._health.failed(type(error).__name__)
            except Exception as error:
                log_internal_error("in the heartbeat", error)
            beats += 1
            await trio.sleep(self._seconds)

    def _drop_unkept(self) -> None:
        for stream_id, own in list(self.finished.items()):
            assert own.stream is not None
            if own.is_deleted:
                self._local.forget_now(own.stream)
            if not self._local.keeps(own.stream):
                del self.finished[stream_id]

    async def _beat(self, streams: Sequence[OwnStream]) -> None:
        for start in range(0, max(1, len(streams)), _STREAMS_PER_CALL):
            chunk = streams[start : start + _STREAMS_PER_CALL]
            arguments: list[Argument] = []
            for own in chunk:
                arguments += (own.facts.id, int(own.stream is not None and own.stream.paused))
            heads = [own.log.head for own in chunk]  # Redis had these records before it is asked
            answers = await self._link.script(HEARTBEAT, *self._first, *arguments)
            self._health.worked()
            for own, head, answer in zip(chunk, heads, answers, strict=True):
                self._compare(own, head, int(answer))

    def _compare(self, own: OwnStream, head: int, answer: int) -> None:
        log = own.log
        if answer == ENDED_ELSEWHERE:
            own.is_ended_elsewhere = not log.finished
            own.commit_later(log)
        elif 0 <= answer < head and not log.is_lost:
            logger.warning("stream %s: Redis has lost records, which are written again", own.facts.id)
            log.acknowledge(answer, ended=False)
