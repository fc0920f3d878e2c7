"""`crucible serve --workers N`: several processes behind the same addresses.

This module imports neither the application nor an engine, so the supervisor stays small.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import msgspec
import trio

from crucible_trio.cli.progress import fetch_weights
from crucible_trio.cli.starting import port_hint, refuse_open_server, watch_signals
from crucible_trio.server.config import Config
from crucible_trio.server.listening import open_sockets
from crucible_trio.server.supervisor import Supervisor
from crucible_trio.settings import ServiceSettings

logger = logging.getLogger(__name__)

# -P: the folder in which the command was called must not be searched for modules.
WORKER: Final = (sys.executable, "-P", "-m", "crucible_trio.cli.worker")

_MARGIN_SECONDS: Final = 15.0  # ten for the lifespan of the application, and some for a busy machine


async def serve_with_workers(settings: ServiceSettings, command: Sequence[str] = WORKER) -> int:
    """Start the workers, and keep them running until SIGINT or SIGTERM.

    Args:
        settings: The settings. `server.workers` says how many workers there are.
        command: The command of a worker.

    Returns:
        The exit code: 0 after a complete shutdown, 1 if a second signal interrupted it, or the code of a worker that
        ended again and again.

    Raises:
        ConfigError: The settings do not work on this machine.

    Cancellation: ends the workers.
    """
    with settings.errors_name_origins():
        refuse_open_server(settings)
    if settings.engine.engine == "local" and settings.engine.model is None:
        await fetch_weights()  # once, before the workers look for them
    with ExitStack() as stack:
        with settings.errors_name_origins(), port_hint():
            sockets = open_sockets(Config.from_settings(settings.server, settings.pipeline), stack)
        supervisor = Supervisor(
            command,
            settings.server.workers,
            sockets=sockets,
            settings=msgspec.msgpack.encode(settings),
            drain_seconds=settings.pipeline.drain_seconds + 2 * settings.pipeline.flush_seconds + _MARGIN_SECONDS,
        )
        code = 1
        async with trio.open_nursery() as watching:
            await watching.start(watch_signals, supervisor)

            async def run(*, task_status: trio.TaskStatus[str]) -> None:
                nonlocal code
                code = await supervisor.run(task_status=task_status)
                watching.cancel_scope.cancel()

            if message := await watching.start(run):
                logger.info("all %d workers are ready", settings.server.workers)
                logger.info("%s", message)
    return code
