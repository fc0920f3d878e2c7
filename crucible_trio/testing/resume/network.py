"""Connections to the server under test, as raw bytes: over TCP here, to an ASGI application in `asgi.py`."""

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


class RawConnection(Protocol):
    """One connection, as bytes."""

    async def send_all(self, data: bytes) -> None:
        """Send the request.

        Raises:
            trio.BrokenResourceError: The server has closed the connection.
        """

    async def receive_some(self, max_bytes: int) -> bytes:
        """Receive the next bytes. Empty at FIN.

        Raises:
            trio.BrokenResourceError: The server has reset the connection.
        """

    def close(self, *, reset: bool) -> None:
        """Close the connection with RST or FIN. Does not wait."""


class Network(Protocol):
    """Connects to one server.

    Attributes:
        name: The server's name in the report.
        host: The value of the `Host` header.
        base: Path of the server's URL, without a trailing slash.
    """

    name: str
    host: str
    base: str

    async def connect(self) -> RawConnection:
        """Open a connection.

        Raises:
            OSError: No server answers.
        """


@final
class TcpNetwork:
    """A server at a TCP address."""

    def __init__(
        self, url: str, host: str, base: str, family: socket.AddressFamily, address: tuple[object, ...]
    ) -> None:
        self.name = url
        self.host = host
        self.base = base
        self._family = family
        self._address = address

    async def connect(self) -> RawConnection:
        """Open a connection.

        Raises:
            OSError: No server answers within 10 seconds.
        """
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
    """Resolve a URL and find the address that answers.

    Raises:
        ConfigError: The URL is not one that the kit can check, or its host name cannot be resolved.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        message = f"not a URL: {url!r} ({error})"
        raise ConfigError(message) from error
    if parts.scheme != "http" or not parts.hostname:
        message = f"not an http:// URL: {url!r}. If a proxy terminates TLS, check the server behind it"
        raise ConfigError(message)
    try:
        found = await trio.socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        message = f"cannot resolve host {parts.hostname}: {error.strerror or error}"
        raise ConfigError(message) from error
    host = parts.netloc.rpartition("@")[2]
    addresses = [(family, address) for family, _, _, _, address in found]
    network = TcpNetwork(url, host, parts.path.rstrip("/"), *await _first_reachable(addresses))
    yield network


async def _first_reachable(addresses: Sequence[_Address]) -> _Address:
    # `localhost` has two addresses, and a server may listen on only one of them.
    for family, address in addresses[:-1]:
        try:
            (await TcpNetwork("", "", "", family, address).connect()).close(reset=True)
        except OSError:
            continue
        return family, address
    return addresses[-1]
