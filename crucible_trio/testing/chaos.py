"""A TCP proxy on loopback that delays, slows, stalls and cuts connections repeatably.

It sits between a real client and a real server and counts bytes. It does not parse HTTP. A connection's `Treatment` is
chosen before the connection starts, so a failing test can print it and the next run can repeat it.

```
client ──► request bytes ──────────────────────────────────────────────► server
client ◄── pieces, pauses ◄── stall ◄── cut at a byte ◄── answer bytes ◄── server
```

Without a treatment the proxy is transparent: it forwards a FIN as a FIN and an RST as an RST. A proxy that turned a
reset into a clean end would hide the failure that the test looks for.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal, TypeAlias, final

import trio

from crucible_trio.testing.treatments import UNTOUCHED, Chaos, Treatment

Outcome: TypeAlias = Literal["open", "cut", "refused", "closed by client", "closed by server", "no server", "stopped"]

_PIECE_BYTES: Final = 64 * 1024
_SLOW_SECONDS: Final = 0.05  # a slow connection forwards this many seconds' worth of bytes per write
_BACKLOG: Final = 1024  # clients that were cut at the same time reconnect at the same time


@final
class ChaosConnection:
    """One connection through the proxy. Its `repr` is one line of a report.

    Attributes:
        number: Counts from 0.
        treatment: The treatment chosen for it.
        request_bytes: Bytes forwarded to the server.
        answer_bytes: Bytes forwarded to the client.
        outcome: How the connection ended. `closed by ...` covers both FIN and RST, which the proxy forwarded as such.
    """

    def __init__(self, number: int, treatment: Treatment) -> None:
        self.number = number
        self.treatment = treatment
        self.request_bytes = 0
        self.answer_bytes = 0
        self.outcome: Outcome = "open"
        self._scope = trio.CancelScope()
        self._reset = True  # by default: an incomplete answer must not look complete
        self._client_is_done = False
        self._answer_is_stalled = False

    def __repr__(self) -> str:
        return (
            f"connection {self.number}: {self.outcome}, {self.request_bytes} request bytes, "
            f"{self.answer_bytes} answer bytes, {self.treatment!r}"
        )

    def cut(self, how: Literal["fin", "rst"] = "rst") -> None:
        """Cut the connection now, if it is open. Does not wait."""
        self._end("cut", reset=how == "rst")

    def _end(self, outcome: Outcome, *, reset: bool) -> None:
        if self._scope.cancel_called:
            return
        if self.outcome == "open":
            self.outcome = outcome
        self._reset = reset
        self._scope.cancel()

    async def _run(self, near: trio.SocketStream, port: int, buffer_bytes: int | None) -> None:
        far: trio.SocketStream | None = None
        try:
            with self._scope:
                if self.treatment.refuse:
                    self._end("refused", reset=True)
                await trio.sleep(self.treatment.delay_seconds)
                far = await _connect(port, buffer_bytes)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_request, near, far)
                    nursery.start_soon(self._pass_answer, near, far)
        except OSError:
            self._end("no server", reset=True)
        finally:
            self._end("stopped", reset=True)
            for stream in (near, far):
                if stream is not None:
                    _close(stream.socket, reset=self._reset)

    async def _pass_request(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        while True:
            try:
                data = await near.receive_some(_PIECE_BYTES)
            except trio.BrokenResourceError:
                self._end("closed by client", reset=True)
                return
            if not data:
                break
            try:
                await far.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # `_pass_answer` sees the same failure and records the outcome
            self.request_bytes += len(data)
        self._client_is_done = True
        if self._answer_is_stalled:
            self._end("closed by client", reset=False)
        else:  # the client may still read, so the server gets the FIN and decides
            _send_eof(far)

    async def _pass_answer(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        treatment = self.treatment
        marks = {mark for mark in (treatment.stall_after, treatment.cut_after) if mark is not None}
        while True:
            if self.answer_bytes in marks:
                marks.discard(self.answer_bytes)
                if self.answer_bytes == 0:
                    await trio.lowlevel.wait_readable(far.socket)
                if self.answer_bytes == treatment.stall_after:
                    await self._stall(treatment.stall_seconds)
                if self.answer_bytes == treatment.cut_after:
                    await self._cut(near, far)
            ahead = (mark - self.answer_bytes for mark in marks if mark > self.answer_bytes)
            try:
                data = await far.receive_some(min([self._piece_bytes, *ahead]))
            except trio.BrokenResourceError:
                self._end("closed by client" if self._client_is_done else "closed by server", reset=True)
                return
            if not data:
                self._end("closed by client" if self._client_is_done else "closed by server", reset=False)
                return
            try:
                await near.send_all(data)
            except trio.BrokenResourceError:
                self._end("closed by client", reset=True)
                return
            self.answer_bytes += len(data)
            await trio.sleep(len(data) / treatment.bytes_per_second)

    @property
    def _piece_bytes(self) -> int:
        # A slow connection forwards small writes often, not large writes rarely.
        slow = self.treatment.bytes_per_second * _SLOW_SECONDS
        return self.treatment.piece_bytes if slow > self.treatment.piece_bytes else max(1, int(slow))

    async def _stall(self, seconds: float) -> None:
        """Forward nothing for a while.

        No write can fail during a stall, so a client that leaves is detected by its FIN, which ends the connection.
        """
        if self._client_is_done:
            self._end("closed by client", reset=False)
        self._answer_is_stalled = True
        await trio.sleep(seconds)
        self._answer_is_stalled = False

    async def _cut(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        match self.treatment.cut:
            case "half_close_request":
                self.outcome = "cut"
                _send_eof(far)
            case "half_close_answer":
                self.outcome = "cut"
                _send_eof(near)
                await self._stall(math.inf)
            case how:
                self.cut(how)
                await trio.lowlevel.checkpoint()  # does not return


@final
class ChaosProxy:
    """A running proxy, from `open_chaos_proxy`.

    Attributes:
        port: The port on 127.0.0.1 that it listens on.
        connections: All connections so far, in order of arrival.
    """

    def __init__(self, port: int, chaos: Chaos) -> None:
        self.port = port
        self.connections: list[ChaosConnection] = []
        self._chaos = chaos

    def __repr__(self) -> str:
        chaos = self._chaos if callable(self._chaos) else list(self._chaos)
        return f"chaos proxy with {chaos!r}"

    @property
    def url(self) -> str:
        """The URL at which a client reaches the server through the proxy."""
        return f"http://127.0.0.1:{self.port}"

    def report(self) -> str:
        """One line for the proxy and one for each connection, for a failing test to print."""
        return "\n".join(map(repr, [self, *self.connections]))

    def cut(self, how: Literal["fin", "rst"] = "rst") -> None:
        """Cut every open connection now. New connections are still accepted."""
        for connection in self.connections:
            connection.cut(how)

    def _treat_next(self) -> ChaosConnection:
        number = len(self.connections)
        if callable(self._chaos):
            treatment = self._chaos(number)
        else:
            treatment = self._chaos[number] if number < len(self._chaos) else UNTOUCHED
        connection = ChaosConnection(number, treatment)
        self.connections.append(connection)
        return connection


@asynccontextmanager
async def open_chaos_proxy(
    port: int, chaos: Chaos = (), *, buffer_bytes: int | None = None
) -> AsyncIterator[ChaosProxy]:
    """Open a proxy on a free port of 127.0.0.1. Leaving the block resets every open connection.

    Args:
        port: The server's port on 127.0.0.1. The proxy connects once per client connection, so the server may start
            later.
        chaos: The treatment of each connection.
        buffer_bytes: Size of the kernel's buffers between server and proxy and between proxy and client. None keeps the
            kernel's defaults, which buffer megabytes for a fast sender. Small buffers show whether a slow client slows
            the server down.

    An exception raised in the block propagates unchanged, not in a group.
    """
    listener = trio.socket.socket()
    try:
        if buffer_bytes is not None:  # accepted sockets inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        await listener.bind(("127.0.0.1", 0))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    proxy = ChaosProxy(listener.getsockname()[1], chaos)

    async def handle(near: trio.SocketStream) -> None:
        await proxy._treat_next()._run(near, port, buffer_bytes)

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listener)])
        try:
            yield proxy
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _connect(port: int, buffer_bytes: int | None) -> trio.SocketStream:
    sock = trio.socket.socket()
    try:
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        await sock.connect(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def _send_eof(stream: trio.SocketStream) -> None:
    # `SocketStream.send_eof` refuses while another task sends. Here that task may fail.
    with suppress(OSError):  # the connection is already closed
        stream.socket.shutdown(socket.SHUT_WR)


def _close(sock: trio.socket.SocketType, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
