"""One connection: hypercorn's HTTP/1.1 protocol over a socket, with a defined way to close."""

from __future__ import annotations

import logging
import os
import socket
import struct
from contextlib import suppress
from math import inf
from typing import Final, final

import h11
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.tcp_server import MAX_RECV
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr

from crucible_trio.errors import trace_without_text
from crucible_trio.server.app_tasks import AppTasks
from crucible_trio.server.config import Config
from crucible_trio.server.http1 import Http1Protocol
from crucible_trio.server.read_pause import MAX_READ_AHEAD, ReadPause
from crucible_trio.timers import Timer, Timers

logger = logging.getLogger(__name__)

# Bytes written under one write deadline. A client that does not accept this much in that time has stalled.
_WRITE_BYTES: Final = 16 * 1024
# After an early response the server reads and drops the rest of the request body until the client has sent nothing for
# this long. To close immediately would reset the connection, and the client would lose the response.
_LINGER_SECONDS: Final = 2.0
# Such a client is cut after this time. Many clients send a whole body before they read, and 20 MiB take a while.
_MAX_LINGER_SECONDS: Final = 30.0
# Requests that may begin in one pass of the scheduler. The others wait for their turn. If a hundred began in one pass,
# each would have to wait for all the others at every step, so all would get their first token late and together. The
# streams that run already would wait for all of them, too.
_BEGINNING: Final = 8


@final
class ServerState:
    """State that all connections of one server share."""

    def __init__(self, app: AppWrapper, config: Config, state: LifespanState) -> None:
        self.app = app
        self.config = config
        self.state = state
        self.context = WorkerContext(None)
        self.timers = Timers()
        self.idle: set[HttpConnection] = set()
        self.beginning = trio.Semaphore(_BEGINNING)


@final
class HttpConnection:
    """One connection. Its errors never leave it."""

    def __init__(self, server: ServerState, stream: trio.SocketStream) -> None:
        self._server = server
        self._config = server.config
        self._stream = stream
        self._send_lock = trio.Lock()
        self._writers = 0  # tasks inside `_write`
        self._closing = Timer(inf, self)
        self._lingers_until: float | None = None  # the latest time, while the connection lingers
        self._turn: trio.Semaphore | None = None
        self._unsent = b""  # the rest of a write that did not wait
        self._tasks = AppTasks(self, offers_direct_writes=server.config.direct_writes)
        sock = stream.socket
        self._protocol = Http1Protocol(
            server.app,
            server.config,
            server.context,
            self._tasks,
            ConnectionState(server.state.copy()),
            ssl=False,
            client=parse_socket_addr(sock.family, sock.getpeername()),
            server=parse_socket_addr(sock.family, sock.getsockname()),
            send=self._send,
        )
        self._protocol.can_read = ReadPause(self)
        self._ahead = b""  # read while the protocol was paused

    async def run(self) -> None:
        """Serve requests until either side closes the connection.

        Raises only `trio.Cancelled`. Any other error is logged, or ignored if the client is gone.

        Cancellation: closes the connection, with a reset if a response is incomplete.
        """
        try:
            async with self._tasks:
                self._become_idle()
                await self._read()
        except* OSError:
            pass  # the client is gone
        except* Exception as group:
            logger.error("a connection failed and was closed\n%s", trace_without_text(group))  # noqa: TRY400 - see `trace_without_text`
        finally:
            self._become_busy()
            self.close()

    def _become_idle(self, until: float | None = None) -> None:
        self._server.idle.add(self)
        self._close_at(trio.current_time() + self._config.keep_alive_timeout if until is None else until)

    def _become_busy(self) -> None:
        self._server.idle.discard(self)
        self._closing.cancel()

    def _close_at(self, time: float) -> None:
        self._closing = self._server.timers.set(time, self)

    def timer_fired(self) -> None:
        """Close the connection: it was idle for too long, or its time to linger is over."""
        self.close()

    async def _read(self) -> None:
        sock = self._stream.socket
        while sock.fileno() != -1:
            try:
                data, self._ahead = self._ahead, b""
                if not data:
                    data = await self._receive()
                if self._lingers_until is None:
                    await self._handle(data)
                else:
                    self._linger(self._lingers_until)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            if not data:
                break
        await self._protocol.handle(Closed())

    async def _handle(self, data: bytes) -> None:
        if self._protocol.stream is not None or not data:
            await self._protocol.handle(RawData(data))
            return
        beginning = self._server.beginning
        idle_until = self._closing.at
        try:
            beginning.acquire_nowait()
        except trio.WouldBlock:
            self._become_busy()  # it waits for this server, and not for its client
            await beginning.acquire()
        self._turn = beginning
        try:
            await self._protocol.handle(RawData(data))
        finally:
            if (turn := self.take_turn()) is not None:  # not the whole head of a request, or a refused one
                turn.release()
        if self._protocol.is_idle and self not in self._server.idle:
            self._become_idle(idle_until)

    def take_turn(self) -> trio.Semaphore | None:
        """The turn of the request that begins, for the caller to release (`AppConnection`)."""
        turn, self._turn = self._turn, None
        return turn

    async def _receive(self) -> bytes:
        """The next bytes of the client. Empty if it has closed the connection. Checkpoints: always."""
        sock = self._stream.socket
        while True:
            # A connection waits here nearly all the time. Waiting in `receive_some` takes 1.5 KiB more, and one more
            # pass of the scheduler.
            await trio.lowlevel.wait_readable(sock)
            try:
                return os.read(sock.fileno(), MAX_RECV)
            except BlockingIOError:
                pass
            except OSError as error:
                raise trio.BrokenResourceError from error

    async def wait_closed_by_client(self) -> None:
        """Read ahead until the client has closed the connection (`PausableConnection`)."""
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            while len(self._ahead) < MAX_READ_AHEAD:
                data = await self._receive()
                if not data:
                    return
                self._ahead += data
            await trio.sleep_forever()

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

    async def ask_for_body(self) -> None:
        """Send `100 Continue` if the client waits for it (`AppConnection`)."""
        await self._protocol.ask_for_body()

    async def flush_head(self) -> None:
        """Send the head of the response, if it has not been sent (`AppConnection`)."""
        await self._protocol.flush_head()

    # Direct writes: this class is the `WritableConnection` of a `SocketBodyWriter`

    @property
    def current_request(self) -> object:
        """Identifies the request that is being answered. None between two requests."""
        return self._protocol.stream

    def is_ready_for(self, request: object) -> bool:
        """Whether this request's response body has begun, and no other bytes are being written or left over."""
        protocol = self._protocol
        return (
            protocol.stream is request
            and not self._unsent
            and not self._writers
            and protocol.connection.our_state is h11.SEND_BODY
        )

    def frame(self, data: bytes) -> bytes:
        """Frame a piece of a body for the HTTP version in use. Write the result before anything else is framed."""
        return self._protocol.connection.send(h11.Data(data=data)) or b""

    def frame_end(self) -> bytes:
        """Frame the end of a body. Write the result after everything that was framed before."""
        return self._protocol.connection.send(h11.EndOfMessage()) or b""

    def write_nowait(self, data: bytes) -> bool:
        """Write framed bytes and keep the rest that the kernel does not take.

        Returns:
            Whether the kernel took all of them. False also if the client is gone, which resets the connection.
        """
        if self._protocol.head:
            data = self._protocol.take_head() + data
        try:
            # Ask for the number every time: after a close it can belong to another client. It is -1 after a close.
            sent = os.write(self._stream.socket.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the client is gone: end the request, and let the next write find the socket closed
            self.close(reset=True)
            return False
        if sent == len(data):
            return True
        self._unsent = data[sent:]
        return False

    async def flush(self) -> None:
        """Send the rest that `write_nowait` left, with the write deadline.

        Checkpoints: always. Cancellation: resets the connection.
        """
        await self._write(b"")

    async def _write(self, data: bytes) -> None:
        written = False
        self._writers += 1
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            # The kernel usually takes all of it. Then nothing waits, and neither the lock nor a deadline is needed.
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
            if not written:  # also when cancelled: the client may have a part of it, so nothing may follow
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
        if self._protocol.answered_early and self._lingers_until is None:
            self._lingers_until = trio.current_time() + _MAX_LINGER_SECONDS
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._stream.send_eof()
            self._linger(self._lingers_until)
        else:
            self.close()
        await self._protocol.handle(Closed())

    def _linger(self, until: float) -> None:
        self._closing.cancel()
        self._close_at(min(trio.current_time() + _LINGER_SECONDS, until))

    def close(self, *, reset: bool = False) -> None:
        """Close immediately, with FIN after a complete response. May be repeated.

        Args:
            reset: Close with RST. An incomplete response is always closed with RST.
        """
        sock = self._stream.socket
        if sock.fileno() == -1:
            return
        if reset or self._unsent or self._protocol.is_mid_response:
            # An HTTP/1.0 body ends when its connection closes, so a FIN would look like success.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
