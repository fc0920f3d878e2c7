"""The settings of the server."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, final

import msgspec

from crucible_trio.config import Count
from crucible_trio.errors import ConfigError
from crucible_trio.settings.values import quote

_LARGEST_PORT: Final = 65535
# Letters, digits, hyphens and underscores between dots (RFC 1123, and names in container networks have underscores).
HOST_NAME: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})?(\.[a-z0-9_]([a-z0-9_-]{0,62})?)*\.?", re.IGNORECASE
)


@final
class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Addresses and limits of the server."""

    # The server.
    bind: tuple[str, ...] = ("127.0.0.1:8000",)
    """Addresses to listen on, as `host:port`. Port 0 means any free port."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    """Processes that serve these addresses together. More than one needs `log_url`."""
    allow_open: bool = False
    """Let other machines connect although no keys are configured."""
    max_connections: Count = 10_000
    """Open connections. A connection beyond the limit is closed immediately."""
    write_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Time limit for each write of at most 16 KiB. A client that does not read in this time is disconnected and may
    reconnect."""

    def __post_init__(self) -> None:
        """Check the addresses."""
        if not self.bind:
            message = "bind must name at least one address, such as 127.0.0.1:8000"
            raise ConfigError(message, "bind")
        for address in self.bind:
            if problem := _problem_of(address):
                message = f"bind must hold addresses like 127.0.0.1:8000 or [::1]:8000, not {quote(address)}: {problem}"
                raise ConfigError(message, "bind")


def _problem_of(address: str) -> str | None:
    if address.startswith("unix:"):
        return None if len(address) > len("unix:") else "the path of the socket is missing"
    host, colon, port = address.rpartition(":")
    if not colon or port.endswith("]"):
        return "the port is missing"
    if not (port.isascii() and port.isdigit() and int(port) <= _LARGEST_PORT):
        return f"the port must be a number from 0 to {_LARGEST_PORT}"
    if not host:
        return "the host is missing, and 0.0.0.0 stands for every address of this machine"
    return None if _is_host(host) else "the host is neither a name nor an address"


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return _is_address(host[1:-1], 6)
    if host.rpartition(".")[2].isdigit():  # a name never ends like this
        return _is_address(host, 4)
    return HOST_NAME.fullmatch(host) is not None


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
