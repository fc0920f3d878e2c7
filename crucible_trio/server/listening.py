"""Opens the sockets that a server listens on."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from copy import copy
from typing import Final

from hypercorn.config import SocketTypeError

from crucible_trio.errors import ConfigError
from crucible_trio.server.config import Config

# The kernel drops a client that acknowledges nothing this long after the write deadline would have. A much shorter time
# cuts clients that do read: 2 s cut one that read 20 KB/s.
_USER_TIMEOUT_MARGIN_SECONDS: Final = 5.0
_LARGEST_USER_TIMEOUT: Final = 2**31 - 1  # milliseconds, in an int of the kernel


def open_sockets(config: Config, stack: ExitStack) -> list[socket.socket]:
    """Bind the addresses of a configuration and listen on them.

    Args:
        config: The addresses. `fd://5` is a socket that this process has inherited.
        stack: Closes the sockets.

    Raises:
        ConfigError: An address cannot be bound.
    """
    sockets = [(address, stack.enter_context(sock)) for address in config.bind for sock in _bind(config, address)]
    if not sockets:
        message = "there is no address to listen on"
        raise ConfigError(message, "bind")
    user_timeout = (config.write_timeout + _USER_TIMEOUT_MARGIN_SECONDS) * 1000
    for address, sock in sockets:
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            # Accepted sockets inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(min(user_timeout, _LARGEST_USER_TIMEOUT)))
        try:
            sock.listen(config.backlog)
        except OSError as error:  # such as an address that is named twice
            raise _cannot_listen(address, error.strerror) from error
    return [sock for _, sock in sockets]


def _bind(config: Config, address: str) -> list[socket.socket]:
    one = copy(config)  # hypercorn binds all addresses in one call, and its errors do not say which of them failed
    one.bind = [address]
    try:
        return one.create_sockets().insecure_sockets
    except (OSError, OverflowError, ValueError, SocketTypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not an address"
        raise _cannot_listen(address, reason) from error


def _cannot_listen(address: str, reason: str | None) -> ConfigError:
    return ConfigError(f"cannot listen on {address}: {reason}", "bind")
