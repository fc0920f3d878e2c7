"""Real servers on real sockets, and a client that records every byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import hypercorn.config
import hypercorn.trio
import msgspec
import pytest
import trio

from crucible_trio import Pipeline, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.settings import ApiSettings, ServiceSettings, load_settings
from crucible_trio.sse import Decoder
from crucible_trio.web import create_app

Kind = Literal["own", "plain", "stock"]  # our server with direct writes, our server without them, stock hypercorn


@dataclass
class Client:
    """One raw connection. `received` holds every byte so far."""

    stream: trio.SocketStream
    received: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def request(self, method: str, path: str, *lines: str, body: bytes = b"", version: str = "1.1") -> None:
        head = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1", *lines]
        if body:
            head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        await self.send("\r\n".join([*head, "", ""]).encode() + body)

    async def start(self, *lines: str, version: str = "1.1", **ask: Any) -> None:
        """Start a stream over SSE."""
        body = msgspec.json.encode({"input": "letters"} | ask)
        await self.request("POST", "/v1/streams", "Accept: text/event-stream", *lines, body=body, version=version)

    async def receive(self, limit: int = 65536) -> bytes:
        data = bytes(await self.stream.receive_some(limit))
        self.received += data
        return data

    async def read_until(self, end: bytes) -> bytes:
        while end not in self.received:
            assert await self.receive(), f"the connection ended before {end!r}: {self.received!r}"
        return self.received

    async def read_to_close(self) -> bytes:
        """Receive everything until FIN. A reset raises `trio.BrokenResourceError`."""
        while await self.receive():
            pass
        return self.received

    async def read_response(self) -> tuple[int, bytes]:
        """Receive a response with a Content-Length, remove it from `received`, and return its status and body."""
        await self.read_until(b"\r\n\r\n")
        head, _, rest = self.received.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        length = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
        )
        while len(rest) < length:
            assert await self.receive()
            rest = self.received.partition(b"\r\n\r\n")[2]
        self.received = rest[length:]
        return status, rest[:length]

    def reset(self) -> None:
        """Close with RST."""
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The complete events received so far, in order, as JSON. `id` is the value of the event's id line."""
        return events_in(self.received)

    @property
    def text(self) -> str:
        return "".join(event.get("delta", "") for event in self.events)

    @property
    def last_id(self) -> str:
        return next((event["id"] for event in reversed(self.events) if event["id"]), "")


def body_in(received: bytes) -> bytes:
    """The response body received so far, without the chunk framing."""
    head, _, rest = received.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = []
    position = 0
    while (end := rest.find(b"\r\n", position)) >= 0:
        length = int(rest[position:end], 16)
        body.append(rest[end + 2 : end + 2 + length])
        position = end + 2 + length + 2
        if length == 0:
            break
    return b"".join(body)


def events_in(received: bytes) -> list[dict[str, Any]]:
    events = Decoder().feed(body_in(received))
    return [{"id": event.id or ""} | msgspec.json.decode(event.data or "{}") for event in events]


@dataclass
class Served:
    """An application on a running server."""

    pipeline: Pipeline
    port: int
    scope: trio.CancelScope
    stopping: trio.Event
    stopped: trio.Event
    clients: list[Client] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def connect(self, *, receive_buffer: int | None = None) -> Client:
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        client = Client(trio.SocketStream(sock))
        self.clients.append(client)
        return client

    async def is_alive(self) -> bool:
        client = await self.connect()
        await client.request("GET", "/healthz")
        return (await client.read_response())[0] == 200


@asynccontextmanager
async def _serving(
    engine: Any,
    settings: ServiceSettings | None = None,
    *,
    kind: Kind = "own",
    app: Callable[[Pipeline, ApiSettings], Any] = create_app,
    **options: Any,
) -> AsyncIterator[Served]:
    stopping, stopped = trio.Event(), trio.Event()
    settings = settings or load_settings({})
    async with open_pipeline(engine, settings.pipeline) as pipeline, trio.open_nursery() as nursery:
        if kind != "stock":
            config = Config.from_settings(settings.server, settings.pipeline)
            config.direct_writes = kind == "own"
            run = partial(serve, app(pipeline, settings.apis), config, drain=pipeline.drain, shutdown=stopping.wait)
        else:
            config = hypercorn.config.Config()
            config.errorlog = None
            run = partial(hypercorn.trio.serve, app(pipeline, settings.apis), config, shutdown_trigger=stopping.wait)
        config.bind = ["127.0.0.1:0"]
        for name, value in options.items():
            assert hasattr(config, name)
            setattr(config, name, value)
        scope = trio.CancelScope()

        async def run_until_stopped(*, task_status: trio.TaskStatus[list[str]]) -> None:
            with scope:
                await run(task_status=task_status)
            stopped.set()

        urls = await nursery.start(run_until_stopped)
        served = Served(pipeline, int(urls[0].rsplit(":", 1)[1]), scope, stopping, stopped)
        yield served
        assert kind == "own" or not pipeline.batcher.direct_writes
        for client in served.clients:
            client.stream.socket.close()
        scope.cancel()


@pytest.fixture(params=["own", "plain", "stock"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every server, for the promises that stock hypercorn keeps too."""
    return request.param


@pytest.fixture
def serving() -> Callable[..., AbstractAsyncContextManager[Served]]:
    """`async with serving(engine, settings, kind=..., **server_config) as served`."""
    return _serving


@pytest.fixture
def decode_events() -> Callable[[bytes], list[dict[str, Any]]]:
    return events_in
