"""The start of a server, with one process or several: checks of its addresses, and the signals that stop it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EADDRINUSE
from typing import Protocol

import trio

from crucible_trio.errors import ConfigError
from crucible_trio.settings import ServiceSettings
from crucible_trio.settings.hosts import host_name, is_loopback

logger = logging.getLogger(__name__)


class Stoppable(Protocol):
    """A server that can be stopped in two steps."""

    def drain(self) -> None:
        """Let running streams finish, then end."""

    def stop(self) -> None:
        """End immediately."""


def refuse_open_server(settings: ServiceSettings) -> None:
    """Check that other machines cannot connect to a server without keys.

    Raises:
        ConfigError: They can.
    """
    if settings.apis.keys:
        return
    for address in settings.server.bind:
        if not address.startswith("unix:") and not is_loopback(host_name(address)) and not settings.server.allow_open:
            message = (
                f"other machines can connect to {address}, but no keys are configured: "
                "set CRUCIBLE_KEYS=owner:key, or use --allow-open"
            )
            raise ConfigError(message, "bind")


@contextmanager
def port_hint() -> Iterator[None]:
    """Add to the error of a port in use how to choose another one."""
    try:
        yield
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == EADDRINUSE and " unix:" not in str(error):
            message = f"{error}, choose another port with --bind 127.0.0.1:8001 or make serve PORT=8001"
            raise ConfigError(message, *error.settings) from error
        raise


async def watch_signals(server: Stoppable, *, task_status: trio.TaskStatus[None]) -> None:
    """Drain the server at the first SIGINT or SIGTERM, and stop it at the second. Runs until cancelled."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        is_draining = False
        async for number in signals:
            name = signal.Signals(number).name
            if is_draining:
                logger.info("%s again: stopping immediately", name)
                server.stop()
            else:
                logger.info("%s: waiting for running streams, a second signal stops immediately", name)
                is_draining = True
                server.drain()
