"""A gateway written by hand: aiohttp's client and server with uvloop.

It parses each chunk of the upstream, keeps it in a log, and gives it an id from which a client can resume. A queue of
64 for each reader, as in `aiohttp_server.py`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing

import aiohttp
import uvloop
from aiohttp import web

UPSTREAM = sys.argv[1]
streams: dict[str, GatewayStream] = {}


class GatewayStream:
    """One completion: its log, and a queue for each reader."""

    def __init__(self) -> None:
        self.id = f"str_{secrets.token_hex(16)}"
        self.log: list[bytes] = []
        self.text: list[str] = []
        self.finish_reason: str | None = None
        self.finished = False
        self.queues: set[asyncio.Queue[bytes | None]] = set()
        self.task: asyncio.Task[None] | None = None

    async def run(self, session: aiohttp.ClientSession, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        async with session.post(f"{UPSTREAM}/chat/completions", data=body, headers=headers) as response:
            async for line in response.content:
                if line.startswith(b"data:"):
                    await self.take(line[5:].strip())
        self.finished = True
        for queue in tuple(self.queues):
            await queue.put(None)

    async def take(self, data: bytes) -> None:
        if data != b"[DONE]":
            chunk = json.loads(data)
            for choice in chunk["choices"]:
                if content := choice["delta"].get("content"):
                    self.text.append(content)
                self.finish_reason = choice["finish_reason"] or self.finish_reason
        event = b"id: %b.%d\ndata: %b\n\n" % (self.id.encode(), len(self.log) + 1, data)
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
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self.leave(queue)

    def leave(self, queue: asyncio.Queue[bytes | None]) -> None:
        self.queues.discard(queue)
        while not queue.empty():  # wakes a task that waits in `take`
            queue.get_nowait()

    async def answer(self, request: web.Request, after: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        async with aclosing(self.follow(after)) as events:
            async for event in events:
                await response.write(event)
        return response


async def start(request: web.Request) -> web.StreamResponse:
    stream = GatewayStream()
    streams[stream.id] = stream
    stream.task = asyncio.create_task(stream.run(request.app[SESSION], await request.read()))
    return await stream.answer(request, 0)


async def resume(request: web.Request) -> web.StreamResponse:
    stream = streams.get(request.match_info["stream_id"])
    if stream is None:
        raise web.HTTPNotFound
    return await stream.answer(request, int(request.headers.get("Last-Event-ID", ".0").rpartition(".")[2]))


SESSION = web.AppKey("session", aiohttp.ClientSession)


async def main() -> None:
    # aiohttp's default is 100 connections, and the scenario has more streams.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout()
    ) as session:
        app = web.Application()
        app[SESSION] = session
        app.router.add_post("/v1/chat/completions", start)
        app.router.add_get("/v1/streams/{stream_id}/events", resume)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        await web.SockSite(runner, listener, backlog=2048).start()
        print(listener.getsockname()[1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
