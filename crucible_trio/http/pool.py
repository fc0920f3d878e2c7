"""The connections to one server: which are idle, and how many of them are kept."""

from __future__ import annotations

from typing import Final, final

import trio

from crucible_trio.http.connect import Connect
from crucible_trio.http.connection import HttpConnection
from crucible_trio.http.direct_reads import HAS_EPOLL, DirectReads
from crucible_trio.http.errors import ConnectFailedError, ConnectTimeoutError, HttpError

# Kept open between requests: each saves a handshake, and a server accepts only so many.
MAX_IDLE_CONNECTIONS: Final = 20

# Seconds. uvicorn and Node close an idle connection after 5 s. A request that crosses such an end is lost.
MAX_IDLE_SECONDS: Final = 4.0


@final
class ConnectionPool:
    """Opens connections and keeps idle ones. Their number is not limited while they are in use.

    Args:
        connect: Opens a connection.
        connect_timeout: Seconds for that.
    """

    def __init__(self, connect: Connect, connect_timeout: float) -> None:
        self._connect = connect
        self._connect_timeout = connect_timeout
        self._idle: list[HttpConnection] = []  # the oldest first
        self._open: set[HttpConnection] = set()
        self._is_closed = False
        self._reads = DirectReads() if HAS_EPOLL else None

    @property
    def open_connections(self) -> int:
        """The number of open connections, idle ones included."""
        return len(self._open)

    async def acquire(self, *, may_reuse: bool = True) -> HttpConnection:
        """Take an idle connection, or open one.

        Raises:
            ConnectFailedError, ConnectTimeoutError: There is none.
            trio.ClosedResourceError: The pool is closed.

        Cancellation: nothing stays open.
        """
        if self._is_closed:
            raise trio.ClosedResourceError
        await self._close_old()
        while may_reuse and self._idle:
            connection = self._idle.pop()
            if not connection.is_stale():
                connection.is_reused = True
                return connection
            await self._close(connection)
        connection = HttpConnection(await self._open_stream(), self._reads)
        if self._is_closed:
            await connection.aclose()
            raise trio.ClosedResourceError
        self._open.add(connection)
        return connection

    async def release(self, connection: HttpConnection, *, is_reusable: bool) -> None:
        """Keep a connection for another request, or close it. Cancellation: one of both happens all the same."""
        if not is_reusable or self._is_closed or len(self._idle) >= MAX_IDLE_CONNECTIONS:
            await self._close(connection)
            return
        connection.idle_since = trio.current_time()
        self._idle.append(connection)

    async def aclose(self) -> None:
        """Close all connections, also those in use. Cancellation: they are closed all the same."""
        self._is_closed = True
        self._idle.clear()
        with trio.CancelScope(shield=True):  # closing does not wait
            for connection in tuple(self._open):
                await self._close(connection)
            if self._reads is not None:
                await self._reads.aclose()

    async def _close_old(self) -> None:
        limit = trio.current_time() - MAX_IDLE_SECONDS
        while self._idle and self._idle[0].idle_since < limit:
            await self._close(self._idle.pop(0))

    async def _close(self, connection: HttpConnection) -> None:
        self._open.discard(connection)
        await connection.aclose()

    async def _open_stream(self) -> trio.abc.Stream:
        try:
            with trio.fail_after(self._connect_timeout):
                return await self._connect()
        except trio.TooSlowError:
            raise ConnectTimeoutError(self._connect_timeout) from None
        except HttpError:
            raise
        except (OSError, trio.BrokenResourceError) as error:
            raise ConnectFailedError(_root_of(error)) from error


def _root_of(error: BaseException) -> str:
    """The root cause, such as a certificate: trio wraps one error per address of the host."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    while isinstance(root, BaseExceptionGroup):
        root = root.exceptions[0]
    return str(root) or type(root).__name__
