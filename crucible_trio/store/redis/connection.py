"""One open connection to Redis: sends the commands of all tasks in order, and gives each answer to its command.

hiredis, the parser of Redis' own clients, packs the commands and parses the answers without I/O.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, TypeAlias, final

import trio
from hiredis import Reader, pack_command

Argument: TypeAlias = str | bytes | int

# Longer than Redis needs for the largest request, a stream's facts of 20 MiB.
_REPLY_SECONDS: Final = 5.0
READ_ONLY: Final = "READONLY"
"""The text of the `RedisDownError` of a replica."""

# Errors that may pass: Redis is full, starts, cannot write its files, runs a long script, is a replica, or has too many
# clients. An error in a script has the word somewhere in its text.
_PASSING: Final = (
    "OOM", "LOADING", "MISCONF", "BUSY", READ_ONLY, "MASTERDOWN", "NOREPLICAS", "max number of clients",
)  # fmt: skip
_MISSING: Final = object()  # an answer may be None


class RedisDownError(Exception):
    """Redis did not answer, or refuses writes for now. The command may have been executed."""


class ResponseError(Exception):
    """Redis answered with an error that lasts.

    Attributes:
        code: Its first word, such as `NOSCRIPT`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


def _error(text: str) -> Exception:
    for word in _PASSING:
        if f"{word} " in text:
            return RedisDownError(word)
    return ResponseError(text)


@final
class _Answer:
    """Where the answer to one command arrives."""

    __slots__ = ("arrived", "value")

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.value: Any = _MISSING


@final
class Connection:
    """A connection. `run` is its task.

    A task may be cancelled while it waits for an answer, which is then dropped. So a command never has to be taken
    back, and the others get their own answers.

    Args:
        stream: The bytes from and to Redis. `run` closes it.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._reader = Reader(protocolError=RedisDownError, replyError=_error, notEnoughData=_MISSING)
        self._unsent: list[bytes] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._answers: deque[_Answer] = deque()
        self._scope = trio.CancelScope()
        self._is_closed = False

    async def run(self) -> None:
        """Send and receive until the connection is closed or breaks.

        Raises:
            ExceptionGroup: Of `RedisDownError` if the other side does not speak the protocol of Redis, and of
                `trio.BrokenResourceError` if the connection breaks.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._receive)
        finally:
            self._is_closed = True
            for answer in self._answers:
                answer.arrived.set()
            await trio.aclose_forcefully(self._stream)

    async def call(self, *command: Argument, seconds: float | None = None) -> Any:  # noqa: ANN401
        """Send a command.

        Args:
            command: The command and its arguments.
            seconds: How long to wait for the answer. Then the connection is closed. None is five seconds.

        Raises:
            RedisDownError: No answer came, or Redis refuses writes for now. The command may have been executed.
            ResponseError: Redis answered with another error.

        Checkpoints: always. Cancellation: safe, and the command may have been executed.
        """
        answer = _Answer()
        if self._is_closed:
            answer.arrived.set()
        else:
            self._unsent.append(pack_command(command))  # type: ignore[arg-type]  # its types allow one argument
            self._answers.append(answer)
            self._changed.unpark_all()
        with trio.move_on_after(_REPLY_SECONDS if seconds is None else seconds) as scope:
            await answer.arrived.wait()
        if answer.value is _MISSING:
            self.close()  # Redis hangs, or the network has lost the connection
            raise RedisDownError("no answer in time" if scope.cancelled_caught else "the connection was closed")
        if isinstance(answer.value, Exception):
            raise answer.value
        return answer.value

    def close(self) -> None:
        """Close the connection. Calls that wait get `RedisDownError`."""
        self._scope.cancel()

    async def _send(self) -> None:
        while True:
            while not self._unsent:
                await self._changed.park()
            data = b"".join(self._unsent)
            self._unsent.clear()
            await self._stream.send_all(data)

    async def _receive(self) -> None:
        while data := await self._stream.receive_some():
            self._reader.feed(bytes(data))
            while (value := self._reader.gets()) is not _MISSING:
                if not self._answers:
                    message = "Redis sent an answer without a command"
                    raise RedisDownError(message)
                answer = self._answers.popleft()
                answer.value = value
                answer.arrived.set()
        self._scope.cancel()
