"""One connection: hypercorn's HTTP/1.1 protocol over a socket, with nothing left to chance at its end."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Final, final

import h11
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.task_group import _handle as run_app
from hypercorn.trio.tcp_server import MAX_RECV
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    LifespanState,
    Scope,
)
from hypercorn.utils import parse_socket_addr

from crucible_trio.direct_writes import EXTENSION
from crucible_trio.errors import trace_without_text
from crucible_trio.server.config import Config
from crucible_trio.server.direct import DirectWrites
from crucible_trio.timers import Timer, Timers

logger = logging.getLogger(__name__)

# What goes to the socket under one write deadline: a client that takes this little in that time is stalled.
_WRITE_BYTES: Final = 16 * 1024
# After an early answer the rest of a request body is read and dropped this long: closing at once would reset the
# connection and destroy the answer on its way.
_LINGER_SECONDS: Final = 2.0


@final
class Shared:
    """What all connections of a server have in common."""

    def __init__(self, app: AppWrapper, config: Config, state: LifespanState) -> None:
        self.app = app
        self.config = config
        self.state = state
        self.context = WorkerContext(None)
        self.timers = Timers()
        self.idle: set[Connection] = set()


@final
class Connection:
    """One connection. Nothing that happens in it leaves it."""

    def __init__(self, shared: Shared, stream: trio.SocketStream) -> None:
        self._shared = shared
        self._config = shared.config
        self._stream = stream
        self._send_lock = trio.Lock()
        self._writers = 0  # that hold the lock or wait for it
        self._closing = Timer(inf, self)
        self._is_lingering = False
        self._unsent = b""  # of a write that did not wait
        self._tasks = _Tasks(self)
        sock = stream.socket
        self._protocol = Protocol(
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
        """Serve requests until one side closes; raises nothing but cancellation."""
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
        self._closing = self._shared.timers.set(trio.current_time() + seconds, self)

    def timer_fired(self) -> None:
        """Close: the connection was idle, or has lingered, long enough."""
        self.close()

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

    # Writes that do not wait: see `DirectWrites`

    @property
    def offers_direct_writes(self) -> bool:
        """Whether the application is offered them."""
        return self._config.direct_writes

    @property
    def request(self) -> object:
        """What stands for the request that is being answered; None between two."""
        return self._protocol.stream

    def is_ready_for(self, request: object) -> bool:
        """Whether the body of this request's response has begun, and nothing else is being written or left over."""
        protocol = self._protocol
        return (
            protocol.stream is request
            and not self._unsent
            and not self._writers
            and protocol.connection.our_state is h11.SEND_BODY
        )

    def frame(self, data: bytes) -> bytes:
        """The bytes of a piece of a body, as the protocol at hand frames it; they must be the next to be written."""
        return self._protocol.connection.send(h11.Data(data=data)) or b""

    def write_nowait(self, data: bytes) -> bool:
        """Give the kernel what it takes and keep the rest; whether it took all."""
        try:
            # Asked every time: a number that was kept could be another client's by now. -1 if it is closed.
            sent = os.write(self._stream.socket.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the peer is gone, which ends the request; whoever writes next finds the socket closed
            self.close(reset=True)
            return False
        if sent == len(data):
            return True
        self._unsent = data[sent:]
        return False

    async def flush(self) -> None:
        """Write what is left. Checkpoints: always. Cancellation: resets the connection."""
        await self._write(b"")

    async def _write(self, data: bytes) -> None:
        written = False
        self._writers += 1
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            # Mostly the kernel takes it all: then there is nothing to wait for, and no lock and no deadline are needed.
            is_alone = self._writers == 1 and not self._unsent
            if is_alone and self.write_nowait(data):
                await trio.lowlevel.cancel_shielded_checkpoint()
                written = True
            elif self._stream.socket.fileno() != -1:
                await self._write_slowly(b"" if is_alone else data)
                written = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            self._writers -= 1
            if not written:  # also when cancelled: what is out is unknown, nothing may follow it
                self.close(reset=True)
        if not written:
            await self._protocol.handle(Closed())

    async def _write_slowly(self, data: bytes) -> None:
        async with self._send_lock:
            view = memoryview(self._unsent + data)
            self._unsent = b""
            for start in range(0, len(view), _WRITE_BYTES):
                with trio.fail_after(self._config.write_timeout):
                    await self._stream.send_all(view[start : start + _WRITE_BYTES])

    async def _end(self) -> None:
        if self._protocol.answered_early and not self._is_lingering:
            self._is_lingering = True
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()
            self._close_in(_LINGER_SECONDS)
        else:
            self.close()
        await self._protocol.handle(Closed())

    def close(self, *, reset: bool = False) -> None:
        """Close at once: with FIN when all that was begun is said, with RST otherwise, or if told to."""
        sock = self._stream.socket
        if sock.fileno() == -1:
            return
        if reset or self._protocol.is_mid_response:
            # The end of an HTTP/1.0 body is the end of its connection: a FIN would read as success.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


@final
class _Tasks(TaskGroup):
    """hypercorn's tasks of one connection; what the client sends goes to the application through a lighter queue."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    async def spawn_app(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        if scope["type"] == "http" and self._connection.offers_direct_writes:
            scope["extensions"][EXTENSION] = {"body": DirectWrites(self._connection)}
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
class Protocol(H11Protocol):
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
