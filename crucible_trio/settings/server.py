"""The settings of the server."""

from __future__ import annotations

from typing import Annotated, final

import msgspec

from crucible_trio.config import Count


@final
class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses and limits of the server."""

    # The server.
    bind: tuple[str, ...] = ("127.0.0.1:8000",)
    """Addresses to listen on, as `host:port`."""
    allow_open: bool = False
    """Let other machines connect although no keys are configured."""
    max_connections: Count = 10_000
    """Open connections. A connection beyond the limit is closed immediately."""
    write_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Time limit for each write of at most 16 KiB. A client that does not read in this time is disconnected and may
    reconnect."""
