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
