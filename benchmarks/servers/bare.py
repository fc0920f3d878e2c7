"""The bare forms: prepared frames, no queue, no log, one event per send. They show whether a run is valid.

`python -m benchmarks.servers.bare FORM` starts one. `GET /` answers with `EVENTS` events.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

EVENTS: Final = 50_000
DATA: Final = '{"type":"output.delta","seq":1234567,"delta":"%s"}' % ("x" * 24)
ID: Final = "str_7Q2M4kWcT0aXn3v9Lz.123"
FRAME: Final = f"data: {DATA}\nid: {ID}\n\n".encode()
assert len(FRAME) == 111


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    return listener


def _run_uvicorn(app: Any) -> None:
    import uvicorn

    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[_listen()])


async def _frames() -> AsyncIterator[bytes]:
    for _ in range(EVENTS):
        yield FRAME


def trio_tcp() -> None:
    """The baseline for trio servers: one `send_all` per event."""
    import trio

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for _ in range(EVENTS):
            await stream.send_all(FRAME)
        await stream.aclose()

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen()))
    trio.run(trio.serve_listeners, handle, [listener])


def uvicorn() -> None:
    """The baseline for the ASGI servers here. uvicorn merges writes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(EVENTS):
            await send({"type": "http.response.body", "body": FRAME, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    _run_uvicorn(app)


def sse_starlette() -> None:
    """sse-starlette with events that are already bytes."""
    from sse_starlette import EventSourceResponse

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await EventSourceResponse(_frames())(scope, receive, send)

    _run_uvicorn(app)


def fastapi() -> None:
    """FastAPI's SSE with events that are already JSON."""
    from fastapi import FastAPI
    from fastapi.sse import EventSourceResponse, ServerSentEvent

    app = FastAPI()
    event = ServerSentEvent(raw_data=DATA, id=ID)

    @app.get("/", response_class=EventSourceResponse)
    async def events() -> AsyncIterator[ServerSentEvent]:
        for _ in range(EVENTS):
            yield event

    _run_uvicorn(app)


def aiohttp_sse() -> None:
    """aiohttp-sse with data that is already JSON."""
    import asyncio

    import uvloop
    from aiohttp import web
    from aiohttp_sse import sse_response

    async def events(request: web.Request) -> web.StreamResponse:
        async with sse_response(request) as response:
            for _ in range(EVENTS):
                await response.send(DATA, id=ID)
        return response

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", events)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, _listen()).start()
        await asyncio.Event().wait()

    uvloop.run(main())


def quart_trio() -> None:
    """A quart-trio async generator on stock hypercorn's trio worker."""
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve
    from quart import Response
    from quart_trio import QuartTrio

    app = QuartTrio(__name__)

    @app.get("/")
    async def events() -> Response:
        return Response(_frames(), content_type="text/event-stream")

    listener = _listen()
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    trio.run(serve, app, config)


FORMS: Final = {
    "trio-tcp": trio_tcp,
    "uvicorn": uvicorn,
    "sse-starlette": sse_starlette,
    "fastapi": fastapi,
    "aiohttp-sse": aiohttp_sse,
    "quart-trio": quart_trio,
}

if __name__ == "__main__":
    FORMS[sys.argv[1]]()
