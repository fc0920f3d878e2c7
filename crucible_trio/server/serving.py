"""Listen, accept connections, and shut down in order."""

from __future__ import annotations

import errno
import logging
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final

import trio
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import AppWrapper, ASGIFramework, LifespanState
from hypercorn.utils import repr_socket_addr, wrap_app

from crucible_trio.errors import ConfigError
from crucible_trio.server.config import Config
from crucible_trio.server.connection import HttpConnection, ServerState
from crucible_trio.server.listening import open_sockets

logger = logging.getLogger(__name__)

_LIFESPAN_SECONDS: Final = 10.0
_NO_CAPACITY: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_RETRY_SECONDS: Final = 0.1


async def serve(
    app: ASGIFramework,
    config: Config,
    *,
    drain: Callable[[], Awaitable[None]] | None = None,
    shutdown: Callable[[], Awaitable[None]] | None = None,
    accepting: trio.CancelScope | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application over HTTP/1.1.

    Args:
        app: The application.
        config: The addresses to listen on, and the limits.
        drain: Awaited first at shutdown, while the listeners are still open. Usually `pipeline.drain`.
        shutdown: Awaited while the server runs. When it returns, the server shuts down. With None only cancellation
            stops the server.
        accepting: Cancelling it closes the listeners, before a shutdown would. The open connections are served on.
        task_status: Receives the URLs of the listeners when they are open.

    Raises:
        ConfigError: An address cannot be bound, or the configuration asks for TLS, which belongs to a proxy.

    Cancellation: resets the connections with incomplete responses and closes the others. Then ends the application's
    lifespan, which may take up to ten seconds.
    """
    if config.ssl_enabled:
        message = "this server does not speak TLS: put a proxy in front of it (how-to: behind nginx)"
        raise ConfigError(message)
    _raise_file_limit()
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    state: LifespanState = {}
    with ExitStack() as stack:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in open_sockets(config, stack)]
        async with _lifespan(wrapped, config, state), trio.open_nursery() as timing:
            server = ServerState(wrapped, config, state)
            timing.start_soon(server.timers.run)
            async with trio.open_nursery() as connections:

                def handle(stream: trio.SocketStream) -> None:
                    try:
                        if len(connections.child_tasks) < config.max_connections:
                            connections.start_soon(HttpConnection(server, stream).run)
                            return
                    except OSError:
                        pass  # the client has already reset the connection, so it has no address
                    stream.socket.close()

                async def accept() -> None:
                    with accepting or trio.CancelScope():
                        async with trio.open_nursery() as accepts:
                            for listener in listeners:
                                accepts.start_soon(_accept, listener, handle)

                async with trio.open_nursery() as listening:
                    listening.start_soon(accept)
                    task_status.started([_url(listener) for listener in listeners])
                    if shutdown is None:
                        await trio.sleep_forever()
                    else:
                        await shutdown()
                    if drain is not None:
                        await drain()
                    listening.cancel_scope.cancel()
                await server.context.terminated.set()  # a busy connection closes after its response
                for connection in tuple(server.idle):
                    connection.close()
                connections.cancel_scope.deadline = trio.current_time() + config.flush_timeout
            timing.cancel_scope.cancel()


async def _accept(listener: trio.SocketListener, handle: Callable[[trio.SocketStream], None]) -> None:
    """Accept connections until cancelled, then close the listener.

    `trio.serve_listeners` closes each connection a second time, in a cancelled scope: 4 % of a start.
    """
    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in _NO_CAPACITY:
                    raise
                logger.error("cannot accept connections now: %s. Retrying", error)  # noqa: TRY400 - no bug to trace
                await trio.sleep(_RETRY_SECONDS)
            else:
                handle(stream)


@asynccontextmanager
async def _lifespan(app: AppWrapper, config: Config, state: LifespanState) -> AsyncIterator[None]:
    """Run the application's lifespan around the body. It ends in order even if the body is cancelled."""
    lifespan = Lifespan(app, config, state)
    # Shielded: cancelling `serve` must not end the application before its connections.
    scope = trio.CancelScope(shield=True)

    async def run() -> None:
        with scope:
            await lifespan.handle_lifespan()

    await trio.lowlevel.checkpoint()  # cancelled already: nothing has begun
    async with trio.open_nursery() as nursery:
        # Not `start`, which would wait for the shielded task if it is cancelled.
        nursery.start_soon(run)
        try:
            await lifespan.wait_for_startup()
            yield
        finally:
            if lifespan.startup.is_set():  # otherwise it is cancelled in the middle of its start
                with trio.move_on_after(_LIFESPAN_SECONDS, shield=True):
                    # The lifespan may have ended already. If it failed, the nursery raises the error.
                    with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                        await lifespan.wait_for_shutdown()
            scope.cancel()


def _url(listener: trio.SocketListener) -> str:
    return f"http://{repr_socket_addr(listener.socket.family, listener.socket.getsockname())}"


def _raise_file_limit() -> None:
    # The usual soft limit of 1,024 files is reached at a few hundred streams. It exists for programs that use select().
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
