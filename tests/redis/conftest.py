"""A real redis-server that the tests start, stop, freeze and kill, and pipelines over it.

These tests run in real time, because a clock of trio's own does not move another process. They wait for events and
states, never for a time.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import msgspec
import pytest
import trio

from crucible_trio.config import Settings
from crucible_trio.engine import EngineSource
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import AnyRecord
from crucible_trio.sse import Decoder
from crucible_trio.stream import Stream

# Long for a machine that does other things too. A test that waits this long has failed.
PATIENCE_SECONDS = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("redis")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """`free_ports(2)`: ports on which nothing listens."""
    return lambda count: [free_port() for _ in range(count)]


class RedisServer:
    """One redis-server on a port of its own.

    Args:
        program: The path of redis-server.
        folder: Where it keeps its files.
        options: Further options of redis-server.
    """

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.options = options
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        command = [self._program, *options, "--loglevel", "warning", *self.options]
        log = (self._folder / "redis.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        for _ in range(500):
            with suppress(OSError):
                if self.command("PING") in {"+PONG", "-NOAUTH Authentication required."}:
                    return
            time.sleep(0.02)
        raise AssertionError((self._folder / "redis.log").read_text())

    def command(self, *words: str) -> str:
        """Send one command and return the first line of its answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
            sock.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return sock.makefile("rb").readline().decode().strip()

    def keys(self) -> int:
        """How many keys it has."""
        return int(self.command("DBSIZE").removeprefix(":"))

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """It answers nothing while the block runs."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)


NewRedis: TypeAlias = Callable[..., RedisServer]


@pytest.fixture(scope="session")
def redis_program(need_program: Callable[[str], str], skip_missing: Callable[[str], None]) -> str:
    try:
        import hiredis  # noqa: F401
    except ImportError:
        skip_missing("hiredis is not installed")
    return need_program("redis-server")


@pytest.fixture
def new_redis(redis_program: str, tmp_path: Path) -> Iterator[NewRedis]:
    """`new_redis("--appendonly", "yes")` starts a server."""
    servers: list[RedisServer] = []

    def new_redis(*options: str) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        server = RedisServer(redis_program, folder, *options)
        servers.append(server)
        server.start()
        return server

    yield new_redis
    for server in servers:
        with suppress(AssertionError, ProcessLookupError):
            server.signal(signal.SIGCONT)
        server.kill()


@pytest.fixture
def redis(new_redis: NewRedis) -> RedisServer:
    """A server that keeps nothing on disk."""
    return new_redis()


OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]


@pytest.fixture
def open_over(redis: RedisServer) -> OpenPipeline:
    """`async with open_over(engine) as pipeline`: a pipeline over the server. Two of them are like two processes."""

    @asynccontextmanager
    async def open_over(engine: EngineSource, url: str | None = None, **fields: Any) -> AsyncIterator[Pipeline]:
        settings = Settings(log_url=url or redis.url, **{"log_lease_seconds": 1.0, **fields})
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_pipeline(engine, settings) as pipeline:
                yield pipeline

    return open_over


@pytest.fixture(scope="session")
def read_to_end() -> Callable[..., Awaitable[list[AnyRecord]]]:
    """Read a stream as a program does, from an offset to the terminal record."""

    async def read_to_end(stream: Stream, after: int = 0) -> list[AnyRecord]:
        async with stream.attach(after) as reader:
            return [record async for record in reader]

    return read_to_end


async def _until(condition: Callable[[], object]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():
            await trio.sleep(0.01)


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """`await until(condition)`: for states of another process, which set no event."""
    return _until


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """The environment without settings of the tests' own shell."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")}


class Served:
    """One `crucible serve` process over Redis."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.url = ""
        self.stderr = b""

    async def read_log_until(self, pattern: bytes) -> re.Match[bytes]:
        assert self.process.stderr is not None
        while (match := re.search(pattern, self.stderr)) is None:
            data = await self.process.stderr.receive_some()
            assert data, self.stderr.decode()
            self.stderr += data
        return match

    async def drop_log(self) -> None:
        """Keep the process's log from filling its pipe."""
        assert self.process.stderr is not None
        while data := await self.process.stderr.receive_some():
            self.stderr += data

    async def kill(self) -> None:
        """End it with SIGKILL, as a crash does."""
        self.process.kill()
        await self.process.wait()


OpenServed: TypeAlias = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve_process(redis: RedisServer, clean_environment: dict[str, str]) -> OpenServed:
    """`async with serve_process("--replay-speed", "5") as served`: `crucible serve` with the replay engine."""

    @asynccontextmanager
    async def serve_process(*arguments: str, url: str | None = None, **variables: str) -> AsyncIterator[Served]:
        program = "from crucible_trio.cli import main; main()"
        options = ["serve", "--engine", "replay", "--bind", "127.0.0.1:0", *arguments]
        environment = clean_environment | {
            "CRUCIBLE_LOG_URL": url or redis.url,
            "CRUCIBLE_TOKEN_SECRET": "a secret of these tests",
            # A process on a busy machine may wait for its core for seconds. Tests of a death set it lower.
            "CRUCIBLE_LOG_LEASE_SECONDS": "10",
            **variables,
        }
        command = [sys.executable, "-c", program, *options]
        async with trio.open_nursery() as nursery:
            with trio.fail_after(2 * PATIENCE_SECONDS):
                run = partial(trio.run_process, command, check=False, env=environment, stderr=subprocess.PIPE)
                served = Served(await nursery.start(run))
                try:
                    served.url = (await served.read_log_until(rb"serving on (http://\S+?),?\s"))[1].decode()
                    nursery.start_soon(served.drop_log)
                    yield served
                finally:
                    served.process.send_signal(signal.SIGCONT)
                    served.process.kill()
                    nursery.cancel_scope.cancel()

    return serve_process


class EventStream:
    """What a client has received of one stream.

    Attributes:
        events: The events with an id, as JSON.
        last_id: The id of the last one.
        is_reset: Whether the connection ended without a clean end.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.last_id = ""
        self.is_reset = False
        self.changed = trio.Event()

    @property
    def text(self) -> str:
        return "".join(event.get("delta", "") for event in self.events)

    async def has(self, count: int) -> None:
        """Wait until it has this many events."""
        while len(self.events) < count:
            await self.changed.wait()

    async def read(self, url: str, path: str = "", **parameters: str) -> None:
        """Read until the body ends, from the last id on."""
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        decoder = Decoder()
        try:
            async with (
                httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http,
                http.stream("GET", f"{url}{path or '/v1/generate'}", params=parameters, headers=headers) as response,
            ):
                assert response.status_code == 200, await response.aread()
                async for data in response.aiter_bytes():
                    for event in decoder.feed(data):
                        if event.id:
                            self.last_id = event.id
                            self.events.append(msgspec.json.decode(event.data or "{}"))
                            self.changed.set()
                            self.changed = trio.Event()
        except httpx.TransportError:
            self.is_reset = True


@pytest.fixture
def event_stream() -> type[EventStream]:
    return EventStream


@pytest.fixture
def certificate(need_program: Callable[[str], str], tmp_path: Path) -> tuple[Path, Path]:
    """The files of a key, and of a certificate for 127.0.0.1 that the key itself has signed."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=a test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [need_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


@asynccontextmanager
async def _delayed(port: int, seconds: float) -> AsyncIterator[int]:
    """A proxy in front of a port that delays everything. Yields its own port."""

    async def pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](10_000)

        async def deliver() -> None:
            async for due, data in receive:
                await trio.sleep_until(due)
                await sink.send_all(data)
            await sink.send_eof()

        try:
            async with trio.open_nursery() as nursery, send:
                nursery.start_soon(deliver)
                async for data in source:
                    await send.send((trio.current_time() + seconds, bytes(data)))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", port)
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, client, server)
            nursery.start_soon(pass_on, server, client)

    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.fixture
def delayed() -> Callable[[int, float], AbstractAsyncContextManager[int]]:
    """`async with delayed(redis.port, 0.025) as port`: a Redis that is far away."""
    return _delayed
