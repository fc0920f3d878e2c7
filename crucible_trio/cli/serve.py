"""`crucible serve`: from settings to exit."""

from __future__ import annotations

import logging
import signal
from contextlib import AsyncExitStack
from functools import partial

import trio

from crucible_trio.apis.kit.access import host_name, is_loopback
from crucible_trio.cli.progress import fetch_progress
from crucible_trio.engines import open_engine
from crucible_trio.errors import ConfigError
from crucible_trio.pipeline import open_pipeline
from crucible_trio.server import Config
from crucible_trio.server import serve as serve_app
from crucible_trio.settings import ServiceSettings
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
    _refuse_open_server(settings)
    is_complete = False
    async with AsyncExitStack() as stack:
        with fetch_progress() as progress:
            engine = await stack.enter_async_context(open_engine(settings.engine, progress=progress))
        pipeline = await stack.enter_async_context(open_pipeline(engine, settings.pipeline))
        stopping = trio.Event()
        server = partial(
            serve_app,
            create_app(pipeline, settings.apis),
            Config.from_settings(settings.server, settings.pipeline),
            drain=pipeline.drain,
            shutdown=stopping.wait,
        )
        async with trio.open_nursery() as watching:
            await watching.start(_watch_signals, stopping, watching.cancel_scope)
            async with trio.open_nursery() as serving:
                urls: list[str] = await serving.start(server)
                info = engine.info
                logger.info("serving %s (engine %s) on %s", ", ".join(info.models), info.name, ", ".join(urls))
            is_complete = True
            watching.cancel_scope.cancel()
    return is_complete


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
            raise ConfigError(message)
    logger.warning("no keys are configured: all clients share one anonymous owner")
