"""The `crucible` command: a process, its output and its exit code."""

from __future__ import annotations

import os
import re
import signal
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

from crucible_trio import Finish, Output, Request
from crucible_trio.testing import Treatment, open_chaos_proxy

pytestmark = pytest.mark.slow

CRUCIBLE = [sys.executable, "-c", "from crucible_trio.cli import main; main()"]


@dataclass
class Running:
    process: trio.Process
    stdout: bytes = b""
    stderr: bytes = b""

    async def read_stderr_until(self, pattern: bytes) -> re.Match[bytes]:
        while (match := re.search(pattern, self.stderr)) is None:
            data = await self.process.stderr.receive_some()
            assert data, self.stderr.decode()
            self.stderr += data
        return match

    async def wait(self) -> int:
        while data := await self.process.stderr.receive_some():
            self.stderr += data
        return await self.process.wait()


@asynccontextmanager
async def _run(*arguments: str, **environment: str) -> AsyncIterator[Running]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")} | environment
    async with trio.open_nursery() as nursery:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = await nursery.start(partial(trio.run_process, [*CRUCIBLE, *arguments], check=False, env=env, **pipes))
        with trio.fail_after(60):
            yield Running(process)
        nursery.cancel_scope.cancel()  # ends the process


def _serve(*arguments: str, **environment: str):
    return _run("serve", "--engine", "replay", "--bind", "127.0.0.1:0", *arguments, **environment)


async def _url(server: Running) -> str:
    match = await server.read_stderr_until(rb"serving on (http://127\.0\.0\.1:\d+)")
    return match[1].decode()


async def test_sigterm_lets_an_attached_reader_finish_and_exits_0() -> None:
    async with _serve("--replay-speed", "1") as server:
        url = await _url(server)
        text = b""
        async with (
            httpx.AsyncClient(base_url=url) as http,
            http.stream("GET", "/v1/generate", params={"prompt": "x", "mode": "deep"}) as response,
        ):
            async for data in response.aiter_bytes():
                if b"stream.created" not in text and b"stream.created" in text + data:
                    server.process.send_signal(signal.SIGTERM)
                text += data
        assert b"server.draining" in text
        assert b"stream.completed" in text
        assert await server.wait() == 0
        assert b"mode=deep status=completed pieces=" in server.stderr


async def test_a_second_signal_stops_immediately() -> None:
    async with _serve("--replay-speed", "0.01") as server:
        url = await _url(server)
        async with httpx.AsyncClient(base_url=url) as http:
            await http.post("/v1/streams", json={"input": "x"})
        server.process.send_signal(signal.SIGINT)
        await server.read_stderr_until(rb"SIGINT: waiting for running streams")
        server.process.send_signal(signal.SIGINT)
        assert await server.wait() == 1
        assert b"status=cancelled" in server.stderr
        assert b"Traceback" not in server.stderr


async def test_nothing_that_a_client_sends_is_logged() -> None:
    async with _serve("--replay-speed", "inf", CRUCIBLE_KEYS="alice:the-secret-key") as server:
        url = await _url(server)
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer the-secret-key"}) as http:
            answer = await http.get("/v1/generate", params={"prompt": "the-secret-prompt"})
            assert "stream.completed" in answer.text
            await http.post("/v1/streams", content=b'{"input": "the-secret-prompt"', headers={"Content-Type": "x/y"})
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait() == 0
        assert b"the-secret" not in server.stderr
        assert b"To make a cup of tea" not in server.stderr
        assert len(re.findall(rb"stream str_\S+ ended", server.stderr)) == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "mentions"),
    [
        (("--engine", "upstream"), {}, b"upstream_base_url"),
        (("--engine", "upstream", "--base-url", "http://127.0.0.1:1/v1"), {}, b"127.0.0.1:1"),
        (("--engine", "replay", "--bind", "0.0.0.0:0"), {}, b"no keys are configured"),
        (("--engine", "replay", "--config", "/no/such/file.toml"), {}, b"/no/such/file.toml"),
        (("--engine", "replay"), {"CRUCIBLE_BUFFER_TOKENS": "none"}, b"buffer_tokens"),
        (("--model", "/no/such/model.gguf"), {}, b"/no/such/model.gguf"),
    ],
)
async def test_a_failed_start_prints_its_reason_and_exits_2(arguments, environment, mentions) -> None:
    async with _run("serve", *arguments, **environment) as server:
        assert await server.wait() == 2
        assert b"Traceback" not in server.stderr
        [error] = [line for line in server.stderr.splitlines() if line.startswith(b"Error: ")]
        assert mentions in error


async def test_a_port_in_use_is_named_in_the_error() -> None:
    async with _serve() as first:
        port = (await _url(first)).rsplit(":", 1)[1]
        async with _run("serve", "--engine", "replay", "--bind", f"127.0.0.1:{port}") as second:
            assert await second.wait() == 2
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use".encode() in second.stderr
            assert b"Traceback" not in second.stderr


async def test_without_the_local_extra_the_error_names_three_alternatives() -> None:
    code = "import sys; sys.modules['xllamacpp'] = None; from crucible_trio.cli import main; main()"
    with trio.fail_after(60):
        process = await trio.run_process([sys.executable, "-c", code, "serve"], capture_stderr=True, check=False)
    assert process.returncode == 2
    for alternative in (b"pip install xllamacpp", b"--engine upstream", b"--engine replay"):
        assert alternative in process.stderr
    assert b"Traceback" not in process.stderr


async def test_ask_shows_the_same_text_when_its_connection_is_cut(serving) -> None:
    async def thinks(request: Request, output: Output) -> Finish:
        for number, word in enumerate(["First", "we", "think.", ""]):
            await output.reasoning(word + " ", min(number, 1))
        for word in ["Then,", "with", "a", "\x1b[31mred\x1b[0m", "escape,", "we", "answer:", ""]:
            await output.delta(word + " ")
            await trio.sleep(0.01)
        await output.delta(request.input)
        return Finish()

    cut = Treatment(cut_after=1500, cut="fin")
    async with serving(thinks) as served, open_chaos_proxy(served.port, [cut]) as proxy:
        outputs = []
        for url in (served.url, proxy.url):
            arguments = ("ask", "what was asked", "--mode", "deep", "--url", url)
            with trio.fail_after(60):
                done = await trio.run_process(
                    [*CRUCIBLE, *arguments], capture_stdout=True, capture_stderr=True, check=False
                )
            assert done.returncode == 0
            outputs.append(done)
    uncut, resumed = outputs
    assert uncut.stdout == resumed.stdout
    assert uncut.stdout.decode().index("First we") < uncut.stdout.decode().index("we answer:  what was asked")
    # stdout is not a terminal: the command adds no escapes, and those of the model stay
    assert re.findall(rb"\x1b.{4}", uncut.stdout) == [b"\x1b[31m", b"\x1b[0m "]
    assert re.search(rb"^reconnected at record \d+\n", resumed.stderr)
    assert b"reconnected" not in uncut.stderr


async def test_ctrl_c_stops_the_stream_on_the_server(serving) -> None:
    async def endless(request: Request, output: Output) -> Finish:
        while True:
            await output.delta("word ")
            await trio.sleep(0.01)

    async with serving(endless) as served, _run("ask", "x", "--url", served.url) as asking:
        while b"word word" not in asking.stdout:
            asking.stdout += await asking.process.stdout.receive_some()
        asking.process.send_signal(signal.SIGINT)
        while await asking.process.stdout.receive_some():
            pass
        assert await asking.wait() == 130
        [stream] = await served.pipeline.list()
        assert stream.status == "cancelled"
        assert stream.snapshot().by == "client"
        assert b"Traceback" not in asking.stderr


async def test_ask_without_a_url_runs_a_pipeline_in_its_process() -> None:
    arguments = ("ask", "x", "--engine", "replay", "--replay-speed", "inf", "--mode", "deep")
    with trio.fail_after(60):
        done = await trio.run_process([*CRUCIBLE, *arguments], capture_stdout=True, capture_stderr=True)
    text = done.stdout.decode()
    assert text.index("Reasoning") < text.index("1. Leaves") < text.index("Answer") < text.index("The reason for")


async def test_ask_reports_a_server_that_does_not_answer() -> None:
    async with _run("ask", "x", "--url", "http://127.0.0.1:1") as asking:
        assert await asking.wait() == 2
        assert b"no answer from http://127.0.0.1:1" in asking.stderr
        assert b"Traceback" not in asking.stderr


async def test_a_server_starts_although_one_of_its_upstreams_is_down(serving, tmp_path: Path) -> None:
    async def small(request: Request, output: Output) -> Finish:
        await output.delta("hello")
        return Finish()

    file = tmp_path / "crucible.toml"
    async with serving(small) as served:
        file.write_text(
            f"[upstreams.down]\nbase_url = 'http://127.0.0.1:1/v1'\n[upstreams.one]\nbase_url = '{served.url}/v1'\n"
        )
        async with _run("serve", "--config", str(file), "--bind", "127.0.0.1:0") as server:
            outer = await _url(server)
            await server.read_stderr_until(b"stop   Ctrl-C")
            assert b"WARNING upstream down is down, asking again: cannot get the list of models from" in server.stderr
            assert b"INFO upstream one is up, models: small" in server.stderr
            assert b"model  small (engine down, one)" in server.stderr
            async with httpx.AsyncClient(base_url=outer) as client:
                assert (await client.get("/readyz")).json() == {
                    "status": "ready",
                    "upstreams": {"down": "down", "one": "up"},
                }
                [model] = (await client.get("/v1/models")).json()["data"]
                assert (model["id"], model["owned_by"]) == ("small", "one")
                answer = await client.post("/v1/streams", json={"input": "x"}, headers={"Accept": "text/event-stream"})
            assert '"delta":"hello"' in answer.text
            server.process.send_signal(signal.SIGTERM)
            assert await server.wait() == 0
    assert b"engine=one mode=standard status=completed" in server.stderr
