"""A server on a real socket that cuts its responses at any byte, and otherwise follows the protocol."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import pytest
import trio

from crucible_trio import sse
from crucible_trio.records import AnyRecord, encode_frame, new_stream_id, parse_event_id

# The end of a connection: the number of bytes of the response before it, and "fin" or "rst".
Cut: TypeAlias = tuple[int, str]


class CuttingServer:
    """Makes one log for each idempotency key. `Last-Event-ID` reads a log from an offset.

    Attributes:
        cuts: By key, the cuts of the stream's connections, in order. Later connections are not cut.
        records: The logs, by stream id.
        ids: The stream ids, by key. There is one for each stream that was started.
        requests: Method, path, headers and body of each request.
        hold: Awaited after record 1 was sent.
    """

    def __init__(self, make_records: Callable[[str], Sequence[AnyRecord]], *, chunked: bool) -> None:
        self.chunked = chunked
        self.cuts: dict[str, list[Cut]] = {}
        self.records: dict[str, Sequence[AnyRecord]] = {}
        self.ids: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.open_connections = 0
        self.hold: Callable[[], Awaitable[None]] | None = None
        self.url = ""
        self._make_records = make_records

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            task_status.started()

    def answer(self, stream_id: str, after: int) -> tuple[bytes, list[bytes]]:
        """The head and the pieces of the response to a reader at this offset."""
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store, no-transform\r\n"
            f"Location: /v1/streams/{stream_id}\r\nCrucible-Stream: {stream_id}\r\n"
        )
        pieces = [sse.retry_line(1)] + [encode_frame(stream_id, record) for record in self.records[stream_id][after:]]
        if self.chunked:
            head += "Transfer-Encoding: chunked\r\n\r\n"
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]
        else:  # the connection ends the body, so every cut by FIN looks like a clean end
            head += "Connection: close\r\n\r\n"
        return head.encode(), pieces

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.open_connections += 1
        try:
            async with stream:
                await self._serve_one(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has disconnected
        finally:
            self.open_connections -= 1

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        method, path, headers, body = await _read_request(stream)
        self.requests.append((method, path, headers, body))
        if method == "POST":
            key, after = headers["idempotency-key"], 0
            stream_id = self.ids.setdefault(key, new_stream_id())
            self.records.setdefault(stream_id, self._make_records(stream_id))
        else:
            stream_id, after = parse_event_id(headers["last-event-id"])
            key = next(key for key, known in self.ids.items() if known == stream_id)
        if after == len(self.records[stream_id]):
            await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            return
        head, pieces = self.answer(stream_id, after)
        if plan := self.cuts.get(key):
            after_bytes, how = plan.pop(0)
            await stream.send_all((head + b"".join(pieces))[:after_bytes])
            if how == "rst":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        if self.hold is not None:
            await stream.send_all(head + b"".join(pieces[:2]))
            await self.hold()
            head, pieces = b"", pieces[2:]
        await stream.send_all(head + b"".join(pieces))


async def _read_request(stream: trio.SocketStream) -> tuple[str, str, dict[str, str], bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await _receive(stream)
    head, _, body = received.partition(b"\r\n\r\n")
    request_line, *lines = head.decode("ascii").split("\r\n")
    method, path, _ = request_line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += await _receive(stream)
    return method, path, headers, body


async def _receive(stream: trio.SocketStream) -> bytes:
    chunk = await stream.receive_some()
    if not chunk:
        raise trio.BrokenResourceError
    return bytes(chunk)


@pytest.fixture
def serve(nursery: trio.Nursery) -> Callable[..., Awaitable[CuttingServer]]:
    """Starts a server that runs until the test ends."""

    async def start(make_records: Callable[[str], Sequence[AnyRecord]], *, chunked: bool = True) -> CuttingServer:
        server = CuttingServer(make_records, chunked=chunked)
        await nursery.start(server.run)
        return server

    return start
