"""What the server can be told: hypercorn's settings and ours."""

from __future__ import annotations

import logging
from typing import Self, final

from hypercorn.config import Config as HypercornConfig

from crucible_trio.config import Settings
from crucible_trio.settings.server import ServerSettings

logger = logging.getLogger("crucible_trio.server")


@final
class Config(HypercornConfig):
    """hypercorn's settings and ours.

    Attributes:
        write_timeout: Seconds for each 16 KiB.
        flush_timeout: Seconds that connections have, once nothing more is accepted, to take what is left.
        max_connections: Open connections; more are closed at once, unanswered. To a browser's EventSource that is a
            network error: it comes back.
        direct_writes: Whether the application is offered writes that do not wait; not behind ASGI middleware that
            changes bodies.
    """

    write_timeout: float = 30.0
    flush_timeout: float = 5.0
    max_connections: int = 10_000
    direct_writes: bool = True
    # Reconnects come in storms; the kernel cuts this to net.core.somaxconn.
    backlog = 4096
    # Never the query: a prompt or a token may stand in it.
    access_log_format = '%(h)s "%(m)s %(U)s HTTP/%(H)s" %(s)s %(D)sus'
    include_server_header = False
    errorlog = logger

    @classmethod
    def from_settings(cls, settings: ServerSettings, pipeline: Settings = Settings()) -> Self:  # noqa: B008 - frozen
        """The configuration that these settings ask for, with `flush_seconds` of the pipeline's."""
        config = cls()
        config.bind = list(settings.bind)
        config.write_timeout = settings.write_timeout_seconds
        config.flush_timeout = pipeline.flush_seconds
        config.max_connections = settings.max_connections
        return config
