"""The URL of a Redis server: how to connect to it and to log in.

No message quotes the URL, because it may hold a password.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import SplitResult, unquote, urlsplit

import trio

from crucible_trio.errors import ConfigError
from crucible_trio.store.redis.connection import Argument, RedisDownError

_FORM: Final = "log_url must have a form like redis://127.0.0.1:6379/0, rediss://:password@host:6379/0 or unix:///path"
_PORT: Final = 6379
_CONNECT_SECONDS: Final = 5.0
# The user whose password Redis' setting `requirepass` is.
_DEFAULT_USER: Final = "default"


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

    async def connect(self) -> trio.abc.Stream:
        """Connect. With TLS, the certificate and the host's name are verified.

        The certificates are the system's, or those of the variables SSL_CERT_FILE and SSL_CERT_DIR.

        Raises:
            RedisDownError: Nothing listens there.
            trio.BrokenResourceError: TLS failed. The cause says why.

        Checkpoints: always. Cancellation: safe.
        """
        try:
            with trio.fail_after(_CONNECT_SECONDS):
                return await self._connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: it cannot be the name of a host
            message = "nothing listens there"
            raise RedisDownError(message) from error
        except trio.TooSlowError as error:
            message = "no answer"
            raise RedisDownError(message) from error

    async def _connect(self) -> trio.abc.Stream:
        if self.path is not None:
            return await trio.open_unix_socket(self.path)
        stream = await trio.open_tcp_stream(self.host, self.port)
        if not self.tls:
            return stream
        context = ssl.create_default_context()
        # Redis may end a connection without the last message of TLS.
        secured = trio.SSLStream(stream, context, server_hostname=self.host, https_compatible=True)
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(secured)
            raise
        return secured

    def login(self) -> Iterator[tuple[Argument, ...]]:
        """The commands with which a connection begins."""
        if self.username or self.password:
            yield "AUTH", self.username or _DEFAULT_USER, self.password or ""
        if self.database:
            yield "SELECT", self.database


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
    path = unquote(parts.path)
    has_place = path and "\0" not in path if is_unix else parts.hostname  # no file has such a name
    if parts.scheme not in {"redis", "rediss", "unix"} or parts.fragment or not has_place:
        raise ConfigError(_FORM, "log_url")
    return RedisAddress(
        host=parts.hostname or "",
        port=port,
        path=path if is_unix else None,
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
