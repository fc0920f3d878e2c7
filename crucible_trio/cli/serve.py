"""`crucible serve`: from settings to exit."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from errno import EADDRINUSE
from functools import partial

import trio

from crucible_trio.apis.kit.access import host_name, is_loopback
from crucible_trio.cli.progress import fetch_progress
from crucible_trio.engine import EngineInfo
from crucible_trio.engines import open_engine
from crucible_trio.errors import ConfigError
from crucible_trio.pipeline import open_pipeline
from crucible_trio.server import Config
from crucible_trio.server import serve as serve_app
from crucible_trio.settings import ServiceSettings
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.web.app import create_app

logger = logging.getLogger(__name__)


async def serve(settings: ServiceSettings) -> bool:
    """Open the engine, the pipeline and the application, and serve until SIGINT or SIGTERM.

    Returns:
        True after a complete shutdown, False if a second signal interrupted it.

    Raises:
        ConfigError: The settings do not work on this machine.

    Cancellation: running streams end as cancelled, and open connections are reset.
    """
    with settings.errors_name_origins():
        _refuse_open_server(settings)
    is_complete = False
    async with AsyncExitStack() as stack:
        with fetch_progress() as progress, settings.errors_name_origins():
            engine = await stack.enter_async_context(open_engine(settings.engine, progress=progress))
        with settings.errors_name_origins():
            pipeline = await stack.enter_async_context(open_pipeline(engine, settings.pipeline))
            app = create_app(pipeline, settings.apis)
        stopping = trio.Event()
        server = partial(
            serve_app,
            app,
            Config.from_settings(settings.server, settings.pipeline),
            drain=pipeline.drain,
            shutdown=stopping.wait,
        )
        async with trio.open_nursery() as watching:
            await watching.start(_watch_signals, stopping, watching.cancel_scope)
            async with trio.open_nursery() as serving:
                with settings.errors_name_origins(), _port_hint():
                    urls: list[str] = await serving.start(server)
                logger.info("%s", start_message(urls, engine.info, settings.apis))
            is_complete = True
            watching.cancel_scope.cancel()
    return is_complete


@contextmanager
def _port_hint() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == EADDRINUSE and " unix:" not in str(error):
            message = f"{error}, choose another port with --bind 127.0.0.1:8001 or make serve PORT=8001"
            raise ConfigError(message, *error.settings) from error
        raise


async def _watch_signals(
    stopping: trio.Event, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stopping.is_set():
                logger.info("%s again: stopping immediately", signal.Signals(number).name)
                everything.cancel()
            else:
                logger.info(
                    "%s: waiting for running streams, a second signal stops immediately", signal.Signals(number).name
                )
                stopping.set()


def _refuse_open_server(settings: ServiceSettings) -> None:
    if settings.apis.keys:
        return
    for address in settings.server.bind:
        if not address.startswith("unix:") and not is_loopback(host_name(address)) and not settings.server.allow_open:
            message = (
                f"other machines can connect to {address}, but no keys are configured: "
                "set CRUCIBLE_KEYS=owner:key, or use --allow-open"
            )
            raise ConfigError(message, "bind")


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
