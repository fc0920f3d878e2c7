"""Starts all processes of a server: one, or more if its log is in Redis.

With its readers elsewhere, a server is two processes on two ports, each with the same command and the same Redis.
`crucible serve --workers 2` would not do: there the kernel chooses the worker of each connection, so nobody knows how
many readers are in the process that generates. Here all of them are in the other one.

The generating process and Redis share the server's core, and the other process has the client's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Final

from benchmarks.process import ServerProcess, cores, running
from benchmarks.servers import BenchServer

_REDIS: Final = BenchServer(
    label="redis-server", command=(sys.executable, "-m", "benchmarks.servers.redis_server"), side="other"
)


@contextmanager
def deployed(server: BenchServer) -> Iterator[ServerProcess]:
    """Start the processes of a server, and end them when the block is left.

    Yields:
        The process that generates. `beside` has the others: `redis`, and `other`, which has the readers.

    Raises:
        ServerFailedError: One of them did not start.
    """
    with ExitStack() as stack:
        beside: dict[str, ServerProcess] = {}
        if server.log == "redis":
            folder = stack.enter_context(TemporaryDirectory(prefix="bench-redis-"))
            redis = stack.enter_context(running(replace(_REDIS, command=(*_REDIS.command, folder))))
            redis.wait_until_listening()
            beside["redis"] = redis
            server = replace(server, command=(*server.command, "--log", f"redis://127.0.0.1:{redis.port}/0"))
        process = stack.enter_context(running(server))
        if server.readers == "elsewhere":
            beside["other"] = stack.enter_context(running(server, core=cores()[1]))
            process.reader_port = beside["other"].port
        process.beside = beside
        yield process
