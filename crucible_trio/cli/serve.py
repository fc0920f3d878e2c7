"""`crucible serve`: an engine, a pipeline, the application and the server, from settings to exit."""

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
    """Serve until a signal.

    Returns:
        True after a shutdown in good order, False when a second signal cut it short.

    Raises:
        ConfigError: The settings cannot be carried out here.
    """
    _check_who_can_reach_us(settings)
    in_order = False
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
            in_order = True
            watching.cancel_scope.cancel()
    return in_order


async def _watch_signals(
    stopping: trio.Event, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stopping.is_set():
                logger.info("%s again: stopping at once", signal.Signals(number).name)
                everything.cancel()
            else:
                logger.info("%s: finishing what runs; once more stops at once", signal.Signals(number).name)
                stopping.set()


def _check_who_can_reach_us(settings: ServiceSettings) -> None:
    if settings.apis.keys:
        return
    for address in settings.server.bind:
        if not address.startswith("unix:") and not is_loopback(host_name(address)) and not settings.server.allow_open:
            message = (
                f"{address} can be reached by other machines and no keys are configured: "
                "set CRUCIBLE_KEYS=owner:key, or say --allow-open"
            )
            raise ConfigError(message)
    logger.warning("no keys are configured: whoever reaches this server is one and the same owner")
