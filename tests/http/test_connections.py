"""Connections over real sockets: TLS, proxies, IPv6, idle ends, and cancellation at every checkpoint."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

from crucible_trio.errors import ConfigError
from crucible_trio.http import ConnectFailedError, ConnectionLostError, HttpClient, Url, open_http_client, parse_url

from .conftest import Script, ServerEnd, always, fetch

ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nBlue\r\n0\r\n\r\n"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


class Ports:
    """The servers of a test, and their open connections."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.ends: list[ServerEnd] = []
        self.open = 0
        self._nursery = nursery

    async def listen(self, script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> int:
        """Run a script on each connection. Returns the port."""

        async def serve(stream: trio.abc.Stream) -> None:
            self.open += 1
            try:
                if tls is not None:
                    stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
                    await stream.do_handshake()
                end = ServerEnd(stream)
                self.ends.append(end)
                await script(end)
            except (EOFError, trio.BrokenResourceError):
                pass
            finally:
                self.open -= 1
                await trio.aclose_forcefully(stream)

        listeners = await self._nursery.start(partial(trio.serve_tcp, serve, 0, host=host))
        port = listeners[0].socket.getsockname()[1]
        assert isinstance(port, int)
        return port

    async def wait_until_closed(self) -> None:
        """Wait until the servers have seen the end of every connection."""
        with trio.fail_after(20):
            while self.open:
                await trio.lowlevel.checkpoint()


@pytest.fixture
def ports(nursery: trio.Nursery) -> Ports:
    return Ports(nursery)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[tuple[HttpClient, Url]]:
    parsed = parse_url(url)
    async with open_http_client(parsed) as client:
        yield client, parsed


async def get(url: str) -> tuple[int, bytes]:
    with trio.fail_after(20):
        async with client_of(url) as (client, parsed):
            return await fetch(client, parsed)


# TCP


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_server_is_reached_over_both_kinds_of_addresses(ports: Ports, host: str) -> None:
    port = await ports.listen(always(ANSWER), host=host)
    written = f"[{host}]" if ":" in host else host
    assert await get(f"http://{written}:{port}/v1") == (200, b"Blue")
    assert f"Host: {written}:{port}".encode() in ports.ends[0].requests[0][0]


async def test_a_name_with_several_addresses_is_reached_at_the_one_that_answers(ports: Ports) -> None:
    port = await ports.listen(always(ANSWER), host="127.0.0.1")
    assert await get(f"http://localhost:{port}") == (200, b"Blue")


async def test_a_refused_connection_says_so(ports: Ports) -> None:
    with trio.socket.socket() as free:
        await free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectFailedError, match="refused"):
            await get(f"http://127.0.0.1:{free.getsockname()[1]}")


async def test_an_unknown_host_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_host(host: str, port: int) -> trio.SocketStream:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(trio, "open_tcp_stream", no_host)
    with pytest.raises(ConnectFailedError, match="Name or service not known"):
        await get("http://unknown.test")


async def test_an_idle_connection_that_the_server_has_closed_is_not_used(ports: Ports) -> None:
    async def answer_once(end: ServerEnd) -> None:
        await end.request()
        await end.send(ANSWER)

    port = await ports.listen(answer_once)
    async with client_of(f"http://127.0.0.1:{port}") as (client, url):
        for _ in range(3):
            assert await fetch(client, url) == (200, b"Blue")
            await ports.wait_until_closed()
    # With a request on the closed connection there would be a second one, which the server never got.
    assert [len(end.requests) for end in ports.ends] == [1, 1, 1]


async def test_bytes_that_nobody_asked_for_are_not_the_next_response(ports: Ports) -> None:
    async def time_out(end: ServerEnd) -> None:
        await end.request()
        await end.send(ANSWER)
        await is_idle.wait()
        await end.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        has_sent.set()
        await end.wait_for_close()

    is_idle, has_sent = trio.Event(), trio.Event()
    port = await ports.listen(time_out)
    async with client_of(f"http://127.0.0.1:{port}") as (client, url):
        assert await fetch(client, url) == (200, b"Blue")
        is_idle.set()
        await has_sent.wait()
        assert await fetch(client, url) == (200, b"Blue")
    assert len(ports.ends) == 2


async def test_a_reset_is_a_lost_connection(ports: Ports) -> None:
    async def reset(end: ServerEnd) -> None:
        await end.request()
        await end.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await has_head.wait()
        assert isinstance(end.stream, trio.SocketStream)
        end.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    has_head = trio.Event()
    port = await ports.listen(reset)
    async with client_of(f"http://127.0.0.1:{port}") as (client, url), await client.send("GET", url) as response:
        has_head.set()
        with pytest.raises(ConnectionLostError):
            await response.read()


async def test_nothing_is_read_ahead_of_the_caller(ports: Ports) -> None:
    sent = 0

    async def flood(end: ServerEnd) -> None:
        nonlocal sent
        await end.request()
        await end.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await end.send(b"x" * 65536)
            sent += 65536

    port = await ports.listen(flood)
    async with client_of(f"http://127.0.0.1:{port}") as (client, url), await client.send("GET", url) as response:
        await wait_all_tasks_blocked(0.1)
        stalled_at = sent
        await wait_all_tasks_blocked(0.1)
        assert sent == stalled_at
        got = 0
        while got < stalled_at:
            got += len(await response.read())
        assert got < 32 * 1024 * 1024


async def test_a_connection_that_another_task_closes_cannot_be_read(ports: Ports) -> None:
    async def begin(end: ServerEnd) -> None:
        await end.request()
        await end.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await end.wait_for_close()

    port = await ports.listen(begin)
    async with client_of(f"http://127.0.0.1:{port}") as (client, url):
        response = await client.send("GET", url)
        with pytest.RaisesGroup(trio.ClosedResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(response.read)
                await wait_all_tasks_blocked()
                await response.aclose()


# Cancellation


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the given step of a task."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task = task
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if not self._left:
                self._scope.cancel()


def open_sockets() -> int:
    found = 0
    for file in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{file}").startswith("socket:")
        except OSError:  # the folder's own file
            continue
    return found


@pytest.mark.parametrize("form", ["http", "https", "proxy"])
async def test_cancelling_at_every_checkpoint_leaves_no_socket_open(
    ports: Ports, form: str, monkeypatch: pytest.MonkeyPatch, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    tls = None if form == "http" else certificates("localhost" if form == "https" else "model.test")
    port = await ports.listen(always(ANSWER), tls=tls)
    if form == "proxy":
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{await ports.listen(tunnel_to(port))}")
        url = parse_url("https://model.test")
    else:
        url = parse_url(f"{form}://localhost:{port}")
    finished = 0
    async with open_http_client(url) as client:
        await fetch(client, url)
        await client._pool.aclose()
        await ports.wait_until_closed()
    base = open_sockets()
    for step in range(1, 500):
        async with open_http_client(url) as client:
            # The first request opens a connection, and the second one uses it again.
            with trio.CancelScope() as scope:
                instrument = CancelAtStep(trio.lowlevel.current_task(), scope, step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    assert await fetch(client, url) == (200, b"Blue")
                    assert await fetch(client, url) == (200, b"Blue")
                    finished += 1
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert client.open_connections in {0, 1}
            assert await fetch(client, url) == (200, b"Blue")
        await ports.wait_until_closed()
        with trio.fail_after(20):
            while open_sockets() != base:  # a name lookup that was left behind may still have one
                await trio.sleep(0.01)
        if finished == 3:
            break
    assert finished == 3
    assert step > 10


# TLS


@pytest.fixture
def certificates(
    tmp_path: Path, need_program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ssl.SSLContext]:
    """`certificates("name")` makes a private authority, which SSL_CERT_FILE then names, and the server's settings."""
    openssl = need_program("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    def make(name: str) -> ssl.SSLContext:
        kind = "IP" if name[0].isdigit() or ":" in name else "DNS"
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        # Python 3.13 and newer are strict: an authority names its key's usage, and a certificate its authority's key.
        ca = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-subj", "/CN=Private CA", "-days", "2")
        run("req", "-x509", *key, *ca, "-keyout", "ca.key", "-out", "ca.pem")
        run("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
        (tmp_path / "names").write_text(f"subjectAltName={kind}:{name}\nauthorityKeyIdentifier=keyid\n")
        run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "server.pem")  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
        context.set_alpn_protocols(["h2", "http/1.1"])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        return context

    return make


def hashed_folder(certificate: Path) -> Path:
    """A folder as OpenSSL reads it: each file has the hash of its subject as its name."""
    command = ["openssl", "x509", "-hash", "-noout", "-in", certificate]
    subject = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    folder = certificate.parent / "folder"
    folder.mkdir()
    (folder / f"{subject}.0").write_bytes(certificate.read_bytes())
    return folder


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
async def test_a_server_with_a_certificate_of_a_private_authority_is_reached(
    ports: Ports, certificates: Callable[[str], ssl.SSLContext], host: str
) -> None:
    listen = host if ":" in host else "127.0.0.1"
    port = await ports.listen(always(ANSWER), host=listen, tls=certificates(host))
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    async with client_of(url) as (client, parsed):
        for _ in range(3):
            assert await fetch(client, parsed) == (200, b"Blue")
    assert len(ports.ends) == 1
    stream = ports.ends[0].stream
    assert isinstance(stream, trio.SSLStream)
    assert stream.selected_alpn_protocol() == "http/1.1"


async def test_certificates_can_be_in_a_folder(
    ports: Ports, certificates: Callable[[str], ssl.SSLContext], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = await ports.listen(always(ANSWER), tls=certificates("127.0.0.1"))
    monkeypatch.delenv("SSL_CERT_FILE")
    folder = hashed_folder(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    assert await get(f"https://127.0.0.1:{port}") == (200, b"Blue")


async def test_an_unknown_authority_is_refused(
    ports: Ports, certificates: Callable[[str], ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await ports.listen(always(ANSWER), tls=certificates("127.0.0.1"))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ConnectFailedError, match="certificate verify failed"):
        await get(f"https://127.0.0.1:{port}")
    assert ports.ends == []


async def test_a_certificate_for_another_name_is_refused(
    ports: Ports, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    port = await ports.listen(always(ANSWER), tls=certificates("other.test"))
    with pytest.raises(ConnectFailedError, match="certificate verify failed"):
        await get(f"https://127.0.0.1:{port}")


async def test_a_server_without_tls_is_a_failed_connection(ports: Ports) -> None:
    async def plain(end: ServerEnd) -> None:
        await end.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    port = await ports.listen(plain)
    with pytest.raises(ConnectFailedError):
        await get(f"https://127.0.0.1:{port}")


async def test_a_body_without_a_length_ends_with_a_tls_connection(
    ports: Ports, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    async def until_end(end: ServerEnd) -> None:
        await end.request()
        await end.send(b"HTTP/1.1 200 OK\r\n\r\nBlue")

    port = await ports.listen(until_end, tls=certificates("127.0.0.1"))
    assert await get(f"https://127.0.0.1:{port}") == (200, b"Blue")


@pytest.mark.parametrize(
    ("name", "value"), [("SSL_CERT_FILE", "/missing.pem"), ("SSL_CERT_FILE", __file__), ("SSL_CERT_DIR", "/missing")]
)
async def test_certificates_that_cannot_be_read_are_refused_only_where_they_are_needed(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name} names {value}") as caught:
        await get("https://127.0.0.1:1")
    assert "\n" not in str(caught.value)
    assert await get(f"http://127.0.0.1:{await ports.listen(always(ANSWER))}") == (200, b"Blue")


# Proxies


def tunnel_to(port: int, status: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Script:
    """A proxy that understands CONNECT and leads to a port of this machine."""

    async def script(end: ServerEnd) -> None:
        await end.request()
        await end.send(status)
        if b" 200 " not in status:
            return
        other = await trio.open_tcp_stream("127.0.0.1", port)
        async with other, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, end.stream, other, nursery.cancel_scope)
            nursery.start_soon(_copy, other, end.stream, nursery.cancel_scope)

    return script


async def _copy(source: trio.abc.Stream, target: trio.abc.Stream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some():
            await target.send_all(data)
    except trio.BrokenResourceError:
        pass
    scope.cancel()


async def test_a_proxy_gets_the_whole_url_and_its_password(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    port = await ports.listen(always(ANSWER))
    monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{port}")
    assert await get("http://model.test:8080/v1?a=b") == (200, b"Blue")
    assert ports.ends[0].requests == [
        (
            b"GET http://model.test:8080/v1?a=b HTTP/1.1\r\nHost: model.test:8080\r\nUser-Agent: crucible_trio\r\n"
            b"Proxy-Authorization: Basic dXNlcjpwQHNz",
            b"",
        )
    ]


async def test_a_tunnel_through_a_proxy_leads_to_a_server_with_tls(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    port = await ports.listen(always(ANSWER), tls=certificates("model.test"))
    proxy = await ports.listen(tunnel_to(port))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user@127.0.0.1:{proxy}")
    async with client_of("https://model.test/v1") as (client, url):
        for _ in range(2):
            assert await fetch(client, url) == (200, b"Blue")
    tunnel, end = ports.ends
    assert tunnel.requests == [
        (b"CONNECT model.test:443 HTTP/1.1\r\nHost: model.test:443\r\nProxy-Authorization: Basic dXNlcjo=", b"")
    ]
    assert [head for head, _ in end.requests] == [
        b"GET /v1 HTTP/1.1\r\nHost: model.test\r\nUser-Agent: crucible_trio"
    ] * 2


async def test_a_proxy_can_have_tls(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, certificates: Callable[[str], ssl.SSLContext]
) -> None:
    port = await ports.listen(always(ANSWER), tls=certificates("localhost"))
    monkeypatch.setenv("HTTP_PROXY", f"https://localhost:{port}")
    assert await get("http://model.test/v1") == (200, b"Blue")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 407 Secret\r\nContent-Length: 0\r\n\r\n", "status 407"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "status 502"),
        (b"", "ended without a response"),
        (b"SSH-2.0-secret\r\n", "did not answer CONNECT"),
    ],
)
async def test_a_proxy_that_does_not_connect_is_a_failed_connection(
    ports: Ports, monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str
) -> None:
    proxy = await ports.listen(tunnel_to(0, answer))
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
    with pytest.raises(ConnectFailedError, match=message) as caught:
        await get("https://model.test/v1")
    assert "ecret" not in str(caught.value)
    await ports.wait_until_closed()


async def test_loopback_is_reached_without_the_proxy(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    port = await ports.listen(always(ANSWER))
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for no_proxy in ("", "[::1],fd00::/8", "localhost,127.0.0.0/8"):
        monkeypatch.setenv("NO_PROXY", no_proxy)
        assert await get(f"http://127.0.0.1:{port}") == (200, b"Blue")
        assert await get(f"http://localhost:{port}") == (200, b"Blue")
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    assert await get(f"http://127.0.0.1:{port}") == (200, b"Blue")


async def test_an_unusable_proxy_is_an_error_when_the_client_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ConfigError, match="ALL_PROXY"):
        async with client_of("http://model.test"):
            pass
