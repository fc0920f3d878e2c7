"""One connection to Redis, which is made anew whenever it breaks."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from math import inf
from typing import Any, Final, Protocol, final

import trio

from crucible_trio.errors import LogUnavailableError
from crucible_trio.store.redis.connection import READ_ONLY, Argument, Connection, RedisDownError, ResponseError
from crucible_trio.store.redis.scripts import Script

_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
# How long a connection to a replica is kept, so that one that stays a replica is not connected to all the time.
_READ_ONLY_SECONDS: Final = 1.0
# How long a request waits for Redis before it is refused. Longer than a connection waits for an answer: it closes a
# connection that hangs only if the call has not been cancelled before.
PATIENCE_SECONDS: Final = 6.0


class LinkWatcher(Protocol):
    """Is told how a link is."""

    async def prepare(self, call: Caller) -> None:
        """A new connection is open. Nothing else is sent before this returns."""

    def failed(self, reason: str) -> None:
        """The connection is lost, or Redis refuses writes."""


class Server(Protocol):
    """Where to connect to: a `RedisAddress`."""

    async def connect(self) -> trio.abc.Stream:
        """Connect. See `RedisAddress`."""

    def login(self) -> Iterable[tuple[Argument, ...]]:
        """The commands with which a connection begins."""


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
        self._connection: Connection | None = None
        self._is_refused = False
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Keep the connection open until cancelled. No error leaves it."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    pause = await self._open(nursery)
            except* (RedisDownError, ResponseError, trio.BrokenResourceError) as errors:
                error = _first_of(errors)
                self._is_refused = _lasts(error)
                self._lost(_reason(error))
            else:
                self._lost("the connection was closed")
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _open(self, nursery: trio.Nursery) -> float:
        connection = Connection(await self._server.connect())
        nursery.start_soon(connection.run)
        for command in self._server.login():
            await connection.call(*command)
        await self._watcher.prepare(connection.call)
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
        """Send a command over the connection that is open now. As `Connection.call`.

        Checkpoints: always. Cancellation: safe, and the command may have been executed.
        """
        if self._connection is None:
            await trio.lowlevel.checkpoint()
            message = "not connected"
            raise RedisDownError(message)
        connection, since = self._connection, self.since
        try:
            return await connection.call(*command, seconds=seconds)
        except RedisDownError as error:
            if str(error) == READ_ONLY and trio.current_time() - since > _READ_ONLY_SECONDS:
                connection.close()  # this server has become a replica: its name may lead to the new primary
            raise

    async def script(self, script: Script, *arguments: Argument) -> Any:  # noqa: ANN401
        """Run a script. Raises and waits as `call`."""
        try:
            return await self.call("EVALSHA", script.sha, 0, *arguments)
        except ResponseError as error:
            if error.code != "NOSCRIPT":
                raise
        # Redis was restarted, or its scripts were flushed.
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


def _lasts(error: BaseException) -> bool:
    """Whether the next attempt to connect would get the same answer."""
    return isinstance(error, ResponseError) or isinstance(error.__cause__, ssl.SSLCertVerificationError)


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
        case ResponseError(code="NOAUTH"):
            return "Authentication required: log_url has no password, and this Redis needs one"
        case ResponseError(code="WRONGPASS"):
            return "Authentication failed: this Redis does not accept the user or the password of log_url"
        case ResponseError(code="NOPERM"):
            return "the user of log_url may not run a command that is needed: give it more rights in Redis' ACL"
        case ResponseError() if "DB index" in str(error):
            return "this Redis has no database with the number in log_url: use a lower one, or raise databases"
        case ResponseError():
            return f"this Redis refuses the connection ({error.code})"
        case trio.BrokenResourceError(__cause__=ssl.SSLCertVerificationError(verify_message=reason)):
            return f"TLS failed: the certificate of this Redis is not accepted ({reason})"
        case trio.BrokenResourceError(__cause__=ssl.SSLError()):
            return "TLS failed: does this port speak TLS?"
    return "the connection was closed"
