"""Messages between processes: which readers have got how far, and what clients ask the generating process to do."""

from __future__ import annotations

import logging
from typing import Final, final

import msgspec
import trio

from crucible_trio.records import CancelledBy
from crucible_trio.store.redis.connection import RedisDownError, ResponseError
from crucible_trio.store.redis.link import Link
from crucible_trio.store.redis.scripts import control_key

logger = logging.getLogger(__name__)

# Enough for a process that was stopped for a minute. Older ones are repeated or have become useless.
_MAX_MESSAGES: Final = 10_000
_PAUSE_SECONDS: Final = 0.1
# Between two messages to one process. The slack of its logs covers it.
_SPACING_SECONDS: Final = 0.002


@final
class Message(msgspec.Struct, omit_defaults=True):
    """A message to the process that generates some streams.

    Attributes:
        sender: The process that sends it.
        readers: By the stream's id: how many readers the sender has, and how far the furthest has got.
        cancel: Streams to cancel, and by whom.
        forget: Streams that were deleted.
    """

    sender: str
    readers: dict[str, tuple[int, int]] = {}
    cancel: dict[str, CancelledBy] = {}
    forget: list[str] = []


_decoder = msgspec.json.Decoder(Message)


def decode_message(data: bytes) -> Message | None:
    """Decode a message. None if it is not one, such as one of a newer version."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError):
        return None


@final
class Outbox:
    """Sends messages. `run` is its task. Everything for one process goes in one message.

    Args:
        link: Where it writes.
        process: The id of this process.
    """

    def __init__(self, link: Link, process: str) -> None:
        self._link = link
        self._process = process
        self._messages: dict[str, Message] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def to(self, process: str) -> Message:
        """The next message to a process, to add something to it."""
        self._changed.unpark_all()
        return self._messages.setdefault(process, Message(self._process))

    async def run(self) -> None:
        """Send until cancelled. No error leaves it."""
        while True:
            while not self._messages:
                await self._changed.park()
            await self._link.opened()
            await self._send()
            await trio.sleep(_SPACING_SECONDS)

    async def empty(self) -> None:
        """Wait until everything is sent, for a shutdown. Checkpoints: only if it has to wait."""
        while self._messages:  # noqa: ASYNC110 - only at the end of the process
            await trio.sleep(_PAUSE_SECONDS)

    async def _send(self) -> None:
        process = next(iter(self._messages))
        message = self._messages.pop(process)
        data = msgspec.json.encode(message)
        try:
            # NOMKSTREAM: a process that is dead has no stream, and gets none.
            command = ("XADD", control_key(process), "NOMKSTREAM", "MAXLEN", "~", _MAX_MESSAGES, "*", "m", data)
            await self._link.call(*command)
        except (RedisDownError, ResponseError):
            newer = self._messages.get(process)
            if newer is not None:
                message = Message(
                    self._process,
                    message.readers | newer.readers,
                    message.cancel | newer.cancel,
                    message.forget + newer.forget,
                )
            self._messages[process] = message
            await trio.sleep(_PAUSE_SECONDS)
