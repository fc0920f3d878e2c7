"""docs/examples/redis/serve.sh: one `crucible serve` for each port of a host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import trio

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "redis" / "serve.sh"


class RedisServer(Protocol):
    """See `conftest.py`."""

    url: str


async def ready(url: str) -> None:
    while True:
        try:
            async with httpx.AsyncClient() as http:
                if (await http.get(f"{url}/readyz")).status_code == 200:
                    return
        except httpx.TransportError:
            await trio.sleep(0.05)


def pid_of(port: int) -> int:
    """The `crucible serve` for this port."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"serve" in words and f"127.0.0.1:{port}".encode() in words:
            return int(folder.name)
    raise AssertionError(port)


async def test_the_script_restarts_a_process_that_dies_and_drains_all(
    redis: RedisServer,
    clean_environment: dict[str, str],
    event_stream: type[Any],
    free_ports: Callable[[int], list[int]],
    tmp_path: Path,
) -> None:
    program = tmp_path / "crucible"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'from crucible_trio.cli import main; main()' \"$@\"\n")
    program.chmod(0o755)
    ports = free_ports(2)
    environment = clean_environment | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PORTS": " ".join(map(str, ports)),
        "CRUCIBLE_LOG_URL": redis.url,
        "CRUCIBLE_TOKEN_SECRET": "a secret of this test",
    }
    first, second = (f"http://127.0.0.1:{port}" for port in ports)
    command = ["sh", str(SCRIPT), "--engine", "replay", "--replay-speed", "20"]
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, command, check=False, env=environment, stderr=subprocess.PIPE)
            process = await nursery.start(run)
            log = bytearray()

            async def keep_log() -> None:
                async for data in process.stderr:
                    log.extend(data)

            nursery.start_soon(keep_log)
            try:
                await ready(first)
                await ready(second)
                reading, again = event_stream(), event_stream()
                await reading.read(first, prompt="x")
                path = f"/v1/streams/{reading.last_id.partition('.')[0]}/events"
                killed = pid_of(ports[0])
                os.kill(killed, signal.SIGKILL)
                await again.read(second, path)
                assert again.events == reading.events
                assert again.events[-1]["type"] == "stream.completed"
                # The new process on the port of the one that was killed has the stream, too.
                while f"port {ports[0]}: crucible serve ended with status 137".encode() not in log:
                    await trio.sleep(0.01)
                await ready(first)
                assert pid_of(ports[0]) != killed
                third = event_stream()
                await third.read(first, path)
                assert third.events == reading.events
            finally:
                process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            for port in ports:  # before the nursery waits for the end of the log
                with pytest.raises(AssertionError):
                    pid_of(port)


async def test_the_script_needs_a_log_and_a_secret(clean_environment: dict[str, str]) -> None:
    process = await trio.run_process(["sh", SCRIPT], check=False, env=clean_environment, capture_stderr=True)
    assert process.returncode != 0
    assert b"CRUCIBLE_LOG_URL: is not set" in process.stderr
