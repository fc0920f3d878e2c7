"""Fixtures: a server in front of an engine, and real clients with a separate environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pytest
import trio

from crucible_trio import Pipeline, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.settings import load_settings
from crucible_trio.web import create_app

from .agents import Agent
from .npm import FOLDER, PACKAGES, InstallError, Sandbox, find_node, install_packages
from .pypi import PYTHON, make_environment

REAL_SECONDS = 300  # only a failing test takes this long

Run: TypeAlias = Callable[..., Awaitable[str]]


@dataclass(frozen=True)
class ServedApp:
    """A running server.

    Attributes:
        pipeline: The pipeline that it serves.
        port: Its port on 127.0.0.1.
        requests: How many requests had each API key.
        bodies: The bodies of the requests that have one.
    """

    pipeline: Pipeline
    port: int
    requests: Counter[str]
    bodies: list[bytes]

    @property
    def base_url(self) -> str:
        """The value for an SDK's base URL."""
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def _serving(engine: Any, **settings: Any) -> AsyncIterator[ServedApp]:
    values = load_settings({}, **settings)
    requests: Counter[str] = Counter()
    bodies: list[bytes] = []
    with trio.fail_after(REAL_SECONDS):
        async with open_pipeline(engine, values.pipeline) as pipeline, trio.open_nursery() as nursery:
            app = create_app(pipeline, values.apis)

            async def counting(scope: Any, receive: Any, send: Any) -> None:
                async def receiving() -> Any:
                    nonlocal body
                    message = await receive()
                    body += message.get("body", b"")
                    return message

                body = b""
                if scope["type"] == "http":
                    requests[dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")] += 1
                await app(scope, receiving, send)
                if body:
                    bodies.append(body)

            config = Config.from_settings(values.server, values.pipeline)
            config.bind = ["127.0.0.1:0"]
            urls: list[str] = await nursery.start(partial(serve, counting, config))
            yield ServedApp(pipeline, int(urls[0].rpartition(":")[2]), requests, bodies)
            nursery.cancel_scope.cancel()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractAsyncContextManager[ServedApp]]:
    """`async with serving(engine, **settings) as served`: this server on a free port."""
    return _serving


@pytest.fixture(scope="session")
def npm(need_program: Callable[[str], str]) -> str:
    return need_program("npm")


@pytest.fixture(scope="session")
def node(npm: str, skip_missing: Callable[[str], NoReturn]) -> Path:
    """A Node that is new enough for the clients."""
    try:
        return find_node(npm)
    except InstallError as error:
        skip_missing(str(error))


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """An environment with an empty home folder."""
    home = tmp_path / "home"
    home.mkdir()
    return Sandbox(home)


@pytest.fixture
def run_node(npm: str, node: Path, sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_node("chat.mjs", *arguments)` returns the output of a program that uses clients from npm."""
    try:
        install_packages(npm, PACKAGES / "sdks")
    except InstallError as error:
        skip_missing(str(error))
    return partial(sandbox.run, node, folder=PACKAGES / "sdks")


@pytest.fixture
def run_agent(npm: str, node: Path, sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_agent(QWEN_CODE, prompt, base_url=...)` returns the output of a coding agent."""
    try:
        packages = install_packages(npm, PACKAGES / "agents")
    except InstallError as error:
        skip_missing(str(error))

    async def run(agent: Agent, prompt: str, *, base_url: str, home: Path = sandbox.home) -> str:
        return await agent.run(prompt, base_url=base_url, sandbox=Sandbox(home), packages=packages, node=node)

    return run


@asynccontextmanager
async def _crucible_serve(*arguments: str) -> AsyncIterator[str]:
    command = [sys.executable, "-c", "from crucible_trio.cli import main; main()", "serve", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")}
    run = partial(trio.run_process, check=False, env=environment, stderr=subprocess.PIPE, deliver_cancel=_kill)
    with trio.fail_after(REAL_SECONDS):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(run, [*command, "--bind", "127.0.0.1:0"])
            assert process.stderr is not None
            log = b""
            while (match := re.search(rb"serving on (http://127\.0\.0\.1:\d+)", log)) is None:
                data = await process.stderr.receive_some()
                assert data, log.decode()
                log += data
            nursery.start_soon(_drain, process.stderr)
            yield f"{match[1].decode()}/v1"
            nursery.cancel_scope.cancel()  # ends the process


async def _kill(process: trio.Process) -> None:
    process.kill()  # it has nothing to save, and on a busy machine its own shutdown takes seconds


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    while await stream.receive_some():
        pass


@pytest.fixture(scope="session")
def crucible_serve() -> Callable[..., AbstractAsyncContextManager[str]]:
    """`async with crucible_serve("--base-url", url) as base_url`: the command, as a process."""
    return _crucible_serve


@pytest.fixture
def run_python(sandbox: Sandbox) -> Run:
    """`await run_python("program.py", *arguments)` returns the output of a program in the development environment."""
    return partial(sandbox.run, sys.executable, folder=PYTHON)


@pytest.fixture
def run_agents(sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_agents("program.py", *arguments)` returns the output of a program that uses an agent framework."""
    return partial(sandbox.run, _environment("agents", skip_missing), folder=PYTHON)


@pytest.fixture
def run_litellm(sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_litellm("program.py", *arguments)` returns the output of a program that uses LiteLLM."""
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches one at its import
    own = Sandbox(sandbox.home, environment=environment)
    return partial(own.run, _environment("litellm", skip_missing), folder=PYTHON)


def _environment(name: str, skip_missing: Callable[[str], NoReturn]) -> Path:
    """The Python of an environment apart from the development environment."""
    try:
        return make_environment(FOLDER / ".venv" / name, PYTHON / f"{name}.txt")
    except InstallError as error:
        skip_missing(str(error))
