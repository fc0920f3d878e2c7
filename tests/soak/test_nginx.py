"""Streams through Debian's nginx. By default it requests HTTP/1.0, where closing the connection ends a body."""

from __future__ import annotations

import os
import socket
import subprocess
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h11
import msgspec
import pytest
import trio

from crucible_trio import Pipeline, Reasoning, Request, open_pipeline
from crucible_trio.client import open_client
from crucible_trio.server import Config, serve
from crucible_trio.settings import ServiceSettings, load_settings
from crucible_trio.sse import Decoder
from crucible_trio.testing import Gate, RandomChaos, Repeat, ScriptedEngine, open_chaos_proxy, split_text
from crucible_trio.web import create_app

pytestmark = pytest.mark.slow

# Not a daemon, so that a test can end it. It has a master and one worker. All its paths are in the prefix, which only
# the current user can read, so the worker must run as this user.
CONFIGURATION = """
%(user)s
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path client;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:%(port)d;
        location /default/ { proxy_pass http://127.0.0.1:%(server)d/; }
        location /unbuffered/ { proxy_pass http://127.0.0.1:%(server)d/; proxy_buffering off; }
        location /gzip/ {
            proxy_pass http://127.0.0.1:%(server)d/;
            gzip on;
            gzip_types text/event-stream;
            gzip_proxied any;
        }
        location /http11/ {
            proxy_pass http://127.0.0.1:%(server)d/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
        location /buffered/ {
            proxy_pass http://127.0.0.1:%(server)d/;
            proxy_ignore_headers X-Accel-Buffering;
        }
    }
}
"""

TEXT = "Grüße, 🦊 naïve 🏳️\u200d🌈 \u2028\x85\n\nid: forged "
UNBUFFERED = ["default", "unbuffered", "gzip", "http11"]


@dataclass
class ProxiedResponse:
    """The part of a response that has arrived through the proxy."""

    stream: trio.SocketStream
    body: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    whole: bool = False  # the body has ended according to HTTP

    def __post_init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT)
        self._unzip = zlib.decompressobj(wbits=31)

    async def ask(self, path: str, body: bytes, *lines: tuple[str, str]) -> None:
        head = [("Host", "127.0.0.1"), ("Accept", "text/event-stream"), ("Content-Type", "application/json"), *lines]
        request = h11.Request(method="POST", target=path, headers=[*head, ("Content-Length", str(len(body)))])
        parts = [self._h11.send(part) or b"" for part in (request, h11.Data(data=body), h11.EndOfMessage())]
        await self.stream.send_all(b"".join(parts))

    async def receive(self) -> bool:
        """Receive the next bytes. Returns False after the end. A reset raises `trio.BrokenResourceError`."""
        self._h11.receive_data(bytes(await self.stream.receive_some(65536)))
        while (event := self._h11.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            match event:
                case h11.Response():
                    self.status = event.status_code
                    self.headers = {name.decode(): value.decode() for name, value in event.headers}
                case h11.Data(data=data):
                    zipped = self.headers.get("content-encoding") == "gzip"
                    self.body += self._unzip.decompress(bytes(data)) if zipped else bytes(data)
                case h11.EndOfMessage():
                    self.whole = True
                    return False
        return True

    async def read_until(self, text: str) -> None:
        while text.encode() not in self.body:
            assert await self.receive(), self.body

    async def read_to_end(self) -> None:
        while await self.receive():
            pass

    @property
    def events(self) -> list[dict]:
        return [msgspec.json.decode(event.data or "") for event in Decoder().feed(self.body)]

    @property
    def text(self) -> str:
        return "".join(event.get("delta", "") for event in self.events)


@dataclass
class Behind:
    """The crucible server behind nginx."""

    pipeline: Pipeline
    port: int  # nginx's
    server: trio.CancelScope
    responses: list[ProxiedResponse] = field(default_factory=list)

    async def start(
        self, location: str, *lines: tuple[str, str], receive_buffer: int = 65536, **ask: str
    ) -> ProxiedResponse:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        response = ProxiedResponse(trio.SocketStream(sock))
        self.responses.append(response)
        await sock.connect(("127.0.0.1", self.port))
        body = msgspec.json.encode({"input": "x", "mode": "deep"} | ask)
        await response.ask(f"/{location}/v1/streams", body, *lines)
        return response


@pytest.fixture
def behind_nginx(need_program: Callable[[str], str], tmp_path: Path) -> Callable[..., AsyncIterator[Behind]]:
    """`async with behind_nginx(engine) as behind`. `chaos` adds a chaos proxy between nginx and the server."""
    nginx = need_program("nginx")

    @asynccontextmanager
    async def opened(
        engine: ScriptedEngine, *, chaos=(), settings: ServiceSettings | None = None
    ) -> AsyncIterator[Behind]:
        settings = settings or load_settings({}, retry_milliseconds=1)
        config = Config.from_settings(settings.server, settings.pipeline)
        config.bind = ["127.0.0.1:0"]
        scope = trio.CancelScope()

        async def run(app, *, task_status: trio.TaskStatus[list[str]]) -> None:
            with scope:
                await serve(app, config, task_status=task_status)

        with trio.fail_after(60), socket.create_server(("127.0.0.1", 0)) as listener:
            async with open_pipeline(engine, settings.pipeline) as pipeline, trio.open_nursery() as nursery:
                [url] = await nursery.start(run, create_app(pipeline, settings.apis))
                port, server = listener.getsockname()[1], int(url.rsplit(":", 1)[1])
                async with open_chaos_proxy(server, chaos) as proxy:
                    server = proxy.port if chaos else server  # the proxy's buffers would add to the measurement
                    file = tmp_path / "nginx.conf"
                    user = "user root;" if os.geteuid() == 0 else ""
                    file.write_text(CONFIGURATION % {"user": user, "port": port, "server": server})
                    command = [nginx, "-p", f"{tmp_path}/", "-e", "stderr", "-c", str(file)]
                    # nginx inherits a listening socket, as in an upgrade, so no other process can take the port.
                    environment = os.environ | {"NGINX": f"{listener.fileno()};"}
                    options = {"pass_fds": [listener.fileno()], "env": environment, "stderr": subprocess.PIPE}
                    process = await nursery.start(partial(trio.run_process, command, check=False, **options))
                    behind = Behind(pipeline, port, scope)
                    try:
                        yield behind
                    finally:
                        for response in behind.responses:
                            response.stream.socket.close()
                        process.terminate()
                        with trio.CancelScope(shield=True):
                            await process.wait()
                nursery.cancel_scope.cancel()

    return opened


@pytest.mark.parametrize("location", UNBUFFERED)
async def test_each_record_arrives_while_the_engine_waits_for_it(behind_nginx, location) -> None:
    gates = [Gate(), Gate()]
    engine = ScriptedEngine(gates[0], Reasoning("hm "), gates[1], split_text(TEXT * 20, 50, seed=3))
    async with behind_nginx(engine) as behind:
        response = await behind.start(location, ("Accept-Encoding", "gzip"))
        await response.read_until("stream.created")
        assert engine.written == []
        gates[0].open()
        await response.read_until("reasoning.delta")
        assert engine.written == ["hm "]
        gates[1].open()
        await response.read_to_end()
        assert response.whole
        assert response.text == "hm " + TEXT * 20
        assert (response.headers.get("content-encoding") == "gzip") == (location == "gzip")
        assert [event["seq"] for event in response.events] == list(range(1, len(response.events) + 1))


async def test_a_buffering_proxy_delays_records_and_loses_none(behind_nginx) -> None:
    async with behind_nginx(ScriptedEngine(Reasoning("hm "), split_text(TEXT * 500, 300, seed=3))) as behind:
        response = await behind.start("buffered")
        await response.read_to_end()
        assert response.whole
        assert response.text == "hm " + TEXT * 500


@pytest.mark.parametrize("location", UNBUFFERED[:2])
async def test_a_stalled_client_stops_the_engine_once_the_proxy_is_full(
    behind_nginx, location, record_property
) -> None:
    piece = "x" * 1000
    engine = ScriptedEngine(Repeat(piece))
    async with behind_nginx(engine) as behind:
        response = await behind.start(location, receive_buffer=4096)
        await response.read_until("output.delta")
        before = -1
        [run] = engine.runs
        while len(run.written) != before:  # until the engine waits
            before = len(run.written)
            await trio.sleep(0.4)
        mib = before * len(piece) / 2**20
        record_property("engine_ahead_mib", mib)
        print(f"{location}: the engine stopped {mib:.2f} MiB ahead of a client that stopped reading")
        [stream] = await behind.pipeline.list()
        assert stream.status == "running"  # waiting, not ended by a limit
        assert stream.log.readers == 1


@pytest.mark.parametrize("location", [*UNBUFFERED, "buffered"])
async def test_a_body_that_the_server_cuts_never_looks_complete(behind_nginx, location) -> None:
    gate = Gate()
    async with behind_nginx(ScriptedEngine("x" * 9000, gate)) as behind:
        response = await behind.start(location)
        await gate.wait_reached()
        await response.read_until("stream.created")
        behind.server.cancel()  # resets all connections
        with pytest.raises((trio.BrokenResourceError, h11.RemoteProtocolError)):
            await response.read_to_end()
        assert not response.whole


async def test_a_client_that_disconnects_from_the_proxy_cancels_the_engine(behind_nginx) -> None:
    gate = Gate()
    engine = ScriptedEngine("x", gate)
    async with behind_nginx(engine) as behind:
        response = await behind.start("default", on_disconnect="cancel")
        await response.read_until("output.delta")
        response.stream.socket.close()
        await engine.runs[0].ended.wait()
        assert engine.runs[0].end == "cancelled"


@pytest.mark.parametrize("location", ["default", "http11"])
async def test_cuts_on_both_sides_of_the_proxy_lose_nothing(behind_nginx, location) -> None:
    engine = ScriptedEngine(Reasoning("hm "), 0.01, split_text(TEXT * 40, 100, seed=3), Repeat("y" * 5000, 3))
    chaos = [RandomChaos(seed=seed, untouched=0.6, endless_stalls=False) for seed in (1, 2)]
    async with (
        behind_nginx(engine, chaos=chaos[0]) as behind,
        open_chaos_proxy(behind.port, chaos[1]) as proxy,
        open_client(
            f"{proxy.url}/{location}", retry_seconds=0.001, silence_seconds=2, max_first_attempts=20, max_attempts=20
        ) as client,
        trio.open_nursery() as nursery,
    ):

        async def read() -> None:
            async with client.start(Request("x", mode="deep")) as stream:
                records = [record async for record in stream]
            assert "".join(getattr(record, "delta", "") for record in records) == "hm " + TEXT * 40 + "y" * 15000
            assert [record.seq for record in records] == list(range(1, len(records) + 1))

        for _ in range(6):
            nursery.start_soon(read)
