"""sse-starlette on uvicorn with uvloop and httptools.

A queue of 64 for each reader, a list as log, each event encoded once.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator

import uvicorn
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.servers.asyncio_model import AsyncioModel
from benchmarks.spec import Spec

model = AsyncioModel()
streams: dict[str, StarletteStream] = {}


class StarletteStream:
    """One stream: its log, and a queue for each reader."""

    def __init__(self, on_disconnect: str) -> None:
        self.id = f"str_{secrets.token_hex(16)}"
        self.on_disconnect = on_disconnect
        self.log: list[bytes] = []
        self.finished = False
        self.queues: set[asyncio.Queue[bytes | None]] = set()
        self.reader_attached = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def run(self, spec: Spec) -> None:
        await model.generate(spec, self.put)
        await self.publish("stream.completed", finish_reason="stop")
        self.finished = True
        for queue in tuple(self.queues):
            await queue.put(None)

    async def put(self, text: str) -> None:
        while not self.queues and self.on_disconnect == "pause":
            self.reader_attached.clear()
            await self.reader_attached.wait()
        await self.publish("output.delta", delta=text)

    async def publish(self, kind: str, **fields: object) -> None:
        seq = len(self.log) + 1
        data = json.dumps({"type": kind, "seq": seq, **fields})
        event = ServerSentEvent(data, id=f"{self.id}.{seq}").encode()
        self.log.append(event)
        for queue in tuple(self.queues):
            await queue.put(event)

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(64)
        try:
            while after < len(self.log):
                yield self.log[after]
                after += 1
            if self.finished:
                return
            self.queues.add(queue)
            self.reader_attached.set()
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self.leave(queue)

    def leave(self, queue: asyncio.Queue[bytes | None]) -> None:
        self.queues.discard(queue)
        while not queue.empty():  # wakes a task that waits in `put`
            queue.get_nowait()
        if not self.queues and self.on_disconnect == "cancel" and not self.finished and self.task is not None:
            self.task.cancel()


async def start(request: Request) -> Response:
    body = await request.json()
    stream = StarletteStream(body.get("on_disconnect", "pause"))
    streams[stream.id] = stream
    await stream.publish("stream.created", stream=stream.id)
    stream.task = asyncio.create_task(stream.run(Spec.from_json(body["input"])))
    return EventSourceResponse(stream.follow(0), ping=10)


async def events(request: Request) -> Response:
    stream = streams.get(request.path_params["stream_id"])
    if stream is None:
        raise HTTPException(404)
    after = int(request.headers.get("Last-Event-ID", ".0").rpartition(".")[2])
    return EventSourceResponse(stream.follow(after), ping=10)


async def bench(_: Request) -> Response:
    return JSONResponse(model.report())


async def go(_: Request) -> Response:
    model.go.set()
    return JSONResponse({})


app = Starlette(
    routes=[
        Route("/v1/streams", start, methods=["POST"]),
        Route("/v1/streams/{stream_id}/events", events),
        Route("/bench", bench),
        Route("/bench/go", go),
    ]
)

if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
