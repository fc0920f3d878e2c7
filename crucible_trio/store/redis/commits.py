"""Stores the records of the streams that this process generates.

One task sends the pending records of all logs in one call. Records that are accepted during the call go with the next
one, so batches grow with the load and with Redis' distance, and no timer delays a record.
"""

from __future__ import annotations

import logging
from math import inf
from time import perf_counter
from typing import Final, final

import msgspec
import trio

from crucible_trio.log.shared import SharedLog
from crucible_trio.records import TERMINAL, decode_frame
from crucible_trio.store.redis.connection import Argument, RedisDownError, ResponseError
from crucible_trio.store.redis.health import Health, log_internal_error
from crucible_trio.store.redis.link import Link
from crucible_trio.store.redis.scripts import APPEND, SCHEMA, log_key
from crucible_trio.store.redis.times import Times
from crucible_trio.stream import Stream, StreamFacts

logger = logging.getLogger(__name__)

_MAX_FRAMES: Final = 64
_MAX_BYTES: Final = 64 * 1024
# A script blocks Redis. This much takes it some milliseconds.
_MAX_CALL_BYTES: Final = 1024 * 1024
# How long acknowledgements may run before other tasks do. Each one may record, and write to clients.
_SECONDS_PER_PASS: Final = 0.005
_PAUSE_SECONDS: Final = 0.1

ENDED_ELSEWHERE: Final = -2
DELETED: Final = -3


@final
class OwnStream:
    """A stream that this process generates, and what Redis must know to have it (`CommitService`).

    Attributes:
        facts: Its facts.
        log: Its log, once it is made.
        stream: The stream, once it has started.
        idempotency_key: The key in Redis under which its start is found again. Empty without one.
        digest: Of the request that the key belongs to.
        label_key: The key in Redis under which its label leads to it. Empty without one.
        settled: Set when the stream has started, or has ended without.
        is_ended_elsewhere: Whether another process has ended it, and its end has to be read.
        is_deleted: Whether Redis has refused it because it was deleted.
    """

    def __init__(self, facts: StreamFacts, commits: Commits) -> None:
        self.facts = facts
        self.log: SharedLog
        self.stream: Stream | None = None
        self.idempotency_key = ""
        self.digest = b""
        self.label_key = ""
        self.settled = trio.Event()
        self.is_ended_elsewhere = False
        self.is_deleted = False
        self._commits = commits

    def commit_later(self, log: SharedLog) -> None:
        """The log has something to store (`CommitService`)."""
        self._commits.add(self)

    def arguments(self) -> tuple[list[Argument], int]:
        """The arguments of `APPEND` for the next batch of the log, and about how many bytes they are."""
        batch = self.log.take(_MAX_FRAMES, _MAX_BYTES)
        facts: list[Argument] = []
        if batch.first == 1:
            facts = [
                self.facts.owner,
                msgspec.json.encode(self.facts),
                SCHEMA,
                "1" if self.stream is not None else "0",
                self.idempotency_key,
                self.digest,
                self.label_key,
            ]
        head: list[Argument] = [self.facts.id, batch.first, len(batch.frames), int(batch.last), len(facts)]
        size = sum(len(part) for part in (*facts, *batch.frames) if isinstance(part, bytes))
        return [*head, *facts, *batch.frames], size


@final
class Commits:
    """The commit service of one process. `run` is its task.

    Args:
        link: Where it writes.
        process: The id of this process.
        times: How long keys live.
        health: Is told whether writes succeed.
    """

    def __init__(self, link: Link, process: str, times: Times, health: Health) -> None:
        self._link = link
        self._first: tuple[Argument, ...] = (process, times.lease, times.running, times.kept, times.gone)
        self._health = health
        self._waiting: dict[OwnStream, None] = {}  # in the order in which they came
        self._most_streams = inf  # that go into one call
        self._changed = trio.lowlevel.ParkingLot()

    def add(self, own: OwnStream) -> None:
        """A stream has something to store."""
        self._waiting[own] = None
        if self._changed:
            self._changed.unpark_all()

    async def run(self) -> None:
        """Store records until cancelled. No error leaves it."""
        while True:
            while not self._waiting:
                await self._changed.park()
            await self._link.opened()
            try:
                await self._commit()
            except RedisDownError as error:
                self._health.failed(str(error))
                await trio.sleep(_PAUSE_SECONDS)
            except Exception as error:
                log_internal_error("while storing records", error)
                await trio.sleep(_PAUSE_SECONDS)

    async def empty(self) -> None:
        """Wait until nothing is pending, for a shutdown. Checkpoints: only if it has to wait."""
        while self._waiting:  # noqa: ASYNC110 - only at the end of the process
            await trio.sleep(_PAUSE_SECONDS)

    async def _commit(self) -> None:
        arguments, taken = self._take()
        try:
            answers = await self._link.script(APPEND, *arguments)
        except ResponseError:
            # Redis refuses one of them, such as one whose key another program has changed. Behind all others, and in
            # ever smaller calls, it does not stop them.
            self._waiting |= dict.fromkeys(taken)
            self._most_streams = max(1.0, len(taken) / 2)
            raise
        except BaseException:
            # Before those that were added meanwhile. Redis skips the records that it has.
            self._waiting = dict.fromkeys(taken) | self._waiting
            raise
        self._health.worked()
        self._most_streams *= 2
        until = perf_counter() + _SECONDS_PER_PASS
        for own, answer in zip(taken, answers, strict=True):
            try:
                self._acknowledge(own, int(answer))
                if own.is_ended_elsewhere:
                    await self._take_end(own)
            except (RedisDownError, ResponseError):
                self.add(own)
            except Exception as error:  # of this stream alone
                log_internal_error(f"in stream {own.facts.id}", error)
            if perf_counter() > until:
                await trio.lowlevel.checkpoint()
                until = perf_counter() + _SECONDS_PER_PASS

    def _take(self) -> tuple[list[Argument], list[OwnStream]]:
        arguments: list[Argument] = [*self._first]
        taken: list[OwnStream] = []
        size = 0
        while self._waiting and size < _MAX_CALL_BYTES and len(taken) < self._most_streams:
            own = next(iter(self._waiting))
            del self._waiting[own]
            if own.log.needs_commit or own.is_ended_elsewhere:
                more, its_size = own.arguments()
                arguments += more
                size += its_size
                taken.append(own)
        return arguments, taken

    def _acknowledge(self, own: OwnStream, answer: int) -> None:
        log = own.log
        if answer >= 0:
            head = min(answer, log.pending_head)
            log.acknowledge(head, ended=log.closed and head == log.pending_head)
        elif answer == ENDED_ELSEWHERE:
            own.is_ended_elsewhere = True
        elif answer == DELETED:
            own.is_deleted = True
            # No process finds the stream any more. The readers that are attached here get the rest.
            log.acknowledge(log.pending_head, ended=log.closed)

    async def _take_end(self, own: OwnStream) -> None:
        """Another process has ended the stream: read its end, so that readers here get the same as all others.

        Raises:
            RedisDownError, ResponseError: Redis did not answer.
        """
        log = own.log
        if log.finished or log.is_lost:
            own.is_ended_elsewhere = False
            return
        entries = await self._link.call("XRANGE", log_key(own.facts.id), "-", "+")
        frames = [fields[1] for _, fields in entries or ()]
        own.is_ended_elsewhere = False
        terminal = decode_frame(frames[-1]) if len(frames) > log.head else None
        if not isinstance(terminal, TERMINAL) or frames[: log.head] != log.read(0):
            log.lose()
            return
        logger.warning("stream %s: another process took this one for dead and has ended the stream", own.facts.id)
        log.end_elsewhere(frames[log.head :], terminal)
