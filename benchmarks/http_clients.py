"""Measures ways to read many HTTP responses in trio: `python -m benchmarks.http_clients [FORM...]`.

100 responses, each with 50 chunks per second. One chunk holds one event, as a model server sends a token. The figure is
the CPU time of the reading process per token. The results are in docs/design.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

import h11
import httpcore
import httpcore2
import httptools
import httpx
import httpx2
import trio

from crucible_trio import http

STREAMS: Final = 100
RATE: Final = 50
ROUNDS: Final = 5
WARM_UP: Final = 2.0
WINDOW: Final = 3.0
_RECEIVE_BYTES: Final = 64 * 1024

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT: Final = (
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"benchmark",'
    b'"choices":[{"index":0,"delta":{"content":"01234567890123456789012 "},"finish_reason":null}]}\n\n'
)
_TOKEN: Final = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Counter:
    """Counts the bytes of the bodies."""

    def __init__(self) -> None:
        self.bytes = 0


Read = Callable[[int, Counter], Awaitable[None]]


async def read_with_httpx(port: int, counter: Counter) -> None:
    async with (
        httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
        client.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        async for data in response.aiter_raw():
            counter.bytes += len(data)


async def read_with_httpx2(port: int, counter: Counter) -> None:
    async with (
        httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
        client.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        async for data in response.aiter_raw():
            counter.bytes += len(data)


async def read_with_httpcore(port: int, counter: Counter) -> None:
    async with (
        httpcore.AsyncConnectionPool() as pool,
        pool.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        async for data in response.aiter_stream():
            counter.bytes += len(data)


async def read_with_httpcore2(port: int, counter: Counter) -> None:
    async with (
        httpcore2.AsyncConnectionPool() as pool,
        pool.stream("GET", f"http://127.0.0.1:{port}/") as response,
    ):
        async for data in response.aiter_stream():
            counter.bytes += len(data)


async def read_with_h11(port: int, counter: Counter) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="GET", target="/", headers=[("Host", "127.0.0.1")])
    await stream.send_all(connection.send(request) or b"")
    await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_RECEIVE_BYTES))
        elif isinstance(event, h11.Data):
            counter.bytes += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return


class _BodyCounter:
    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def on_body(self, data: bytes) -> None:
        self._counter.bytes += len(data)


async def read_with_httptools(port: int, counter: Counter) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(_REQUEST)
    parser = httptools.HttpResponseParser(_BodyCounter(counter))
    while data := await stream.receive_some(_RECEIVE_BYTES):
        parser.feed_data(data)


async def read_with_httptools_after_waiting(port: int, counter: Counter) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(_REQUEST)
    parser = httptools.HttpResponseParser(_BodyCounter(counter))
    file = stream.socket.fileno()
    while True:
        await trio.lowlevel.wait_readable(file)
        if not (data := os.read(file, _RECEIVE_BYTES)):
            return
        parser.feed_data(data)


async def read_with_own_parser(port: int, counter: Counter) -> None:
    """The least that a parser of chunks in Python can do: it checks nothing and knows no extensions or trailers."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(_REQUEST)
    file = stream.socket.fileno()
    held = b""
    while b"\r\n\r\n" not in held:
        held += await stream.receive_some(_RECEIVE_BYTES)
    held = held.partition(b"\r\n\r\n")[2]
    while True:
        at = 0
        while (line_end := held.find(b"\r\n", at)) >= 0:
            end = line_end + 2 + int(held[at:line_end], 16)
            if end + 2 > len(held):
                break
            counter.bytes += len(held[line_end + 2 : end])
            at = end + 2
        held = held[at:]
        await trio.lowlevel.wait_readable(file)
        if not (data := os.read(file, _RECEIVE_BYTES)):
            return
        held = held + data if held else data


async def read_with_this_package(port: int, counter: Counter) -> None:
    url = http.parse_url(f"http://127.0.0.1:{port}/")
    async with (
        http.open_http_client(url) as client,
        await client.send("GET", url) as response,
    ):
        while data := await response.read():
            counter.bytes += len(data)


FORMS: Final[dict[str, Read]] = {
    "httpx": read_with_httpx,
    "httpx2": read_with_httpx2,
    "httpcore": read_with_httpcore,
    "httpcore2": read_with_httpcore2,
    "h11": read_with_h11,
    "httptools": read_with_httptools,
    "httptools-waiting": read_with_httptools_after_waiting,
    "own-parser": read_with_own_parser,
    "crucible_trio.http": read_with_this_package,
}


def serve() -> None:
    """Print a port, and send a token to each connection at every tick."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=STREAMS)
    print(listener.getsockname()[1], flush=True)
    connections: list[socket.socket] = []
    due = time.monotonic()
    while True:
        due = max(due + 1 / RATE, time.monotonic())
        while (left := due - time.monotonic()) > 0:
            if select.select([listener], [], [], left)[0]:
                connection, _ = listener.accept()
                connection.recv(_RECEIVE_BYTES)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(_HEAD)
                connections.append(connection)
        for connection in connections:
            with contextlib.suppress(OSError):  # the measuring process has ended
                connection.sendall(_TOKEN)


async def measure(form: str, port: int) -> float:
    """CPU time per token, in microseconds."""
    counter = Counter()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(FORMS[form], port, counter)
        await trio.sleep(WARM_UP)
        began, used = counter.bytes, time.process_time()
        await trio.sleep(WINDOW)
        used, tokens = time.process_time() - used, (counter.bytes - began) / len(_EVENT)
        nursery.cancel_scope.cancel()
    if not 0.5 < tokens / (STREAMS * RATE * WINDOW) < 1.5:
        sys.exit(f"{form} read {tokens:.0f} tokens")
    return used * 1e6 / tokens


def main(forms: list[str]) -> None:
    """Measure each form in a process for each round, and print the medians."""
    figures: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(ROUNDS):
        for form in forms:
            with subprocess.Popen(
                [sys.executable, "-m", "benchmarks.http_clients", "--serve"], stdout=subprocess.PIPE, text=True
            ) as server:
                assert server.stdout is not None
                port = server.stdout.readline().strip()
                try:
                    done = subprocess.run(
                        [sys.executable, "-m", "benchmarks.http_clients", "--measure", form, port],
                        stdout=subprocess.PIPE,
                        check=True,
                    )
                finally:
                    server.kill()
            figures[form].append(float(re.findall(rb"[0-9.]+", done.stdout)[-1]))
    for form, values in figures.items():
        print(f"{form:20} {statistics.median(values):5.1f} µs ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    elif sys.argv[1:2] == ["--measure"]:
        print(trio.run(measure, sys.argv[2], int(sys.argv[3])))
    else:
        main(sys.argv[1:] or list(FORMS))
