"""`crucible serve` in one process: from settings to exit."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import final

import trio

from crucible_trio.apis.kit.context import Workers
from crucible_trio.cli.progress import fetch_progress
from crucible_trio.cli.starting import port_hint, refuse_open_server, watch_signals
from crucible_trio.engine import EngineInfo
from crucible_trio.engines import open_engine
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.server import Config
from crucible_trio.server import serve as serve_app
from crucible_trio.settings import ServiceSettings
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.web.app import create_app

logger = logging.getLogger(__name__)


async def serve(settings: ServiceSettings) -> int:
    """Open the engine, the pipeline and the application, and serve until SIGINT or SIGTERM.

    Returns:
        The exit code: 0 after a complete shutdown, 1 if a second signal interrupted it.

    Raises:
        ConfigError: The settings do not work on this machine.

    Cancellation: running streams end as cancelled, and open connections are reset.
    """
    with settings.errors_name_origins():
        refuse_open_server(settings)
    code = 1
    async with open_service(settings) as service, trio.open_nursery() as watching:
        process = _Process(watching.cancel_scope)
        await watching.start(watch_signals, process)
        async with trio.open_nursery() as serving:
            logger.info("%s", await serving.start(service.serve, process.stopping))
        code = 0
        watching.cancel_scope.cancel()
    return code


@final
class _Process:
    """This process (`Stoppable`)."""

    def __init__(self, everything: trio.CancelScope) -> None:
        self.stopping = trio.Event()
        self._everything = everything

    def drain(self) -> None:
        self.stopping.set()

    def stop(self) -> None:
        self._everything.cancel()


@final
@dataclass(frozen=True, slots=True)
class Service:
    """An open pipeline, ready to be served.

    Attributes:
        settings: The settings of the service.
        pipeline: The pipeline.
    """

    settings: ServiceSettings
    pipeline: Pipeline

    async def serve(
        self,
        stopping: trio.Event,
        accepting: trio.CancelScope | None = None,
        *,
        bind: Sequence[str] | None = None,
        workers: Workers | None = None,
        task_status: trio.TaskStatus[str],
    ) -> None:
        """Serve until told to stop, then drain.

        Args:
            stopping: Set when the service has to stop.
            accepting: See `crucible_trio.server.serve`.
            bind: Where to listen instead of at the addresses in the settings.
            workers: The processes that serve together with this one.
            task_status: Receives the message of the start when clients can connect.

        Raises:
            ConfigError: A setting of an API is wrong, or an address cannot be bound.
        """
        with self.settings.errors_name_origins():
            app = create_app(self.pipeline, self.settings.apis, workers)
        config = Config.from_settings(self.settings.server, self.settings.pipeline)
        config.bind = list(bind or config.bind)
        server = partial(serve_app, app, config, drain=self.pipeline.drain, shutdown=stopping.wait, accepting=accepting)
        async with trio.open_nursery() as nursery:
            with self.settings.errors_name_origins(), port_hint():
                urls: list[str] = await nursery.start(server)
            keep_out_of_collections()
            task_status.started(start_message(urls, self.pipeline.engine.info, self.settings.apis))


@asynccontextmanager
async def open_service(settings: ServiceSettings) -> AsyncIterator[Service]:
    """Open the engine and the pipeline.

    Raises:
        ConfigError: The settings do not work on this machine.
    """
    async with AsyncExitStack() as stack:
        with fetch_progress() as progress, settings.errors_name_origins():
            engine = await stack.enter_async_context(open_engine(settings.engine, progress=progress))
        with settings.errors_name_origins():
            pipeline = await stack.enter_async_context(open_pipeline(engine, settings.pipeline))
        yield Service(settings, pipeline)


def keep_out_of_collections() -> None:
    """Let the garbage collector skip everything that exists now, such as modules.

    It would walk these objects again and again: 5 % of the CPU time while streams start, in pauses of 80 ms.
    """
    gc.collect()
    gc.freeze()


def start_message(urls: Sequence[str], info: EngineInfo, settings: ApiSettings) -> str:
    """The last message of a start, over several lines: what to open, what answers, and how to stop it."""
    lines = [
        f"serving on {', '.join(urls)}",
        *(f"    open   {url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:')}" for url in urls),
        f"    model  {', '.join(info.models) or 'none yet'} (engine {info.name})",
    ]
    if info.notice:
        lines.append(f"           {info.notice}")
    if settings.keys:
        lines.append("    keys   required")
    else:
        names = ", ".join(["localhost", "IP addresses", *settings.server_names])
        lines.append("    keys   none, so all clients share one anonymous owner")
        lines.append(f"    names  {names}. Clients that use another host name get 403: see server_names")
    return "\n".join([*lines, "    stop   Ctrl-C"])
