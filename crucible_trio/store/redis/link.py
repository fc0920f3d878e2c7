"""One connection to Redis, which is made anew whenever it breaks.

A link uses coredis' connection and not its client: the client's pool loses a place whenever a blocking call is
cancelled. A connection sends the commands of all tasks in order and matches the answers, so a task may be cancelled
while it waits. The answer is then dropped.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final, Protocol, TypeAlias, final

import trio
from coredis.connection import BaseConnection
from coredis.exceptions import (
    AuthenticationFailureError,
    AuthenticationRequiredError,
    AuthorizationError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError

from crucible_trio.errors import LogUnavailableError
from crucible_trio.store.redis.scripts import Script

logger = logging.getLogger(__name__)
# coredis logs a traceback for each failed attempt. This module says once that the connection is lost.
logging.getLogger("coredis").setLevel(logging.CRITICAL)

Argument: TypeAlias = str | bytes | int

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
# How long a request waits for Redis before it is refused.
PATIENCE_SECONDS: Final = 5.0
# Errors that may pass: Redis is full, starts, cannot write its files, runs a long script, or is a replica. An error in
# a script has the word somewhere in its text.
_PASSING: Final = ("OOM", "LOADING", "MISCONF", "BUSY", "READONLY", "MASTERDOWN", "NOREPLICAS")


class RedisDownError(Exception):
    """Redis did not answer, or refuses writes for now. The command may have been executed."""


class LinkWatcher(Protocol):
    """Is told how a link is."""

    async def prepare(self, call: Caller) -> None:
        """A new connection is open. Nothing else is sent before this returns."""

    def failed(self, reason: str) -> None:
        """The connection is lost, or Redis refuses writes."""


class Server(Protocol):
    """Where to connect to: a `RedisAddress`."""

    async def check(self) -> bool:
        """Whether something listens there."""

    def connection(self) -> BaseConnection:
        """A connection that has not been opened."""


class Caller(Protocol):
    """Sends one command."""

    async def __call__(self, *command: Argument, seconds: float | None = None) -> Any:  # noqa: ANN401
        """Send a command and return its answer."""


@final
class Link:
    """A connection that is kept open while `run` runs.

    Args:
        server: Where to connect to.
        watcher: Is told how the link is.

    Attributes:
        since: When the connection was opened, `inf` while there is none.
    """

    def __init__(self, server: Server, watcher: LinkWatcher) -> None:
        self.since = inf
        self._server = server
        self._watcher = watcher
        self._connection: BaseConnection | None = None
        self._is_refused = False
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Keep the connection open until cancelled. No error leaves it."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    pause = await self._open(nursery)
            except* (RedisError, OSError, trio.TooSlowError, TimeoutError, RedisDownError) as errors:
                error = _first_of(errors)
                self._is_refused = _lasts(error)
                self._lost(_reason(error))
            else:
                self._lost("the connection was closed")
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _open(self, nursery: trio.Nursery) -> float:
        if not await self._server.check():
            message = "nothing listens there"
            raise RedisDownError(message)
        connection = self._server.connection()
        await nursery.start(connection.run)

        async def call(*command: Argument, seconds: float | None = None) -> Any:  # noqa: ANN401
            return await _ask(connection, command, seconds)

        await self._watcher.prepare(call)
        self._connection = connection
        self.since = trio.current_time()
        self._changed.unpark_all()
        return _FIRST_PAUSE_SECONDS

    def _lost(self, reason: str) -> None:
        self._connection = None
        self.since = inf
        self._watcher.failed(reason)
        self._changed.unpark_all()

    async def opened(self) -> None:
        """Wait until there is a connection. Checkpoints: only if it has to wait. Cancellation: safe."""
        while self._connection is None:
            await self._changed.park()

    async def opened_or_refused(self) -> bool:
        """Wait until there is a connection, or until Redis has refused one for a reason that lasts.

        Returns:
            Whether there is a connection.

        Checkpoints: only if it has to wait. Cancellation: safe.
        """
        while self._connection is None and not self._is_refused:
            await self._changed.park()
        return self._connection is not None

    async def call(self, *command: Argument, seconds: float | None = None) -> Any:  # noqa: ANN401
        """Send a command.

        Args:
            command: The command and its arguments.
            seconds: How long to wait for the answer. None is the connection's own limit.

        Raises:
            RedisDownError: No answer came, or Redis refuses writes for now. The command may have been executed.
            coredis.exceptions.ResponseError: Redis answered with another error.

        Checkpoints: always. Cancellation: safe, and the command may have been executed.
        """
        connection = self._connection
        if connection is None:
            await trio.lowlevel.checkpoint()
            message = "not connected"
            raise RedisDownError(message)
        return await _ask(connection, command, seconds)

    async def script(self, script: Script, *arguments: Argument) -> Any:  # noqa: ANN401
        """Run a script. Raises and waits as `call`."""
        try:
            return await self.call("EVALSHA", script.sha, 0, *arguments)
        except NoScriptError:  # Redis was restarted, or its scripts were flushed
            return await self.call("EVAL", script.text, 0, *arguments)

    async def patient(self, script: Script, *arguments: Argument) -> Any:  # noqa: ANN401
        """Run a script that may be repeated, as often as it takes.

        Raises:
            LogUnavailableError: Redis did not answer for some seconds.

        Checkpoints: always. Cancellation: as `call`.
        """
        return await self._repeat(partial(self.script, script, *arguments))

    async def patient_call(self, *command: Argument) -> Any:  # noqa: ANN401
        """The same for a command."""
        return await self._repeat(partial(self.call, *command))

    async def _repeat(self, ask: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                await self.opened()
                try:
                    return await ask()
                except RedisDownError:
                    await trio.sleep(_FIRST_PAUSE_SECONDS)
        raise LogUnavailableError

    def drop(self) -> None:
        """Close the connection, so that another one is made."""
        if self._connection is not None:
            self._connection.invalidate(None)


async def _ask(connection: BaseConnection, command: Sequence[Argument], seconds: float | None) -> Any:  # noqa: ANN401
    name, *arguments = command
    assert isinstance(name, str)
    try:
        return await connection.create_request(name.encode(), *arguments, decode=False, timeout=seconds)
    except (RedisConnectionError, TimeoutError, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        with suppress(ReferenceError):
            connection.invalidate(None)  # its next answer may belong to this command
        raise RedisDownError(type(error).__name__) from error
    except ResponseError as error:
        word = _passing_word(error)
        if word is not None:
            raise RedisDownError(word) from error
        raise


def _passing_word(error: ResponseError) -> str | None:
    if isinstance(error, ReadOnlyError):  # coredis takes the word out of its text
        return "READONLY"
    return next((word for word in _PASSING if f"{word} " in str(error)), None)


def _lasts(error: BaseException) -> bool:
    """Whether the next attempt to connect would get the same answer."""
    if isinstance(error, ResponseError):
        return _passing_word(error) is None
    return isinstance(error.__cause__, ssl.SSLCertVerificationError)


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _reason(error: BaseException) -> str:
    """Why a connection was lost. Not in the words of Redis, which may quote a command with a password."""
    match error:
        case RedisDownError():
            return str(error)
        case AuthenticationRequiredError():
            return "Authentication required: log_url has no password, and this Redis needs one"
        case AuthenticationFailureError():
            return "Authentication failed: this Redis does not accept the user or the password of log_url"
        case AuthorizationError():
            return "the user of log_url may not run a command that is needed: give it more rights in Redis' ACL"
        case RedisConnectionError(__cause__=ssl.SSLCertVerificationError(verify_message=reason)):
            return f"TLS failed: the certificate of this Redis is not accepted ({reason})"
        case ResponseError() if "DB index" in str(error):
            return "this Redis has no database with the number in log_url: use a lower one, or raise databases"
    return type(error).__name__
