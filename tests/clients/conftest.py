"""Fixtures: a server in front of an engine, and real clients in an environment of their own."""

from __future__ import annotations

import shutil
import sys
import venv
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

from .npm import CLIENTS, InstallError, Sandbox, find_node, install_packages, run_installer

REAL_SECONDS = 300  # only a failing test takes this long

Run: TypeAlias = Callable[..., Awaitable[str]]


@dataclass(frozen=True)
class ServedApp:
    """A running server.

    Attributes:
        pipeline: The pipeline that it serves.
        port: Its port on 127.0.0.1.
        requests: How many requests had each API key.
    """

    pipeline: Pipeline
    port: int
    requests: Counter[str]

    @property
    def base_url(self) -> str:
        """The value for an SDK's base URL."""
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def _serving(engine: Any, **settings: Any) -> AsyncIterator[ServedApp]:
    values = load_settings({}, **settings)
    requests: Counter[str] = Counter()
    with trio.fail_after(REAL_SECONDS):
        async with open_pipeline(engine, values.pipeline) as pipeline, trio.open_nursery() as nursery:
            app = create_app(pipeline, values.apis)

            async def counting(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    requests[dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")] += 1
                await app(scope, receive, send)

            config = Config.from_settings(values.server, values.pipeline)
            config.bind = ["127.0.0.1:0"]
            urls: list[str] = await nursery.start(partial(serve, counting, config))
            yield ServedApp(pipeline, int(urls[0].rpartition(":")[2]), requests)
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
    """`await run_node("chat.mjs", *arguments)` returns what a program prints that uses clients from npm."""
    try:
        install_packages(npm, CLIENTS / "npm")
    except InstallError as error:
        skip_missing(str(error))
    return partial(sandbox.run, node, folder=CLIENTS / "npm")


# LiteLLM and 60 packages that it needs, in an environment apart from the development environment.
LITELLM = "litellm==1.110.2"


@pytest.fixture
def run_litellm(sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_litellm("program.py", *arguments)` returns what a program prints that uses LiteLLM."""
    folder = CLIENTS / ".venv"
    stamp = folder / ".installed"
    wanted = f"{LITELLM} {sys.version}"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True, symlinks=True)
        command = ["bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", LITELLM]
        try:
            run_installer([str(folder / command[0]), *command[1:]], folder)
        except InstallError as error:
            skip_missing(str(error))
        stamp.write_text(wanted)
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it fetches one at its import
    own = Sandbox(sandbox.home, environment=environment)
    return partial(own.run, folder / "bin" / "python", folder=CLIENTS)
