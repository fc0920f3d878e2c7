"""The nginx configuration of the documentation, in front of two `crucible serve` processes with one Redis."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import trio

pytestmark = pytest.mark.slow

HOWTO = Path(__file__).parents[2] / "docs" / "howto"

# All paths are in the prefix, which only the current user can read, so the worker must run as this user.
AROUND = """
{user}
daemon off;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    log_format upstream "$uri $upstream_addr";
    access_log upstream.log upstream;
    client_body_temp_path client;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {site}
}}
"""

ENDS = {"stream.completed", "stream.failed", "stream.cancelled"}

OpenServed: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]
OpenNginx: TypeAlias = Callable[..., AbstractAsyncContextManager[str]]


def documented_site(port: int, servers: list[str], key: Path, certificate: Path) -> str:
    """The pages' configuration. Only addresses and files are replaced."""
    [upstream] = re.findall(r"^```text\n(upstream crucible {\n[^`]*)", (HOWTO / "redis.md").read_text(), re.MULTILINE)
    [server] = re.findall(r"^server {$.*?^}$", (HOWTO / "nginx.md").read_text(), re.DOTALL | re.MULTILINE)
    replaced = {
        "127.0.0.1:8000": servers[0],
        "127.0.0.1:8001": servers[1],
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "/etc/ssl/chat.example.org.pem": str(certificate),
        "/etc/ssl/chat.example.org.key": str(key),
    }
    site = f"{upstream}\n{server}"
    for old, new in replaced.items():
        assert site.count(old) == 1, old
        site = site.replace(old, new)
    return site


@pytest.fixture
def open_nginx(
    need_program: Callable[[str], str],
    certificate: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> OpenNginx:
    """`async with open_nginx(url, url) as url`: nginx in front of two servers. Clients trust its certificate."""
    nginx = need_program("nginx")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))

    @asynccontextmanager
    async def open_nginx(*urls: str) -> AsyncIterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            site = documented_site(port, [url.removeprefix("http://") for url in urls], *certificate)
            file = tmp_path / "nginx.conf"
            file.write_text(AROUND.format(user="user root;" if os.geteuid() == 0 else "", site=site))
            command = [nginx, "-p", f"{tmp_path}/", "-e", "stderr", "-c", str(file)]
            # nginx inherits the listening socket, as in an upgrade, so no other process can take the port.
            environment = os.environ | {"NGINX": f"{listener.fileno()};"}
            options = {"pass_fds": [listener.fileno()], "env": environment, "stderr": subprocess.PIPE}
            async with trio.open_nursery() as nursery:
                process = await nursery.start(partial(trio.run_process, command, check=False, **options))
                try:
                    yield f"https://127.0.0.1:{port}"
                finally:
                    process.terminate()
                    with trio.CancelScope(shield=True):
                        await process.wait()

    return open_nginx


async def read_with_cuts(reading: Any, url: str, key: str) -> None:
    """Start a stream and read it to its end. Cut the connection after every 15 events."""
    while not reading.events or reading.events[-1]["type"] not in ENDS:
        path, parameters = "", {"prompt": "x", "idempotency_key": key}
        if reading.last_id:
            path, parameters = f"/v1/streams/{reading.last_id.partition('.')[0]}/events", {}
        wanted = len(reading.events) + 15
        async with trio.open_nursery() as nursery:

            async def read(
                path: str = path,
                parameters: dict[str, str] = parameters,
                scope: trio.CancelScope = nursery.cancel_scope,
            ) -> None:
                await reading.read(url, path, **parameters)
                scope.cancel()  # the body has ended

            nursery.start_soon(read)
            await reading.has(wanted)
            nursery.cancel_scope.cancel()


async def drains(url: str) -> None:
    """Wait until a process drains, or has exited."""
    with suppress(httpx.TransportError):
        async with httpx.AsyncClient() as http:
            while (await http.get(f"{url}/readyz")).status_code == 200:
                await trio.sleep(0.01)


async def test_streams_behind_nginx_resume_on_any_process_while_one_is_terminated(
    serve_process: OpenServed, open_nginx: OpenNginx, event_stream: type[Any], tmp_path: Path
) -> None:
    names = {"CRUCIBLE_SERVER_NAMES": "chat.example.org"}  # as docs/howto/nginx.md says
    readings = [event_stream() for _ in range(6)]
    with trio.fail_after(60):
        async with (
            serve_process("--replay-speed", "1", **names) as a,
            serve_process("--replay-speed", "1", **names) as b,
            open_nginx(a.url, b.url) as url,
        ):
            async with trio.open_nursery() as nursery:
                for number, reading in enumerate(readings):
                    nursery.start_soon(read_with_cuts, reading, url, f"key-{number}")
                for reading in readings:
                    await reading.has(40)
                assert all(reading.events[-1]["type"] != "stream.completed" for reading in readings)
                a.process.send_signal(signal.SIGTERM)
                await drains(a.url)
                # A native EventSource gives up at a 503, so nginx asks the other process.
                for number in range(4):
                    readings.append(event_stream())
                    nursery.start_soon(read_with_cuts, readings[-1], url, f"late-key-{number}")
            assert await a.process.wait() == 0
            for reading in readings:
                assert [event["seq"] for event in reading.events] == list(range(1, len(reading.events) + 1))
                assert reading.events[-1]["type"] == "stream.completed"
                assert reading.text == readings[0].text
                # The process that is left has every stream, also those that the other one generated.
                whole = event_stream()
                await whole.read(url, f"/v1/streams/{reading.last_id.partition('.')[0]}/events")
                assert whole.events == reading.events
            async with httpx.AsyncClient() as http:
                answer = await http.get(f"{url}/healthz", headers={"Host": "chat.example.org"})
                assert answer.status_code == 200
    served: dict[str, set[str]] = {}
    for line in (tmp_path / "upstream.log").read_text().splitlines():
        uri, *upstreams = line.split(" ")
        served.setdefault(uri, set()).add(upstreams[-1])  # the last one that nginx tried
    both = {server.url.removeprefix("http://") for server in (a, b)}
    assert served["/v1/generate"] == both
    assert both in [found for uri, found in served.items() if uri.endswith("/events")]
