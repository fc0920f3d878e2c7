"""Opens connections to one server: over TCP, with TLS, through a proxy."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from typing import Final, Protocol, final

import trio

from crucible_trio.http.errors import ConnectFailedError, ConnectionLostError, InvalidResponseError
from crucible_trio.http.parser import ResponseParser
from crucible_trio.http.proxies import find_proxy
from crucible_trio.http.tls import make_ssl_context, start_tls
from crucible_trio.http.url import Url

# Bytes of a proxy's answer to read at once. Nothing follows it before this side begins with TLS.
_RECEIVE_BYTES: Final = 4096


class Connect(Protocol):
    """Opens a connection to the server. A function without parameters is one, such as for a Unix socket."""

    async def __call__(self) -> trio.abc.Stream:
        """Open a connection.

        Raises:
            OSError: The server is unreachable.
            trio.BrokenResourceError: The connection broke while it was set up.
        """


@final
class TcpConnect:
    """Connects over TCP, as the URL and the environment say.

    Args:
        url: The server.
        environment: Proxies and certificates, such as `os.environ`.

    Attributes:
        sends_whole_urls: Whether the server is a proxy that needs the whole URL in each request.
        proxy_headers: Headers for such a proxy.

    Raises:
        ConfigError: A variable of the environment is wrong.
    """

    def __init__(self, url: Url, environment: Mapping[str, str]) -> None:
        self._url = url
        self._proxy = proxy = find_proxy(url, environment)
        self.sends_whole_urls = proxy is not None and url.scheme == "http"
        self.proxy_headers = {} if proxy is None else _proxy_headers(proxy)
        needs_tls = url.scheme == "https" or (proxy is not None and proxy.scheme == "https")
        self._context = make_ssl_context(environment) if needs_tls else None

    async def __call__(self) -> trio.abc.Stream:
        """Open a connection.

        Raises:
            OSError, trio.BrokenResourceError: The connection failed.
            ConnectFailedError: The proxy refused to connect.
        """
        proxy, url = self._proxy, self._url
        first = proxy or url
        stream: trio.abc.Stream = await trio.open_tcp_stream(first.host, first.port)
        stream = await self._secure(stream, first)
        if proxy is not None and url.scheme == "https":
            await self._open_tunnel(stream)
            stream = await self._secure(stream, url)
        return stream

    async def _secure(self, stream: trio.abc.Stream, url: Url) -> trio.abc.Stream:
        if url.scheme != "https":
            return stream
        assert isinstance(self._context, ssl.SSLContext)
        return await start_tls(stream, url.host.partition("%")[0], self._context)

    async def _open_tunnel(self, stream: trio.abc.Stream) -> None:
        headers = {"Host": self._url.authority, **self.proxy_headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"CONNECT {self._url.authority} HTTP/1.1\r\n{lines}\r\n".encode()
        try:
            status = await _status_of(stream, request)
        except (ConnectionLostError, InvalidResponseError) as error:
            await trio.aclose_forcefully(stream)
            raise ConnectFailedError(f"the proxy did not answer CONNECT: {error}") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if not 200 <= status < 300:
            await trio.aclose_forcefully(stream)
            raise ConnectFailedError(f"the proxy answered CONNECT with status {status}")


async def _status_of(stream: trio.abc.Stream, request: bytes) -> int:
    await stream.send_all(request)
    parser = ResponseParser()
    while not parser.has_head:
        data = await stream.receive_some(_RECEIVE_BYTES)
        if not data:
            parser.lose()
        parser.feed(data)
        if not parser.has_head:
            parser.check()
    return parser.status


def _proxy_headers(proxy: Url) -> dict[str, str]:
    if proxy.user is None:
        return {}
    credentials = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
    return {"Proxy-Authorization": f"Basic {credentials}"}
