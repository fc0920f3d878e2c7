"""A server at the other end of connections in memory."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeAlias

import pytest
import trio
from trio.testing import memory_stream_pair

from crucible_trio.http import HttpClient, Url, open_http_client, parse_url

URL = parse_url("http://model.test/v1")

Script: TypeAlias = Callable[["ServerEnd"], Awaitable[None]]


class ServerEnd:
    """The server's end of a connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.requests: list[tuple[bytes, bytes]] = []  # head and body
        self._received = b""

    async def request(self) -> tuple[bytes, bytes]:
        """Read a request.

        Raises:
            EOFError: The client has closed the connection.
        """
        while b"\r\n\r\n" not in self._received:
            await self._receive()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(self._received) < length:
            await self._receive()
        body, self._received = self._received[:length], self._received[length:]
        self.requests.append((head, body))
        return head, body

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def wait_for_close(self) -> None:
        try:
            while True:
                await self._receive()
        except EOFError:
            pass

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise EOFError
        self._received += data


class MemoryServer:
    """Runs a script on each connection: the first script on the first one, and the last one on all others."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]] = memory_stream_pair
        self.scripts: list[Script] = []
        self.ends: list[ServerEnd] = []
        self.running = 0
        self._nursery = nursery

    async def connect(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, theirs = self.pair()
        end = ServerEnd(theirs)
        script = self.scripts[min(len(self.ends), len(self.scripts) - 1)]
        self.ends.append(end)
        self.running += 1
        self._nursery.start_soon(self._run, script, end)
        return ours

    async def _run(self, script: Script, end: ServerEnd) -> None:
        try:
            await script(end)
        except (EOFError, trio.BrokenResourceError):
            pass
        finally:
            self.running -= 1
            await trio.aclose_forcefully(end.stream)


def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two connected sockets, for `MemoryServer.pair`."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    return ours, theirs


def answering(*answers: bytes) -> Script:
    """Give the answers to the requests of a connection, in order, then close it."""

    async def script(end: ServerEnd) -> None:
        for answer in answers:
            await end.request()
            await end.send(answer)

    return script


def always(answer: bytes) -> Script:
    """Give the same answer to all requests of a connection."""

    async def script(end: ServerEnd) -> None:
        while True:
            await end.request()
            await end.send(answer)

    return script


@pytest.fixture
def server(nursery: trio.Nursery) -> MemoryServer:
    return MemoryServer(nursery)


@pytest.fixture
async def client(server: MemoryServer) -> AsyncIterator[HttpClient]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(open_http_client(URL, connect=server.connect))


async def fetch(client: HttpClient, url: Url = URL) -> tuple[int, bytes]:
    """Status and whole body of a GET."""
    async with await client.send("GET", url) as response:
        return response.status, await response.read_all(1 << 30)
