"""FastAPI's SSE on uvicorn with uvloop and httptools.

A queue of 64 for each reader, a list as log, JSON encoded once per record.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from benchmarks.servers.asyncio_model import AsyncioModel
from benchmarks.spec import Spec

app = FastAPI()
model = AsyncioModel()
streams: dict[str, FastapiStream] = {}


class StartBody(BaseModel):
    """The body of a request that starts a stream."""

    input: str
    on_disconnect: str = "pause"


class FastapiStream:
    """One stream: its log, and a queue for each reader."""

    def __init__(self, on_disconnect: str) -> None:
        self.id = f"str_{secrets.token_hex(16)}"
        self.on_disconnect = on_disconnect
        self.log: list[ServerSentEvent] = []
        self.finished = False
        self.queues: set[asyncio.Queue[ServerSentEvent | None]] = set()
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
        # `raw_data`, because FastAPI would encode `data` again for every reader.
        data = json.dumps({"type": kind, "seq": seq, **fields})
        event = ServerSentEvent(raw_data=data, id=f"{self.id}.{seq}")
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
            self.reader_attached.set()
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self.leave(queue)

    def leave(self, queue: asyncio.Queue[ServerSentEvent | None]) -> None:
        self.queues.discard(queue)
        while not queue.empty():  # wakes a task that waits in `put`
            queue.get_nowait()
        if not self.queues and self.on_disconnect == "cancel" and not self.finished and self.task is not None:
            self.task.cancel()


@app.post("/v1/streams", response_class=EventSourceResponse)
async def start(body: StartBody) -> AsyncIterator[ServerSentEvent]:
    stream = FastapiStream(body.on_disconnect)
    streams[stream.id] = stream
    await stream.publish("stream.created", stream=stream.id)
    stream.task = asyncio.create_task(stream.run(Spec.from_json(body.input)))
    async with aclosing(stream.follow(0)) as events:
        async for event in events:
            yield event


@app.get("/v1/streams/{stream_id}/events", response_class=EventSourceResponse)
async def follow(stream_id: str, last_event_id: Annotated[str, Header()] = ".0") -> AsyncIterator[ServerSentEvent]:
    stream = streams.get(stream_id)
    if stream is None:
        raise HTTPException(404)
    async with aclosing(stream.follow(int(last_event_id.rpartition(".")[2]))) as events:
        async for event in events:
            yield event


@app.get("/bench")
async def bench() -> dict[str, object]:
    return model.report()


@app.get("/bench/go")
async def go() -> dict[str, object]:
    model.go.set()
    return {}


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
