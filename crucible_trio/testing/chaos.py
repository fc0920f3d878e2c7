"""A TCP proxy on loopback that does to connections what networks do, on purpose and repeatably.

It sits between a real client and a real server and knows nothing of HTTP: it counts bytes. What happens to a connection
is a `Treatment`, decided before it begins, so a failing test prints it and the next run does the same again.

```
client ──► request bytes ──────────────────────────────────────────────► server
client ◄── pieces, pauses ◄── stall ◄── cut at a byte ◄── answer bytes ◄── server
```

Where nothing is to happen the proxy is honest: an end of one side becomes the same end at the other, FIN for FIN and
RST for RST. A proxy that turned a reset into a clean end would hide the failure it is there to show.
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
_SLOW_SECONDS: Final = 0.05  # how much a slow connection passes at a time
_BACKLOG: Final = 1024  # clients that were cut together come back together


@final
class ChaosConnection:
    """One connection and what was done to it; its `repr` is a line for a report.

    Attributes:
        number: Counts from 0.
        treatment: What was to be done.
        request_bytes: Passed on to the server.
        answer_bytes: Passed on to the client.
        outcome: How it ended. `closed by ...` stands for a FIN and for an RST; the other side got the same.
    """

    def __init__(self, number: int, treatment: Treatment) -> None:
        self.number = number
        self.treatment = treatment
        self.request_bytes = 0
        self.answer_bytes = 0
        self.outcome: Outcome = "open"
        self._scope = trio.CancelScope()
        self._reset = True  # unless something ends it in good order: what has passed is a part, and must not look whole
        self._client_is_done = False
        self._answer_stands_still = False

    def __repr__(self) -> str:
        return (
            f"connection {self.number}: {self.outcome}, {self.request_bytes} bytes asked, "
            f"{self.answer_bytes} answered, {self.treatment!r}"
        )

    def cut(self, how: Literal["fin", "rst"] = "rst") -> None:
        """End it now, if it is open; returns at once."""
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
                return  # the other task meets the same, and knows what it means for the answer
            self.request_bytes += len(data)
        self._client_is_done = True
        if self._answer_stands_still:
            self._end("closed by client", reset=False)
        else:  # it may still read: the server hears the same, and decides
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
                    await self._stand_still(treatment.stall_seconds)
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
        # A slow connection passes a little often, not a lot rarely.
        slow = self.treatment.bytes_per_second * _SLOW_SECONDS
        return self.treatment.piece_bytes if slow > self.treatment.piece_bytes else max(1, int(slow))

    async def _stand_still(self, seconds: float) -> None:
        """Pass nothing on. A client that leaves meanwhile would not be noticed at its next byte: it ends this."""
        if self._client_is_done:
            self._end("closed by client", reset=False)
        self._answer_stands_still = True
        await trio.sleep(seconds)
        self._answer_stands_still = False

    async def _cut(self, near: trio.SocketStream, far: trio.SocketStream) -> None:
        match self.treatment.cut:
            case "half_close_request":
                self.outcome = "cut"
                _send_eof(far)
            case "half_close_answer":
                self.outcome = "cut"
                _send_eof(near)
                await self._stand_still(math.inf)
            case how:
                self.cut(how)
                await trio.lowlevel.checkpoint()  # does not return


@final
class ChaosProxy:
    """What `open_chaos_proxy` gives.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        connections: Every connection so far, in the order in which they came.
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
        """Where a client finds the server through this."""
        return f"http://127.0.0.1:{self.port}"

    def report(self) -> str:
        """What was done, a line for the whole and one for each connection: what a failing test prints."""
        return "\n".join(map(repr, [self, *self.connections]))

    def cut(self, how: Literal["fin", "rst"] = "rst") -> None:
        """End every open connection now; new ones are accepted as before."""
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
    """Open a proxy on a free port of 127.0.0.1; leaving resets every connection that is still open.

    Args:
        port: Where the server listens, on 127.0.0.1. It is called once for each connection, so it may come later.
        chaos: What happens to each connection.
        buffer_bytes: Of the kernel's buffers between server and proxy and between proxy and client; None leaves them to
            the kernel, which gives a fast sender some megabytes. Small ones show whether a slow client slows a server.

    An error of the body leaves it as it is, not in a group.
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
    # Not the stream's own `send_eof`: another task may be sending just now, and that is its bad luck.
    with suppress(OSError):  # the connection is gone already
        stream.socket.shutdown(socket.SHUT_WR)


def _close(sock: trio.socket.SocketType, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
