"""hypercorn's HTTP/1.1 stack under a nursery of our own.

Stock hypercorn on trio can be killed from outside by one HTTP/2 request, cannot drop a client that has stopped reading,
tells the application nothing of a shutdown, and ends a broken response as if it were whole. What is different here:

* An exception in one connection ends that connection (`_Connection.run`). HTTP/2 is not spoken at all.
* Every write has a deadline. A write that timed out, failed or was cancelled resets the connection: nobody knows what
  is out, so nothing may follow.
* A response that did not reach its end ends in a real RST. An HTTP/1.0 body ends by closing, so a FIN would read as
  success.
* On shutdown the application is told first, with the listeners still open, so that a cut reader can come back.

Source of the classes and their behaviour: hypercorn 0.18, `trio/run.py`, `trio/tcp_server.py`, `protocol/h11.py`.
"""

from __future__ import annotations

import logging
import resource
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Final, Self, final

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.task_group import _handle as run_app
from hypercorn.trio.tcp_server import MAX_RECV
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    LifespanState,
    Scope,
)
from hypercorn.utils import parse_socket_addr, repr_socket_addr, wrap_app

from crucible_trio.alarms import Alarm, Alarms
from crucible_trio.config import Settings
from crucible_trio.errors import ConfigError, trace_without_text

logger = logging.getLogger(__name__)

# What goes to the socket under one write deadline: a client that takes this little in that time is stalled.
_WRITE_BYTES: Final = 16 * 1024
# The kernel gives up on a peer that acknowledges nothing a little after we would have. Much shorter kills honest slow
# readers: 2 s cut one that took 20 KB/s.
_USER_TIMEOUT_MARGIN_SECONDS: Final = 5.0
# After an early answer the rest of a request body is read and dropped this long: closing at once would reset the
# connection and destroy the answer on its way.
_LINGER_SECONDS: Final = 2.0
_LIFESPAN_SECONDS: Final = 10.0


class Config(HypercornConfig):
    """hypercorn's settings and ours.

    Attributes:
        write_timeout: Seconds for each 16 KiB.
        flush_timeout: Seconds that connections have, once nothing more is accepted, to take what is left.
        max_connections: Open connections; more are closed at once, unanswered. To a browser's EventSource that is a
            network error: it comes back.
    """

    write_timeout: float = 30.0
    flush_timeout: float = 5.0
    max_connections: int = 10_000
    # Reconnects come in storms; the kernel cuts this to net.core.somaxconn.
    backlog = 4096
    # Never the query: a prompt or a token may stand in it.
    access_log_format = '%(h)s "%(m)s %(U)s HTTP/%(H)s" %(s)s %(D)sus'
    include_server_header = False
    errorlog = logger

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The server's part of the settings."""
        config = cls()
        config.bind = list(settings.bind)
        config.write_timeout = settings.write_timeout_seconds
        config.flush_timeout = settings.flush_seconds
        config.max_connections = settings.max_connections
        return config


async def serve(
    app: ASGIFramework,
    config: Config,
    *,
    drain: Callable[[], Awaitable[None]] | None = None,
    shutdown: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application over HTTP/1.1.

    Args:
        app: The application.
        config: Where and how.
        drain: Awaited first at shutdown, with the listeners still open; usually `pipeline.drain`.
        shutdown: The server stops in good order when this returns; None: only cancellation stops it.
        task_status: Started with the URLs that are listened on.

    Raises:
        ConfigError: An address cannot be bound, or TLS is asked for: that is the proxy's.

    Cancellation: open connections are reset, then the application's lifespan is ended in good order, for at most ten
    seconds.
    """
    if config.ssl_enabled:
        message = "TLS is not served here; put a proxy in front (docs: behind nginx)"
        raise ConfigError(message)
    _raise_file_limit()
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    state: LifespanState = {}
    with ExitStack() as stack:
        listeners = _listen(config, stack)
        async with _lifespan(wrapped, config, state), trio.open_nursery() as timing:
            shared = _Shared(wrapped, config, state)
            timing.start_soon(shared.alarms.run)
            async with trio.open_nursery() as connections:

                async def handle(stream: trio.SocketStream) -> None:
                    if len(connections.child_tasks) <= config.max_connections:
                        await _Connection(shared, stream).run()

                async with trio.open_nursery() as accepting:
                    accepting.start_soon(partial(trio.serve_listeners, handle, listeners, handler_nursery=connections))
                    task_status.started([_url(listener) for listener in listeners])
                    if shutdown is None:
                        await trio.sleep_forever()
                    else:
                        await shutdown()
                    if drain is not None:
                        await drain()
                    accepting.cancel_scope.cancel()
                await shared.context.terminated.set()  # a busy connection closes after its response
                for connection in tuple(shared.idle):
                    connection.close()
                connections.cancel_scope.deadline = trio.current_time() + config.flush_timeout
            timing.cancel_scope.cancel()


@asynccontextmanager
async def _lifespan(app: AppWrapper, config: Config, state: LifespanState) -> AsyncIterator[None]:
    """Run the application's lifespan around the body, in good order also when the body is cancelled."""
    lifespan = Lifespan(app, config, state)
    # Its own shielded scope: cancelling `serve` must not end the application before its connections.
    scope = trio.CancelScope(shield=True)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await lifespan.handle_lifespan(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            await lifespan.wait_for_startup()
            yield
        finally:
            with trio.move_on_after(_LIFESPAN_SECONDS, shield=True):
                # It may have ended by itself; if that was an error, the nursery raises it.
                with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                    await lifespan.wait_for_shutdown()
            scope.cancel()


@final
class _Shared:
    """What all connections of a server have in common."""

    def __init__(self, app: AppWrapper, config: Config, state: LifespanState) -> None:
        self.app = app
        self.config = config
        self.state = state
        self.context = WorkerContext(None)
        self.alarms = Alarms()
        self.idle: set[_Connection] = set()


@final
class _Connection:
    """One connection. Nothing that happens in it leaves it."""

    def __init__(self, shared: _Shared, stream: trio.SocketStream) -> None:
        self._shared = shared
        self._config = shared.config
        self._stream = stream
        self._send_lock = trio.Lock()
        self._closing = Alarm(inf, self.close)
        self._is_lost = False  # after a write that did not finish
        self._is_lingering = False
        self._tasks = _Tasks()
        sock = stream.socket
        self._protocol = _Protocol(
            shared.app,
            shared.config,
            shared.context,
            self._tasks,
            ConnectionState(shared.state.copy()),
            ssl=False,
            client=parse_socket_addr(sock.family, sock.getpeername()),
            server=parse_socket_addr(sock.family, sock.getsockname()),
            send=self._send,
        )

    async def run(self) -> None:
        try:
            async with self._tasks:
                self._become_idle()
                await self._read()
        except* OSError:
            pass  # the peer is gone
        except* Exception as group:
            logger.error("a connection failed and was closed\n%s", trace_without_text(group))  # noqa: TRY400 - see there
        finally:
            self._become_busy()
            self.close()

    def _become_idle(self) -> None:
        self._shared.idle.add(self)
        self._close_in(self._config.keep_alive_timeout)

    def _become_busy(self) -> None:
        self._shared.idle.discard(self)
        self._closing.cancel()

    def _close_in(self, seconds: float) -> None:
        self._closing = self._shared.alarms.set(trio.current_time() + seconds, self.close)

    async def _read(self) -> None:
        sock = self._stream.socket
        while sock.fileno() != -1:
            try:
                # Where a connection spends its life: in `receive_some` alone it would take 1.5 KiB more.
                await trio.lowlevel.wait_readable(sock)
                data = await self._stream.receive_some(MAX_RECV)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            if not self._is_lingering:
                await self._protocol.handle(RawData(bytes(data)))
            if not data:
                break
        await self._protocol.handle(Closed())

    async def _send(self, event: Event) -> None:
        match event:
            case RawData(data=data):
                await self._write(data)
            case Closed():
                await self._end()
            case Updated(idle=True):
                self._become_idle()
            case Updated():
                self._become_busy()

    async def _write(self, data: bytes) -> None:
        written = False
        try:
            async with self._send_lock:
                if not self._is_lost:
                    view = memoryview(data)
                    for start in range(0, len(view), _WRITE_BYTES):
                        with trio.fail_after(self._config.write_timeout):
                            await self._stream.send_all(view[start : start + _WRITE_BYTES])
                    written = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            if not written:  # also when cancelled: what is out is unknown, nothing may follow it
                self._is_lost = True
                self.close()
        if not written:
            await self._protocol.handle(Closed())

    async def _end(self) -> None:
        if self._protocol.answered_early and not self._is_lingering:
            self._is_lingering = True
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()
            self._close_in(_LINGER_SECONDS)
        else:
            self.close()
        await self._protocol.handle(Closed())

    def close(self) -> None:
        """Close at once: with FIN when all that was begun is said, with RST otherwise."""
        sock = self._stream.socket
        if sock.fileno() == -1:
            return
        if self._is_lost or self._protocol.is_mid_response:
            # The end of an HTTP/1.0 body is the end of its connection: a FIN would read as success.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


@final
class _Tasks(TaskGroup):
    """hypercorn's tasks of one connection; what the client sends goes to the application through a lighter queue."""

    async def spawn_app(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        inbox = _Inbox(config.max_app_queue_size)
        nursery = self._nursery
        assert nursery is not None
        nursery.start_soon(
            run_app, app, config, scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run
        )
        return inbox.send


@final
class _Inbox:
    """A bounded queue for one sender and one receiver. A memory channel takes 1.7 KiB more of every idle stream."""

    __slots__ = ("_changed", "_events", "_limit")

    def __init__(self, limit: int) -> None:
        self._events: list[ASGIReceiveEvent] = []
        self._limit = limit
        self._changed = trio.lowlevel.ParkingLot()

    async def send(self, event: ASGIReceiveEvent) -> None:
        await trio.lowlevel.checkpoint()
        while len(self._events) >= self._limit:
            await self._changed.park()
        self._events.append(event)
        self._changed.unpark_all()

    async def receive(self) -> ASGIReceiveEvent:
        await trio.lowlevel.checkpoint()
        while not self._events:
            await self._changed.park()
        self._changed.unpark_all()
        return self._events.pop(0)


@final
class _Protocol(H11Protocol):
    """HTTP/1.0 and HTTP/1.1, and nothing else.

    Stock hypercorn turns a connection into HTTP/2 when it reads that preface or `Upgrade: h2c`, also in cleartext.
    There it has no backpressure, and several requests raise where nothing catches.
    """

    @property
    def is_mid_response(self) -> bool:
        """Whether a request has been read whose response has not been sent to its end."""
        return self.connection.our_state in {h11.SEND_RESPONSE, h11.SEND_BODY}

    @property
    def answered_early(self) -> bool:
        """Whether the response is out and the peer is still sending its request."""
        return not self.is_mid_response and self.connection.their_state is h11.SEND_BODY

    async def _check_protocol(self, event: h11.Request) -> None:
        """Switch to no other protocol."""

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version in {b"1.0", b"1.1"}:
            await super()._create_stream(request)
        else:
            await self._send_error_response(505)
            await self.send(Closed())


def _listen(config: Config, stack: ExitStack) -> list[trio.SocketListener]:
    try:
        sockets = config.create_sockets().insecure_sockets
    except OSError as error:
        message = f"cannot listen on {', '.join(config.bind)}: {error.strerror or error}"
        raise ConfigError(message) from error
    user_timeout = int((config.write_timeout + _USER_TIMEOUT_MARGIN_SECONDS) * 1000)
    for sock in sockets:
        stack.enter_context(sock)
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout)  # accepted sockets inherit it
        sock.listen(config.backlog)
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


def _url(listener: trio.SocketListener) -> str:
    return f"http://{repr_socket_addr(listener.socket.family, listener.socket.getsockname())}"


def _raise_file_limit() -> None:
    # The usual soft limit, 1,024, is a few hundred streams away; select() users, for whom it exists, are not here.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
