"""The URL of a Redis server, and connections to it. No message quotes the URL, because it may hold a password."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import SplitResult, unquote, urlsplit

import trio
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)

from crucible_trio.errors import ConfigError

_FORM: Final = "log_url must have a form like redis://127.0.0.1:6379/0, rediss://:password@host:6379/0 or unix:///path"
_PORT: Final = 6379
_CONNECT_SECONDS: Final = 5.0
# Longer than Redis needs for the largest request, a stream's facts of 20 MiB.
_REPLY_SECONDS: Final = 5.0


@final
@dataclass(frozen=True, slots=True, repr=False)
class RedisAddress:
    """Where a Redis server is, and how to log in."""

    host: str
    port: int
    path: str | None
    database: int
    username: str | None
    password: str | None
    tls: bool

    async def check(self) -> bool:
        """Whether something listens there. Ask before opening a connection: coredis leaks one that cannot be opened.

        Checkpoints: always. Cancellation: safe.
        """
        location = TCPLocation(self.host, self.port) if self.path is None else UnixDomainSocketLocation(self.path)
        with trio.move_on_after(_CONNECT_SECONDS):
            return await location.check()
        return False

    def connection(self) -> BaseConnection:
        """A connection that has not been opened. With TLS it verifies the certificate and the host's name.

        The certificates are the system's, or those of the variables SSL_CERT_FILE and SSL_CERT_DIR.
        """
        if self.path is not None:
            return UnixDomainSocketConnection(
                UnixDomainSocketLocation(self.path),
                username=self.username,
                password=self.password,
                db=self.database,
                connect_timeout=_CONNECT_SECONDS,
                stream_timeout=_REPLY_SECONDS,
            )
        return TCPConnection(
            TCPLocation(self.host, self.port),
            username=self.username,
            password=self.password,
            db=self.database,
            connect_timeout=_CONNECT_SECONDS,
            stream_timeout=_REPLY_SECONDS,
            ssl_context=ssl.create_default_context() if self.tls else None,
        )


def parse_url(url: str) -> RedisAddress:
    """Parse the setting `log_url`.

    Raises:
        ConfigError: It is not the URL of a Redis server.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
        database = _database(parts)
    except ValueError:  # its text quotes the URL
        raise ConfigError(_FORM, "log_url") from None
    is_unix = parts.scheme == "unix"
    if (
        parts.scheme not in {"redis", "rediss", "unix"}
        or parts.fragment
        or not (parts.path if is_unix else parts.hostname)
    ):
        raise ConfigError(_FORM, "log_url")
    return RedisAddress(
        host=parts.hostname or "",
        port=port,
        path=unquote(parts.path) if is_unix else None,
        database=database,
        username=_unquoted(parts.username),
        password=_unquoted(parts.password),
        tls=parts.scheme == "rediss",
    )


def _database(parts: SplitResult) -> int:
    if parts.scheme == "unix":
        name, _, text = parts.query.partition("=")
        return int(text) if name == "db" else _without_query(parts)
    return int(parts.path.removeprefix("/") or 0) + _without_query(parts)


def _without_query(parts: SplitResult) -> int:
    if parts.query:
        raise ValueError
    return 0


def _unquoted(text: str | None) -> str | None:
    return unquote(text) if text else None
