"""Runs an ASGI application in this process as a server. Its messages become the bytes that a client would receive.

No socket is used. The application's `send` returns when the client reads, so backpressure is exact and virtual time
works. The application must run on trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, final
from urllib.parse import unquote

import h11
import trio

from crucible_trio.errors import ConfigError
from crucible_trio.testing.resume.network import Network, RawConnection

AsgiMessage: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

_HOST = "localhost"


@asynccontextmanager
async def open_asgi(app: AsgiApp) -> AsyncIterator[Network]:
    """Run an application's lifespan, if it has one, and return a network that connects to it.

    Raises:
        ConfigError: The application reports that its startup failed.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        lifespan = _Lifespan(app)
        try:
            await nursery.start(lifespan.run)
            yield _AsgiNetwork(app, nursery)
            await lifespan.end()
        except Exception as error:  # raised below, outside the nursery, which would wrap it in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@final
class _Lifespan:
    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._ending = trio.Event()
        self._ended = trio.Event()
        self._has_begun = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        is_started = False

        async def receive() -> AsgiMessage:
            await trio.lowlevel.checkpoint()
            if self._has_begun:
                await self._ending.wait()
                return {"type": "lifespan.shutdown"}
            self._has_begun = True
            return {"type": "lifespan.startup"}

        async def send(message: AsgiMessage) -> None:
            nonlocal is_started
            await trio.lowlevel.checkpoint()
            if message["type"] == "lifespan.startup.failed":
                raise ConfigError(message.get("message") or "the application cannot start")
            if not is_started:
                is_started = True
                task_status.started()

        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await self._app(scope, receive, send)
        except ConfigError:
            raise
        except Exception:
            # An application without lifespan support raises here, as the ASGI specification allows. An application
            # that has started must not raise.
            if is_started:
                raise
        finally:
            self._ended.set()
        if not is_started:
            task_status.started()

    async def end(self) -> None:
        self._ending.set()
        await self._ended.wait()


@final
class _AsgiNetwork:
    def __init__(self, app: AsgiApp, nursery: trio.Nursery) -> None:
        self.name = f"the application {getattr(app, '__name__', type(app).__name__)}"
        self.host = _HOST
        self.base = ""
        self._app = app
        self._nursery = nursery

    async def connect(self) -> RawConnection:
        await trio.lowlevel.checkpoint()
        return _AsgiConnection(self._app, self._nursery)


@final
class _AsgiConnection:
    """One request and its response, as HTTP/1.1 bytes."""

    def __init__(self, app: AsgiApp, nursery: trio.Nursery) -> None:
        self._app = app
        self._nursery = nursery
        self._http = h11.Connection(h11.SERVER)
        self._disconnected = trio.Event()
        self._body: bytes | None = None  # the request's body, until the application has received it
        self._start: h11.Response | None = None
        self._unread = b""
        self._is_broken = False
        self._send, self._receive = trio.open_memory_channel[bytes](0)

    async def send_all(self, data: bytes) -> None:
        """Parse a complete request and call the application."""
        await trio.lowlevel.checkpoint()
        self._http.receive_data(data)
        request = self._http.next_event()
        assert isinstance(request, h11.Request)
        self._body = b""
        while isinstance(event := self._http.next_event(), h11.Data):
            self._body += bytes(event.data)
        self._nursery.start_soon(self._run, request)

    async def receive_some(self, max_bytes: int) -> bytes:
        while not self._unread:
            try:
                self._unread = await self._receive.receive()
            except trio.EndOfChannel:
                if self._is_broken:
                    raise trio.BrokenResourceError from None
                return b""
        data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
        return data

    def close(self, *, reset: bool) -> None:
        # An ASGI application cannot tell RST from FIN.
        self._disconnected.set()
        self._receive.close()

    async def _run(self, request: h11.Request) -> None:
        with self._send:
            try:
                await self._app(self._scope(request), self._next_message, self._answer)
            except Exception:  # a server resets this connection and continues
                self._is_broken = True
            if self._http.our_state is not h11.DONE:
                self._is_broken = True

    def _scope(self, request: h11.Request) -> dict[str, object]:
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(bytes(name), bytes(value)) for name, value in request.headers],
            "client": ("127.0.0.1", 50000),
            "server": (_HOST, 80),
            "state": {},
            "extensions": {},
        }

    async def _next_message(self) -> AsgiMessage:
        await trio.lowlevel.checkpoint()
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _answer(self, message: AsgiMessage) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            self._start = h11.Response(status_code=message["status"], headers=headers)
            return
        if message["type"] != "http.response.body":
            return
        data = b""
        if self._start is not None:
            data += self._http.send(self._start) or b""
            self._start = None
        if body := message.get("body", b""):
            data += self._http.send(h11.Data(data=bytes(body))) or b""
        is_last = not message.get("more_body", False)
        if is_last:
            data += self._http.send(h11.EndOfMessage()) or b""
        try:
            if data:
                await self._send.send(data)
        except trio.BrokenResourceError:
            pass  # the client has closed the connection and `receive` returns `http.disconnect`
        if is_last:
            self._disconnected.set()  # servers send `http.disconnect` at the end of every response
