"""The server of a soak test, in a separate process, so that its memory and files are counted without the clients'.

It prints its port, then answers each line of its standard input with a line of JSON. SIGTERM drains and ends it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import time
from functools import partial

import msgspec
import trio
from workload import kind_of, script_for

from crucible_trio import Finish, Output, Pipeline, Request, Stream, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.server.connection import HttpConnection
from crucible_trio.settings import load_settings
from crucible_trio.testing import ScriptedEngine
from crucible_trio.web import create_app

WRITE_TIMEOUT = 1.0
SETTINGS = load_settings(
    {},
    bind=("127.0.0.1:0",),
    retry_milliseconds=10,
    heartbeat_seconds=0.5,
    write_timeout_seconds=WRITE_TIMEOUT,
    drain_seconds=30.0,
    flush_seconds=1.0,  # less than the streams at SIGTERM need: only the drain lets them finish
)


class TimedEngine:
    """A scripted engine. It notes when the engine of a `leaves` stream ended, in `time.monotonic()`."""

    def __init__(self) -> None:
        self.scripted = ScriptedEngine(lambda request: script_for(request.input).steps, keep_runs=0)
        self.info = self.scripted.info
        self.ended_at: dict[str, float] = {}

    async def generate(self, request: Request, output: Output) -> Finish:
        prompt = str(request.input)
        try:
            return await self.scripted.generate(request, output)
        finally:
            if kind_of(prompt) == "leaves":
                self.ended_at[prompt] = time.monotonic()


def held() -> dict[str, float]:
    """Tasks, files, objects and memory of this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps for later is not a leak
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "files": len(os.listdir("/proc/self/fd")) - 1,  # without the descriptor that lists them
        "kept": sum(isinstance(thing, Stream | HttpConnection) for thing in gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "mib": pages * resource.getpagesize() / 2**20,
    }


async def answer_commands(engine: TimedEngine, pipeline: Pipeline) -> None:
    received = b""
    async for data in trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())):
        *commands, received = (received + data).split(b"\n")
        for command in commands:
            answer: dict[str, float]
            match command:
                case b"held":
                    live = {"engines": engine.scripted.live, "readers": await _readers(pipeline)}
                    answer = held() | live
                case b"forget":
                    answer = {"forgotten": await _forget_all(pipeline)}
                case _:
                    answer, engine.ended_at = engine.ended_at, {}
            print(msgspec.json.encode(answer).decode(), flush=True)


async def _forget_all(pipeline: Pipeline) -> int:
    streams = await pipeline.list()
    for stream in streams:
        await pipeline.forget(stream)
    return len(streams)


async def _readers(pipeline: Pipeline) -> int:
    return sum(stream.log.readers for stream in await pipeline.list())


async def main() -> None:
    engine = TimedEngine()
    stopping = trio.Event()
    async with open_pipeline(engine, SETTINGS.pipeline) as pipeline, trio.open_nursery() as watching:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:

            async def watch() -> None:
                async for _ in signals:
                    stopping.set()

            watching.start_soon(watch)
            watching.start_soon(answer_commands, engine, pipeline)
            app, config = create_app(pipeline, SETTINGS.apis), Config.from_settings(SETTINGS.server, SETTINGS.pipeline)
            config.direct_writes = sys.argv[1] == "direct"
            async with trio.open_nursery() as serving:
                run = partial(serve, app, config, drain=pipeline.drain, shutdown=stopping.wait)
                [url] = await serving.start(run)
                print(url.rsplit(":", 1)[1], flush=True)
            watching.cancel_scope.cancel()


if __name__ == "__main__":
    # Engines fail on purpose here. Unexpected errors come from other loggers.
    logging.getLogger("crucible_trio.endings").setLevel(logging.CRITICAL)
    trio.run(main)
