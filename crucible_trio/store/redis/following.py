"""One task that waits for the new records of all mirrors and for the messages to this process."""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Final, Protocol, final

import trio

from crucible_trio.store.redis.connection import Argument, RedisDownError
from crucible_trio.store.redis.health import log_internal_error
from crucible_trio.store.redis.link import Link
from crucible_trio.store.redis.messages import Message, decode_message
from crucible_trio.store.redis.mirrors import Mirrors
from crucible_trio.store.redis.scripts import control_key

logger = logging.getLogger(__name__)

_BLOCK_MILLISECONDS: Final = 1000
_COUNT: Final = 128  # records of each stream at a time
_SECONDS_PER_PASS: Final = 0.005
# Between two reads, for each stream and at most. Each read costs Redis and this process something for each stream, so
# with many streams a short wait, in which records gather, saves most of it.
_SPACING_SECONDS: Final = 0.0001
_MAX_SPACING_SECONDS: Final = 0.01
_PAUSE_SECONDS: Final = 0.1


class Inbox(Protocol):
    """Gets the messages to this process."""

    def received(self, message: Message) -> None:
        """A message has come."""


@final
class Follower:
    """Follows the streams of other processes. `run` is its task.

    Args:
        link: Its own link, because it blocks.
        process: The id of this process.
        mirrors: What to follow.
        inbox: Gets the messages.
    """

    def __init__(self, link: Link, process: str, mirrors: Mirrors, inbox: Inbox) -> None:
        self._link = link
        self._control = control_key(process).encode()
        self._last_message = b"0"
        self._mirrors = mirrors
        self._inbox = inbox

    async def run(self) -> None:
        """Follow until cancelled. No error leaves it."""
        while True:
            await self._link.opened()
            try:
                await self._read()
            except RedisDownError:
                await trio.sleep(_PAUSE_SECONDS)
            except Exception as error:
                log_internal_error("while reading records", error)
                await trio.sleep(_PAUSE_SECONDS)

    async def _read(self) -> None:
        running = self._mirrors.running()
        keys: list[Argument] = [self._control, *running]
        ids: list[Argument] = [self._last_message, *(mirror.position for mirror in running.values())]
        command = ("XREAD", "COUNT", _COUNT, "BLOCK", _BLOCK_MILLISECONDS, "STREAMS", *keys, *ids)
        answer = await self._link.call(*command, seconds=_BLOCK_MILLISECONDS / 1000 + 4)
        until = perf_counter() + _SECONDS_PER_PASS
        for key, entries in answer or ():
            try:
                if key == self._control:
                    self._receive(entries)
                elif (mirror := running.get(key)) is not None:
                    mirror.feed(entries)  # if something is missing, `Mirrors.watch` reads it
            except Exception as error:  # of this stream alone
                log_internal_error("while reading records", error)
            if perf_counter() > until:
                await trio.lowlevel.checkpoint()
                until = perf_counter() + _SECONDS_PER_PASS
        await trio.sleep(min(_SPACING_SECONDS * len(running), _MAX_SPACING_SECONDS))

    def _receive(self, entries: list[tuple[bytes, list[bytes]]]) -> None:
        for entry_id, (_, data) in entries:
            self._last_message = entry_id
            message = decode_message(data) if data else None
            if message is not None:
                self._inbox.received(message)
