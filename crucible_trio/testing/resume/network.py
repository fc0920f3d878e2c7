"""Where a server is: connections to it as raw bytes, over TCP, or into an ASGI application in this process."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeAlias, final
from urllib.parse import urlsplit

import trio

from crucible_trio.errors import ConfigError

_Address: TypeAlias = tuple[socket.AddressFamily, tuple[object, ...]]

CONNECT_SECONDS: Final = 10.0


class Connection(Protocol):
    """One connection, as bytes."""

    async def send_all(self, data: bytes) -> None:
        """Send the request. Raises `trio.BrokenResourceError`: the server is gone."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """The next bytes; empty at FIN. Raises `trio.BrokenResourceError`: a reset."""

    def close(self, *, reset: bool) -> None:
        """Close at once, with RST or FIN."""


class Network(Protocol):
    """A way to one server.

    Attributes:
        name: For the report.
        host: For the `Host` header.
        base: Path of its URL, without a slash at the end.
    """

    name: str
    host: str
    base: str

    async def connect(self) -> Connection:
        """Open a connection.

        Raises:
            OSError: Nobody is there.
        """


@final
class TcpNetwork:
    """A server at an address."""

    def __init__(
        self, url: str, host: str, base: str, family: socket.AddressFamily, address: tuple[object, ...]
    ) -> None:
        self.name = url
        self.host = host
        self.base = base
        self._family = family
        self._address = address

    async def connect(self) -> Connection:
        """Open a connection. Raises `OSError`: nobody is there."""
        sock = trio.socket.socket(self._family)
        try:
            with trio.fail_after(CONNECT_SECONDS):
                await sock.connect(self._address)
        except trio.TooSlowError as error:
            sock.close()
            raise TimeoutError from error
        except BaseException:
            sock.close()
            raise
        return _TcpConnection(trio.SocketStream(sock))


@final
class _TcpConnection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    def close(self, *, reset: bool) -> None:
        sock = self._stream.socket
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


@asynccontextmanager
async def open_tcp(url: str) -> AsyncIterator[Network]:
    """Find a server.

    Raises:
        ConfigError: The URL is none that can be checked, or its name leads nowhere.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        message = f"{url!r} is no URL: {error}"
        raise ConfigError(message) from error
    if parts.scheme != "http" or not parts.hostname:
        message = f"{url!r} is no http:// URL; behind TLS, check the server itself rather than its proxy"
        raise ConfigError(message)
    try:
        found = await trio.socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        message = f"there is no host {parts.hostname}: {error.strerror or error}"
        raise ConfigError(message) from error
    host = parts.netloc.rpartition("@")[2]
    addresses = [(family, address) for family, _, _, _, address in found]
    network = TcpNetwork(url, host, parts.path.rstrip("/"), *await _first_that_answers(addresses))
    yield network


async def _first_that_answers(addresses: Sequence[_Address]) -> _Address:
    # `localhost` has two addresses, and a server listens on one of them perhaps.
    for family, address in addresses[:-1]:
        try:
            (await TcpNetwork("", "", "", family, address).connect()).close(reset=True)
        except OSError:
            continue
        return family, address
    return addresses[-1]
