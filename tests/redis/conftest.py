"""A real redis-server that the tests start, stop, freeze and kill, and pipelines over it.

These tests run in real time, because a clock of trio's own does not move another process. They wait for events and
states, never for a time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

from crucible_trio.config import Settings
from crucible_trio.engine import EngineSource
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import AnyRecord
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
        self._process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
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
        import coredis  # noqa: F401
    except ImportError:
        skip_missing("coredis is not installed")
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
