"""The server's configuration: hypercorn's settings and ours."""

from __future__ import annotations

import logging
from typing import Self, final

from hypercorn.config import Config as HypercornConfig

from crucible_trio.config import Settings
from crucible_trio.settings.server import ServerSettings

logger = logging.getLogger("crucible_trio.server")


@final
class Config(HypercornConfig):
    """hypercorn's settings, and four more.

    Attributes:
        write_timeout: Seconds that a client has to accept each 16 KiB.
        flush_timeout: Seconds that open connections have at shutdown, once the listeners are closed, to send buffered
            bytes.
        max_connections: Maximum number of open connections. The server closes any further connection immediately and
            without a response. A browser's EventSource sees a network error and reconnects.
        direct_writes: Whether the server offers the application the extension `crucible_trio.direct_writes`. Set it to
            False if ASGI middleware changes response bodies.
    """

    write_timeout: float = 30.0
    flush_timeout: float = 5.0
    max_connections: int = 10_000
    direct_writes: bool = True
    # Many clients reconnect at the same time. The kernel lowers this to net.core.somaxconn.
    backlog = 4096
    # No query string: it may contain a prompt or a stream token.
    access_log_format = '%(h)s "%(m)s %(U)s HTTP/%(H)s" %(s)s %(D)sus'
    include_server_header = False
    errorlog = logger

    @classmethod
    def from_settings(cls, settings: ServerSettings, pipeline: Settings = Settings()) -> Self:  # noqa: B008 - frozen
        """Build a configuration from the settings of the server, and `flush_seconds` of the pipeline's."""
        config = cls()
        config.bind = list(settings.bind)
        config.write_timeout = settings.write_timeout_seconds
        config.flush_timeout = pipeline.flush_seconds
        config.max_connections = settings.max_connections
        return config
