"""aiohttp-sse on aiohttp with uvloop. A queue of 64 for each reader, a list as log, JSON encoded once per record."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing

import uvloop
from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from benchmarks.servers.asyncio_model import AsyncioModel
from benchmarks.spec import Spec

model = AsyncioModel()
streams: dict[str, AiohttpStream] = {}
Event = tuple[str, str]  # data, id


class AiohttpStream:
    """One stream: its log, and a queue for each reader."""

    def __init__(self, on_disconnect: str) -> None:
        self.id = f"str_{secrets.token_hex(16)}"
        self.on_disconnect = on_disconnect
        self.log: list[Event] = []
        self.finished = False
        self.queues: set[asyncio.Queue[Event | None]] = set()
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
        event = json.dumps({"type": kind, "seq": seq, **fields}), f"{self.id}.{seq}"
        self.log.append(event)
        for queue in tuple(self.queues):
            await queue.put(event)

    async def follow(self, after: int) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event | None] = asyncio.Queue(64)
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

    def leave(self, queue: asyncio.Queue[Event | None]) -> None:
        self.queues.discard(queue)
        while not queue.empty():  # wakes a task that waits in `put`
            queue.get_nowait()
        if not self.queues and self.on_disconnect == "cancel" and not self.finished and self.task is not None:
            self.task.cancel()

    async def answer(self, request: web.Request, after: int) -> EventSourceResponse:
        async with (
            sse_response(request, ping_interval=10, allow_all_methods=True) as response,
            aclosing(self.follow(after)) as events,
        ):
            async for data, event_id in events:
                await response.send(data, id=event_id)
        return response


async def start(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    stream = AiohttpStream(body.get("on_disconnect", "pause"))
    streams[stream.id] = stream
    await stream.publish("stream.created", stream=stream.id)
    stream.task = asyncio.create_task(stream.run(Spec.from_json(body["input"])))
    return await stream.answer(request, 0)


async def events(request: web.Request) -> web.StreamResponse:
    stream = streams.get(request.match_info["stream_id"])
    if stream is None:
        raise web.HTTPNotFound
    after = int(request.headers.get("Last-Event-ID", ".0").rpartition(".")[2])
    return await stream.answer(request, after)


async def bench(_: web.Request) -> web.Response:
    return web.json_response(model.report())


async def go(_: web.Request) -> web.Response:
    model.go.set()
    return web.json_response({})


async def main() -> None:
    app = web.Application()
    app.router.add_post("/v1/streams", start)
    app.router.add_get("/v1/streams/{stream_id}/events", events)
    app.router.add_get("/bench", bench)
    app.router.add_get("/bench/go", go)
    # Without `handler_cancellation` aiohttp notices a disconnect only at the next write.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    await web.SockSite(runner, listener, backlog=2048).start()
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
