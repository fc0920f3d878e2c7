"""A client of one server: sends requests over a pool of connections.

Redirects are not followed, cookies are not kept, and bodies are not decompressed. Only the server of the client can be
asked, so no text from outside decides where a request goes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, final

from crucible_trio.http.connect import Connect, TcpConnect
from crucible_trio.http.errors import ConnectionLostError
from crucible_trio.http.headers import encode_headers
from crucible_trio.http.pool import ConnectionPool
from crucible_trio.http.response import HttpResponse
from crucible_trio.http.url import Url

# Seconds. A host that is up accepts a connection in milliseconds. One that takes this long is down or filtered.
CONNECT_TIMEOUT: Final = 10.0


@asynccontextmanager
async def open_http_client(
    url: Url,
    *,
    headers: Mapping[str, str] | None = None,
    connect: Connect | None = None,
    connect_timeout: float = CONNECT_TIMEOUT,
) -> AsyncIterator[HttpClient]:
    """Open a client of one server. Leaving closes all its connections.

    Args:
        url: The server. Path and query do not matter.
        headers: For every request.
        connect: Replaces TCP, TLS and proxies, for a Unix socket or a test.
        connect_timeout: Seconds for a connection with its handshakes.

    Raises:
        ConfigError: The environment names a proxy or certificates that cannot be used.
        ValueError: A header cannot be sent.
    """
    whole_urls = False
    all_headers = dict(headers or {})
    if connect is None:
        connect = tcp = TcpConnect(url, os.environ)
        if tcp.sends_whole_urls:
            whole_urls = True
            all_headers |= tcp.proxy_headers
    pool = ConnectionPool(connect, connect_timeout)
    try:
        yield HttpClient(url, pool, all_headers, whole_urls=whole_urls)
    finally:
        await pool.aclose()


@final
class HttpClient:
    """Sends requests to one server. Made by `open_http_client`."""

    def __init__(self, url: Url, pool: ConnectionPool, headers: Mapping[str, str], *, whole_urls: bool) -> None:
        self._origin = url.origin
        self._pool = pool
        # Some gateways refuse requests without a user agent.
        self._headers = {"Host": url.host_header, "User-Agent": "crucible_trio", **headers}
        encode_headers(self._headers)  # a wrong one is an error now, and not at the first request
        self._whole_urls = whole_urls

    @property
    def open_connections(self) -> int:
        """The number of open connections, idle ones included."""
        return self._pool.open_connections

    async def send(
        self, method: str, url: Url, *, headers: Mapping[str, str] | None = None, content: bytes = b""
    ) -> HttpResponse:
        """Send a request and wait for status and headers: `async with await client.send(...) as response`.

        A request on an idle connection that the server closes without a single byte is sent again on a new one.

        Args:
            method: Such as `POST`.
            url: On the client's server.
            headers: For this request. They win over those of the client.
            content: The body.

        Raises:
            ConnectFailedError, ConnectTimeoutError: There is no connection.
            ConnectionLostError: The connection ended before the head of the response was complete.
            InvalidResponseError: The response breaks HTTP.
            ValueError: The URL is on another server, or a header cannot be sent.

        Checkpoints: always. Cancellation: closes the connection.
        """
        request = self._encode(method, url, headers or {}, content)
        connection = await self._pool.acquire()
        while True:
            try:
                parser = await connection.exchange(request)
            except ConnectionLostError as error:
                await self._pool.release(connection, is_reusable=False)
                if not (connection.is_reused and error.received_nothing):
                    raise
            except BaseException:
                await self._pool.release(connection, is_reusable=False)
                raise
            else:
                return HttpResponse(parser, connection, self._pool)
            connection = await self._pool.acquire(may_reuse=False)

    def _encode(self, method: str, url: Url, headers: Mapping[str, str], content: bytes) -> bytes:
        if url.origin != self._origin:
            message = f"{url} is not on the server of this client"
            raise ValueError(message)
        length = b"Content-Length: %d\r\n" % len(content) if content or method not in {"GET", "DELETE"} else b""
        target = str(url) if self._whole_urls else url.target
        head = f"{method} {target} HTTP/1.1\r\n".encode()
        return b"".join([head, encode_headers({**self._headers, **headers}), length, b"\r\n", content])
