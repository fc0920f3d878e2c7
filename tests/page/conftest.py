"""The page in Debian's Chromium, driven from the event loop that also serves it."""

from __future__ import annotations

import inspect
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import trio

from crucible_trio import Pipeline, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.settings import load_settings
from crucible_trio.web import create_app
from tests.page.browser import Chromium, run_chromium

# Wall-clock seconds. The machine may be shared and slow, so this limit makes a test fail and never makes it pass.
_TEST_SECONDS = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_ours = Path(__file__).parent in item.path.parents and isinstance(item, pytest.Function)
        if is_ours and inspect.iscoroutinefunction(item.obj):
            item.obj = _with_time_limit(item.obj)


def _with_time_limit(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def guarded(**fixtures: object) -> None:
        with trio.fail_after(_TEST_SECONDS):
            await test(**fixtures)

    return guarded


@pytest.fixture(scope="session")
def running_chromium(need_program: Callable[[str], str]) -> Iterator[Chromium]:
    with run_chromium(need_program("chromium")) as browser:
        yield browser


@pytest.fixture
def chromium(running_chromium: Chromium) -> Callable[[], AbstractAsyncContextManager[Chromium]]:
    """`async with chromium() as browser`. Leaving fails if a page had a problem."""

    @asynccontextmanager
    async def open_chromium() -> AsyncIterator[Chromium]:
        async with running_chromium.use_in_this_loop():
            yield running_chromium
            running_chromium.check()

    return open_chromium


# The server


@dataclass
class RelayedServer:
    """A pipeline, its server, and a relay in front of the server whose connections can be reset.

    Attributes:
        max_chunk: The largest chunk in bytes that the browser gets. None: any size.
    """

    pipeline: Pipeline
    port: int
    connections: set[trio.SocketStream] = field(default_factory=set)
    max_chunk: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def snapshot(self) -> Any:
        """The snapshot of the newest stream."""
        return next(iter(await self.pipeline.list())).snapshot()

    def reset(self) -> None:
        """Reset all open connections, as a lost network does."""
        for connection in self.connections:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.socket.close()

    async def relay(self, far_port: int, near: trio.SocketStream) -> None:
        self.connections.add(near)
        try:
            async with await trio.open_tcp_stream("127.0.0.1", far_port) as far, trio.open_nursery() as nursery:

                async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                    async for data in source:
                        if sink is far or self.max_chunk is None:
                            await sink.send_all(data)
                            continue
                        for begin in range(0, len(data), self.max_chunk):
                            await sink.send_all(data[begin : begin + self.max_chunk])
                            await trio.sleep(0.001)  # otherwise the kernel would join the chunks
                    nursery.cancel_scope.cancel()

                nursery.start_soon(copy, near, far)
                await copy(far, near)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side has disconnected, so the other one is closed too
        finally:
            self.connections.discard(near)
            near.socket.close()


@pytest.fixture
def serving() -> Callable[..., AbstractAsyncContextManager[RelayedServer]]:
    """`async with serving(engine, name_of_a_setting=...) as served`."""

    @asynccontextmanager
    async def open_server(engine: Any, **settings: Any) -> AsyncIterator[RelayedServer]:
        values = load_settings({}, **{"retry_milliseconds": 100} | settings)
        async with open_pipeline(engine, values.pipeline) as pipeline, trio.open_nursery() as nursery:
            config = Config.from_settings(values.server)
            config.bind = ["127.0.0.1:0"]
            urls = await nursery.start(partial(serve, create_app(pipeline, values.apis), config))
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            served = RelayedServer(pipeline, listener.socket.getsockname()[1])
            relay = partial(served.relay, int(urls[0].rsplit(":", 1)[1]))
            nursery.start_soon(trio.serve_listeners, relay, [listener])
            yield served
            nursery.cancel_scope.cancel()

    return open_server
