"""Ways in which an upstream server can answer, and what a client of OpenAI's APIs must make of each.

Every client is tested on the same table: see the `test_upstream_answers*` modules.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

# In every error body. No log line may hold it, because an error may quote the prompt.
CANARY = "the canary of the prompt"


@dataclass(frozen=True)
class UpstreamCase:
    """One way in which an upstream answers.

    Attributes:
        name: For the test's id.
        answer: The bytes of the response. None: a reset instead of a status line.
        status: The status that the client gets.
        code: The error's code.
        type: The error's type.
        retry_after: The header `Retry-After`. None: a client must not repeat its request.
        said: Whether the client reads the upstream's message.
        attempts: Requests to the upstream for each request of the client.
        before_answer: Whether a held stream gets the status too. Otherwise it gets an event.
        stays_open: Whether the connection stays open after the answer, so that a deadline ends the stream.
    """

    name: str
    answer: bytes | None
    status: int
    code: str
    type: str = "server_error"
    retry_after: str | None = None
    said: bool = False
    attempts: int = 1
    before_answer: bool = True
    stays_open: bool = False


def response(status: int, body: object, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def error(code: object = None, kind: object = None) -> dict[str, object]:
    return {"error": {"message": f"It said {CANARY}.", "type": kind, "code": code, "param": CANARY}}


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

_BLAMED = "invalid_request_error"

CASES = [
    UpstreamCase(
        "400 context length",
        response(400, error("context_length_exceeded", "invalid_request_error")),
        400,
        "context_length_exceeded",
        _BLAMED,
        said=True,
    ),
    UpstreamCase(
        "400 vllm",
        response(400, {"object": "error", "message": f"It said {CANARY}.", "type": "BadRequestError", "code": 400}),
        400,
        "upstream_rejected",
        "BadRequestError",
        said=True,
    ),
    UpstreamCase("400 text", response(400, CANARY.encode()), 400, "upstream_rejected", _BLAMED),
    UpstreamCase("401", response(401, error("invalid_api_key")), 401, "upstream_unauthorized", "authentication_error"),
    UpstreamCase("403", response(403, error()), 403, "upstream_unauthorized", "permission_error"),
    UpstreamCase("404", response(404, error("model_not_found")), 404, "model_not_found", _BLAMED, said=True),
    UpstreamCase("413", response(413, error()), 413, "upstream_rejected", _BLAMED, said=True),
    *(
        UpstreamCase(str(status), response(status, error()), 400, f"upstream_{status}", _BLAMED, said=True)
        for status in (402, 405, 406, 408, 409, 410, 415, 422, 425, 431, 451, 499)
    ),
    UpstreamCase("422 code", response(422, error("bad_schema", "t")), 400, "bad_schema", "t", said=True),
    UpstreamCase("302", response(302, error(), "Location: /v1/elsewhere"), 400, "upstream_rejected"),
    UpstreamCase(
        "429 retry-after",
        response(429, error("rate_limit_exceeded"), "Retry-After: 30"),
        429,
        "rate_limit_exceeded",
        "rate_limit_error",
        retry_after="30",
        said=True,
    ),
    UpstreamCase(
        "429 quota",
        response(429, error("insufficient_quota", "insufficient_quota")),
        429,
        "insufficient_quota",
        "insufficient_quota",
        retry_after="5",
        said=True,
    ),
    UpstreamCase("503 retry-after", response(503, error(), "Retry-After: 7"), 503, "upstream_refused", retry_after="7"),
    UpstreamCase("503", response(503, b"<html>"), 503, "upstream_refused", retry_after="5"),
    UpstreamCase("529", response(529, error(), "Retry-After: 1"), 503, "upstream_refused", retry_after="1"),
    *(
        UpstreamCase(str(status), response(status, error()), 503, "upstream_error", retry_after="5")
        for status in (500, 502, 504)
    ),
    UpstreamCase("reset", None, 503, "upstream_ended_early", retry_after="5", attempts=3),
    UpstreamCase("not http", b"SSH-2.0\r\n\r\n", 503, "upstream_ended_early", retry_after="5", attempts=3),
    UpstreamCase("html", response(200, b"<html>"), 400, "upstream_invalid_response", before_answer=False),
    UpstreamCase("idle", STREAM, 400, "first_token_deadline", before_answer=False, stays_open=True),
]


@dataclass
class Upstream:
    """A server that gives every request the same answer.

    Attributes:
        url: Its base URL.
        requests: Request line, headers in lower case and body of each request.
        answer: The answer. None resets the connection.
        stays_open: Whether a connection stays open after the answer.
        answers: Set when the server may answer. None: immediately.
        open: How many requests have come whose connection is open.
    """

    url: str
    answer: bytes | None
    stays_open: bool = False
    answers: trio.Event | None = None
    open: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the first request of a connection and close it."""
        async with stream:
            received = b""
            while b"\r\n\r\n" not in received:
                if not (data := await stream.receive_some()):
                    return
                received += data
            head, _, body = received.partition(b"\r\n\r\n")
            line, *fields = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
            while len(body) < int(headers.get("content-length", 0)):
                body += await stream.receive_some()
            self.requests.append((line, headers, body))
            self.open += 1
            try:
                await self._answer(stream)
            finally:
                self.open -= 1

    async def _answer(self, stream: trio.SocketStream) -> None:
        if self.answers is not None:
            await self.answers.wait()
        if self.answer is None:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        await stream.send_all(self.answer)
        while self.stays_open and await stream.receive_some():
            pass

    async def until_open(self, count: int) -> None:
        """Wait until `count` connections are open."""
        while self.open != count:
            await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_scripted_upstream(answer: bytes | None, *, stays_open: bool = False) -> AsyncIterator[Upstream]:
    """Serve an upstream on a free port."""
    upstream = Upstream("", answer, stays_open)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, upstream.serve, 0, host="127.0.0.1"))
        upstream.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        yield upstream
        nursery.cancel_scope.cancel()
