"""A plain quart-trio route with an async generator, on stock hypercorn's trio worker.

A memory channel of 64 for each reader, a list as log.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import AsyncIterator
from math import inf

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, request
from quart_trio import QuartTrio

from benchmarks.servers.trio_model import TrioModel
from benchmarks.spec import Spec

app = QuartTrio(__name__)
model = TrioModel()
streams: dict[str, QuartStream] = {}


class QuartStream:
    """One stream: its log, and a memory channel for each reader."""

    def __init__(self, on_disconnect: str) -> None:
        self.id = f"str_{secrets.token_hex(16)}"
        self.on_disconnect = on_disconnect
        self.log: list[bytes] = []
        self.finished = False
        self.readers: set[trio.MemorySendChannel[bytes]] = set()
        self.reader_attached = trio.Event()
        self.scope = trio.CancelScope()

    async def run(self, spec: Spec) -> None:
        with self.scope:
            await model.generate(spec, self.put)
            await self.publish("stream.completed", finish_reason="stop")
        self.finished = True
        for reader in self.readers:
            reader.close()

    async def put(self, text: str) -> None:
        while not self.readers and self.on_disconnect == "pause":
            self.reader_attached = trio.Event()
            await self.reader_attached.wait()
        await self.publish("output.delta", delta=text)

    async def publish(self, kind: str, **fields: object) -> None:
        seq = len(self.log) + 1
        data = json.dumps({"type": kind, "seq": seq, **fields})
        event = f"id: {self.id}.{seq}\ndata: {data}\n\n".encode()
        self.log.append(event)
        for reader in tuple(self.readers):
            try:  # noqa: SIM105 - `suppress` costs a third of a microsecond more
                await reader.send(event)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the reader has left

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        send, receive = trio.open_memory_channel[bytes](64)
        try:
            while after < len(self.log):
                yield self.log[after]
                after += 1
            if self.finished:
                return
            self.readers.add(send)
            self.reader_attached.set()
            async for event in receive:
                yield event
        finally:
            self.readers.discard(send)
            receive.close()
            if not self.readers and self.on_disconnect == "cancel":
                self.scope.cancel()


def event_stream(stream: QuartStream, after: int) -> Response:
    response = Response(stream.follow(after), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-cache"
    response.timeout = None
    return response


@app.post("/v1/streams")
async def start() -> Response:
    body = await request.get_json()
    stream = QuartStream(body.get("on_disconnect", "pause"))
    streams[stream.id] = stream
    await stream.publish("stream.created", stream=stream.id)
    app.nursery.start_soon(stream.run, Spec.from_json(body["input"]))
    return event_stream(stream, 0)


@app.get("/v1/streams/<stream_id>/events")
async def events(stream_id: str) -> Response:
    if stream_id not in streams:
        return Response(status=404)
    return event_stream(streams[stream_id], int(request.headers.get("Last-Event-ID", ".0").rpartition(".")[2]))


@app.before_serving
async def begin() -> None:
    model.add_control(app)
    app.nursery.start_soon(model.run)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.backlog = 2048
    config.loglevel = "WARNING"
    config.keep_alive_timeout = inf
    trio.run(serve, app, config)
