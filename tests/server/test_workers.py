"""`crucible serve --workers N`: real processes behind one port."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, str(Path(__file__).parent / "serve_workers.py"), "serve", "--log", "redis://:s3cret@none"]


@dataclass
class Running:
    process: trio.Process
    port: int
    stderr: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> dict[int, int]:
        """The process of each worker."""
        return {int(number): int(pid) for number, pid in re.findall(r"worker (\d+) is process (\d+)", self.stderr)}

    async def read_until(self, pattern: str) -> re.Match[str]:
        while (match := re.search(pattern, self.stderr)) is None:
            data = await self.process.stderr.receive_some()
            assert data, self.stderr
            self.stderr += data.decode()
        return match

    async def wait(self) -> int:
        while data := await self.process.stderr.receive_some():
            self.stderr += data.decode()
        return await self.process.wait()


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@asynccontextmanager
async def serving(port: int, *arguments: str, **environment: str) -> AsyncIterator[Running]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")} | environment
    env["CRUCIBLE_TOKEN_SECRET"] = "a long random text"
    command = [*PROGRAM, "--workers", "2", "--engine", "replay", "--bind", f"127.0.0.1:{port}", *arguments]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, check=False, env=env, stderr=subprocess.PIPE)
        running = Running(await nursery.start(run), port)
        with trio.fail_after(60):
            yield running
        nursery.cancel_scope.cancel()


async def generate(url: str) -> str:
    async with httpx.AsyncClient(base_url=url) as http:
        return (await http.get("/v1/generate", params={"prompt": "x", "mode": "deep"})).text


async def test_two_workers_serve_one_port_and_drain_at_sigterm(free_port: int) -> None:
    async with serving(free_port, "--replay-speed", "1") as running:  # 3.5 s, so that the metrics show the streams
        await running.read_until(r"stop   Ctrl-C")
        texts: list[str] = []

        async def read() -> None:
            texts.append(await generate(running.url))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(read)
            async with httpx.AsyncClient(base_url=running.url) as http:
                while "crucible_streams_running 8.0" not in (await http.get("/metrics")).text:
                    pass
            running.process.send_signal(signal.SIGTERM)
        assert await running.wait() == 0
    assert all("stream.completed" in text for text in texts)
    assert running.stderr.count("serving on") == 1
    assert "all 2 workers are ready" in running.stderr
    lines = [line for line in running.stderr.splitlines() if " ended: " in line]
    assert len(lines) == 8
    assert all(re.search(r" INFO worker [12]: stream str_\S+ ended: ", line) for line in lines)
    assert "s3cret" not in running.stderr
    assert "Traceback" not in running.stderr


async def test_a_signal_to_every_process_is_one_drain(free_port: int) -> None:
    # As a service manager does that signals all processes of a service.
    async with serving(free_port, "--replay-speed", "1") as running:  # 3.5 s, so that the metrics show the streams
        await running.read_until(r"stop   Ctrl-C")
        async with trio.open_nursery() as nursery:
            texts: list[str] = []

            async def read() -> None:
                texts.append(await generate(running.url))

            nursery.start_soon(read)
            async with httpx.AsyncClient(base_url=running.url) as http:
                while "crucible_streams_running 1.0" not in (await http.get("/metrics")).text:
                    pass
            for pid in (*running.workers.values(), running.process.pid):
                os.kill(pid, signal.SIGTERM)
        assert await running.wait() == 0
        assert "stream.completed" in texts[0]


async def test_a_signal_during_the_start_ends_the_command(free_port: int) -> None:
    async with serving(free_port) as running:
        await running.read_until(r"worker \d is process \d+\n(.*\n)*.*worker \d is process \d+")
        running.process.send_signal(signal.SIGTERM)
        assert await running.wait() == 0, running.stderr
        assert "serving on" not in running.stderr
        assert "Traceback" not in running.stderr


async def test_workers_serve_a_socket_in_the_file_system(free_port: int, tmp_path: Path) -> None:
    async with serving(free_port, "--bind", f"unix:{tmp_path}/socket", "--replay-speed", "inf") as running:
        await running.read_until(r"stop   Ctrl-C")
        transport = httpx.AsyncHTTPTransport(uds=f"{tmp_path}/socket")
        async with httpx.AsyncClient(base_url="http://localhost", transport=transport) as http:
            answer = await http.get("/v1/generate", params={"prompt": "x"})
        assert "stream.completed" in answer.text
        assert "stream.completed" in await generate(running.url)


async def test_a_second_signal_stops_all_workers_immediately(free_port: int) -> None:
    async with serving(free_port, "--replay-speed", "0.01") as running:
        await running.read_until(r"stop   Ctrl-C")
        async with httpx.AsyncClient(base_url=running.url) as http:
            for _ in range(4):
                await http.post("/v1/streams", json={"input": "x"})
        running.process.send_signal(signal.SIGINT)
        await running.read_until("SIGINT: waiting for running streams")
        running.process.send_signal(signal.SIGINT)
        assert await running.wait() == 1
        assert running.stderr.count("status=cancelled") == 4
        assert "Traceback" not in running.stderr


async def test_when_the_supervisor_is_killed_its_workers_free_the_port_and_finish_their_streams(free_port: int) -> None:
    async with serving(free_port, "--replay-speed", "0.5") as running:
        await running.read_until(r"stop   Ctrl-C")
        async with (
            httpx.AsyncClient(base_url=running.url) as http,
            http.stream("GET", "/v1/generate", params={"prompt": "x", "mode": "deep"}) as response,
        ):
            pieces = response.aiter_text()
            text = await anext(pieces)
            os.kill(running.process.pid, signal.SIGKILL)
            while not is_free(free_port):
                text += await anext(pieces)
            assert "stream.completed" not in text
            async for piece in pieces:
                text += piece
        assert "stream.completed" in text
        # Read to the end of standard error, so no worker is left.
        assert await running.wait() == -signal.SIGKILL
        assert running.stderr.count("the supervisor has ended") == 2


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


async def test_a_worker_that_is_killed_comes_back_and_its_counters_stay(free_port: int) -> None:
    async with serving(free_port, "--replay-speed", "inf") as running:
        await running.read_until(r"stop   Ctrl-C")
        for _ in range(6):
            await generate(running.url)
        while (before := await numbers(running.url))["crucible_workers_answering"] < 2:
            pass
        assert before["crucible_streams_started_total"] == 6
        # A worker that has counted something.
        number = (await running.read_until(r" INFO worker (\d): stream str_"))[1]
        victim = running.workers[int(number)]
        os.kill(victim, signal.SIGKILL)
        await running.read_until(rf"worker {number} was killed by SIGKILL: starting it again")
        while (after := await numbers(running.url))["crucible_workers_answering"] < 2:
            pass
        assert after["crucible_streams_started_total"] == 6
        assert after["crucible_worker_restarts_total"] == 1
        await running.read_until(rf"worker {number} is process (?!{victim}\b)")
        running.process.send_signal(signal.SIGTERM)
        assert await running.wait() == 0


async def numbers(url: str) -> dict[str, float]:
    """The metrics, added up over their labels."""
    # A connection of its own: a kept one would always reach the same worker.
    async with httpx.AsyncClient(base_url=url) as http:
        text = (await http.get("/metrics")).text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (("--engine", "upstream", "--base-url", "http://127.0.0.1:1/v1"), "127.0.0.1:1"),
        (("--bind", "0.0.0.0:0"), "no keys are configured"),
        (("--engine", "local", "--model", "/no/such/model.gguf"), "/no/such/model.gguf"),
    ],
)
async def test_a_failed_start_prints_its_reason_once_and_exits_2(
    free_port: int, arguments: tuple[str, ...], mentions: str
) -> None:
    async with serving(free_port, *arguments) as running:
        assert await running.wait() == 2
        assert "Traceback" not in running.stderr
        [error] = [line for line in running.stderr.splitlines() if line.startswith("Error: ")]
        assert mentions in error
        assert "s3cret" not in running.stderr


async def test_a_port_in_use_is_named_in_the_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with serving(port) as running:
            assert await running.wait() == 2
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in running.stderr
