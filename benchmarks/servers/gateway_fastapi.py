"""A gateway as most Python services have it: FastAPI's SSE and httpx, on uvicorn with uvloop and httptools.

It parses each chunk of the upstream, keeps it in a log, and gives it an id from which a client can resume. A queue of
64 for each reader.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import Body, FastAPI, Header, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent

UPSTREAM = sys.argv[1]
app = FastAPI()
# httpx's default is 100 connections and 5 s, and the scenario has more streams.
client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
streams: dict[str, GatewayStream] = {}


class GatewayStream:
    """One completion: its log, and a queue for each reader."""

    def __init__(self) -> None:
        self.id = f"str_{secrets.token_hex(16)}"
        self.log: list[ServerSentEvent] = []
        self.text: list[str] = []
        self.finish_reason: str | None = None
        self.finished = False
        self.queues: set[asyncio.Queue[ServerSentEvent | None]] = set()
        self.task: asyncio.Task[None] | None = None

    async def run(self, body: dict[str, Any]) -> None:
        async with client.stream("POST", f"{UPSTREAM}/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    await self.take(line[5:].strip())
        self.finished = True
        for queue in tuple(self.queues):
            await queue.put(None)

    async def take(self, data: str) -> None:
        if data != "[DONE]":
            chunk = json.loads(data)
            for choice in chunk["choices"]:
                if content := choice["delta"].get("content"):
                    self.text.append(content)
                self.finish_reason = choice["finish_reason"] or self.finish_reason
        event = ServerSentEvent(raw_data=data, id=f"{self.id}.{len(self.log) + 1}")
        self.log.append(event)
        for queue in tuple(self.queues):
            await queue.put(event)

    async def follow(self, after: int) -> AsyncIterator[ServerSentEvent]:
        queue: asyncio.Queue[ServerSentEvent | None] = asyncio.Queue(64)
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

    def leave(self, queue: asyncio.Queue[ServerSentEvent | None]) -> None:
        self.queues.discard(queue)
        while not queue.empty():  # wakes a task that waits in `take`
            queue.get_nowait()


@app.post("/v1/chat/completions", response_class=EventSourceResponse)
async def start(body: Annotated[dict[str, Any], Body()]) -> AsyncIterator[ServerSentEvent]:
    stream = GatewayStream()
    streams[stream.id] = stream
    stream.task = asyncio.create_task(stream.run(body))
    async with aclosing(stream.follow(0)) as events:
        async for event in events:
            yield event


@app.get("/v1/streams/{stream_id}/events", response_class=EventSourceResponse)
async def resume(stream_id: str, last_event_id: Annotated[str, Header()] = ".0") -> AsyncIterator[ServerSentEvent]:
    stream = streams.get(stream_id)
    if stream is None:
        raise HTTPException(404)
    async with aclosing(stream.follow(int(last_event_id.rpartition(".")[2]))) as events:
        async for event in events:
            yield event


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
