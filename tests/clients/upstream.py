"""A scripted server of chat completions, for tests with real clients. The test decides how it answers."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import h11
import trio

MODEL = "scripted"

Json: TypeAlias = dict[str, Any]


class UpstreamRequest:
    """One request, and the means to answer it. Each connection carries one request.

    Attributes:
        target: The request's path.
        headers: By name in lower case.
        body: The request's JSON.
    """

    def __init__(self, stream: trio.SocketStream, http: h11.Connection, request: h11.Request, body: bytes) -> None:
        self.target = request.target.decode()
        self.headers = {name.decode(): value.decode() for name, value in request.headers}
        self.body: Json = json.loads(body) if body else {}
        self._stream = stream
        self._http = http

    @property
    def text(self) -> str:
        """The text of the last message."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "".join(part["text"] for part in content)

    async def respond(self, status: int, body: Json, **headers: str) -> None:
        """Send a whole response. In header names, `_` stands for `-`."""
        content = json.dumps(body).encode()
        await self._head(status, "application/json", headers | {"Content_Length": str(len(content))})
        await self._send(h11.Data(content))
        await self.end()

    async def start_stream(self) -> None:
        """Send the head of a stream of chunks."""
        await self._head(200, "text/event-stream", {"Transfer_Encoding": "chunked"})

    async def send(self, finish_reason: str | None = None, **delta: object) -> None:
        """Send one chunk."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        await self.send_data(json.dumps(_chunk() | {"choices": [choice]}))

    async def send_data(self, data: str) -> None:
        """Send one event with any data."""
        await self._send(h11.Data(f"data: {data}\n\n".encode()))

    async def finish(self, reason: str = "stop") -> None:
        """Send the end of a stream: the finish reason, the usage and the end mark."""
        await self.send(reason)
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        await self.send_data(json.dumps(_chunk() | {"choices": [], "usage": usage}))
        await self.send_data("[DONE]")
        await self.end()

    async def end(self) -> None:
        """End the response."""
        await self._send(h11.EndOfMessage())

    async def wait_for_close(self) -> None:
        """Wait until the server in front of this one closes the connection."""
        while await self._stream.receive_some():
            pass

    def reset(self) -> None:
        """Reset the connection (RST), as a crashed server does."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()

    async def _head(self, status: int, content_type: str, headers: dict[str, str]) -> None:
        lines = {"Content-Type": content_type, "Connection": "close"}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        await self._send(h11.Response(status_code=status, headers=list(lines.items())))

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        assert data is not None
        await self._stream.send_all(data)


Answer: TypeAlias = Callable[[UpstreamRequest], Awaitable[None]]


def _chunk() -> Json:
    return {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


class ScriptedUpstream:
    """The running server.

    Attributes:
        base_url: Its base URL.
        requests: All requests for a completion.
    """

    def __init__(self, answer: Answer) -> None:
        self.base_url = ""
        self.requests: list[UpstreamRequest] = []
        self._answer = answer

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        async with stream:
            try:
                request = await _read_request(stream)
                if request is None:
                    return
                if request.target.endswith("/models"):
                    await request.respond(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
                    return
                self.requests.append(request)
                await self._answer(request)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the server in front of this one closed the connection


async def _read_request(stream: trio.SocketStream) -> UpstreamRequest | None:
    """Read a whole request, or None if the connection ends before it begins."""
    http = h11.Connection(h11.SERVER)
    head, body = None, b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await stream.receive_some())
            case h11.Request() as head:
                pass
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                assert head is not None
                return UpstreamRequest(stream, http, head, body)
            case _:
                return None


@asynccontextmanager
async def open_scripted_upstream(answer: Answer) -> AsyncIterator[ScriptedUpstream]:
    """Open a server that answers each request for a completion with `answer`."""
    upstream = ScriptedUpstream(answer)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, upstream.serve, 0, host="127.0.0.1"))
        upstream.base_url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        yield upstream
        nursery.cancel_scope.cancel()
