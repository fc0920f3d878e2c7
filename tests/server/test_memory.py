"""The memory of an open, silent stream."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import trio

STREAMS = 1000

# The server runs in a separate process, so that the clients' memory is not counted. It prints its size on request.
SERVER = """
import resource, sys
from functools import partial
import trio
from crucible_trio import Settings, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.web import create_app

async def silent(request, output):
    await trio.sleep_forever()

def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024

async def main():
    async with open_pipeline(silent, Settings()) as pipeline, trio.open_nursery() as nursery:
        config = Config()
        config.bind = ["127.0.0.1:0"]
        [url] = await nursery.start(partial(serve, create_app(pipeline), config))
        print(url.rsplit(":")[-1], flush=True)
        async for _ in trio.lowlevel.FdStream(sys.stdin.fileno()):
            readers = sum(stream.log.readers for stream in await pipeline.list())
            print(resident_kib(), readers, flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.slow
async def test_a_thousand_idle_streams_take_less_than_40_mib() -> None:
    async with trio.open_nursery() as nursery:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        server = await nursery.start(partial(trio.run_process, [sys.executable, "-c", SERVER], **pipes))
        with trio.fail_after(120):

            async def line() -> list[bytes]:
                received = b""
                while not received.endswith(b"\n"):
                    received += await server.stdout.receive_some()
                return received.split()

            port = int((await line())[0])
            body = b'{"input":"x"}'
            head = (
                b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            )

            async def start() -> trio.SocketStream:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(head + body)
                received = b""
                while b"stream.created" not in received:
                    received += await stream.receive_some()
                return stream

            streams = [await start() for _ in range(20)]  # warm up: imports and caches of first use do not count

            async def measure() -> int:
                await server.stdin.send_all(b"?")
                kib, readers = await line()
                assert int(readers) == len(streams)
                return int(kib)

            base = await measure()
            streams += [await start() for _ in range(STREAMS - len(streams))]
            grown = await measure() - base
            for stream in streams:
                stream.socket.close()
            await server.stdin.aclose()
        assert 0 < grown < 40 * 1024


UPLOADS = 50
MIB = 1024 * 1024
UPLOAD_BYTES = 20 * MIB

# Its engine never ends, so the server keeps every request that it has accepted.
UPLOAD_SERVER = """
import sys
from functools import partial
import trio
from crucible_trio import Settings, open_pipeline
from crucible_trio.server import Config, connection, serve
from crucible_trio.settings import ApiSettings
from crucible_trio.web import create_app

connection._LINGER_SECONDS = connection._MAX_LINGER_SECONDS = 200.0  # a busy machine may pause the clients

async def silent(request, output):
    await trio.sleep_forever()

def peak_kib():  # not `getrusage`, whose peak includes the process that started this one
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

async def main():
    limit = int(sys.argv[1])
    settings = Settings(total_log_bytes=limit)
    async with open_pipeline(silent, settings) as pipeline, trio.open_nursery() as nursery:
        config = Config()
        config.bind = ["127.0.0.1:0"]
        app = create_app(pipeline, ApiSettings(total_request_bytes=limit))
        [url] = await nursery.start(partial(serve, app, config))
        print(url.rsplit(":")[-1], flush=True)
        async for _ in trio.lowlevel.FdStream(sys.stdin.fileno()):
            print(peak_kib(), pipeline.metrics.upload_bytes, pipeline.store.log_bytes, flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "begin", "end"),
    [
        ("/v1/streams", b'{"input":"', b'"}'),
        ("/v1/chat/completions", b'{"stream":true,"messages":[{"role":"user","content":"', b'"}]}'),
        ("/v1/responses", b'{"stream":true,"input":"', b'"}'),
    ],
)
async def test_fifty_large_uploads_keep_the_server_under_its_limits_plus_60_mib(
    path: str, begin: bytes, end: bytes
) -> None:
    limit = 64 * MIB  # of the bodies, and of the requests that are kept with the logs
    streams: list[trio.SocketStream] = []
    async with trio.open_nursery() as nursery:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-c", UPLOAD_SERVER, str(limit)]
        server = await nursery.start(partial(trio.run_process, command, **pipes))
        with trio.fail_after(240):

            async def line() -> list[int]:
                received = b""
                while not received.endswith(b"\n"):
                    received += await server.stdout.receive_some()
                return [int(word) for word in received.split()]

            async def measure() -> list[int]:
                await server.stdin.send_all(b"?")
                return await line()

            [port] = await line()

            async def upload(size: int, idempotency_key: int) -> int:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                streams.append(stream)
                head = (
                    f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    f"Idempotency-Key: {idempotency_key}\r\nContent-Length: {size}\r\n\r\n"
                )
                await stream.send_all(head.encode() + begin)
                left = size - len(begin) - len(end)
                while left:
                    await stream.send_all(b"x" * min(left, MIB))
                    left -= min(left, MIB)
                await stream.send_all(end)
                received = await stream.receive_some()
                return int(received.split()[1])

            for number in range(20):  # warm up: imports and caches of first use do not count
                assert await upload(1000, number) in {200, 201}
            base, *_ = await measure()
            statuses: list[int] = []

            async def upload_large(number: int) -> None:
                statuses.append(await upload(UPLOAD_BYTES, number))

            for turn in (1, 2):  # in the second, the accepted requests of the first are kept
                async with trio.open_nursery() as clients:
                    for number in range(UPLOADS):
                        clients.start_soon(upload_large, 1000 * turn + number)
            peak, receiving, kept = await measure()
            for stream in streams:
                stream.socket.close()
            await server.stdin.aclose()
    accepted = sum(status in {200, 201} for status in statuses)
    assert statuses.count(503) == 2 * UPLOADS - accepted
    assert 1 <= accepted <= 3
    assert receiving == 0
    assert accepted * UPLOAD_BYTES < kept < limit
    assert (peak - base) * 1024 < 2 * limit + 60 * MIB
