"""URLs of servers and proxies."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, final
from urllib.parse import quote, unquote, urlsplit

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# `urlsplit` would drop a line break inside a URL, and a request line must not hold one.
_UNSAFE: Final = re.compile(r"[\x00-\x20\x7f\\]")
_HOST: Final = re.compile(r"[A-Za-z0-9._~%:-]+")
_SAFE_IN_PATH: Final = "/%:@!$&'()*+,;=~[]|"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """The parts of a URL.

    Attributes:
        scheme: In lower case.
        host: In lower case and ASCII. An IPv6 address without brackets.
        port: Also if the URL does not name it.
        path: Percent-encoded, from the first slash on. Empty if there is none.
        query: Percent-encoded, without the question mark.
        user: Decoded user name, or None.
        password: Decoded.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    query: str = ""
    user: str | None = None
    password: str = ""

    def __str__(self) -> str:
        """The URL without user and password."""
        return f"{self.scheme}://{self.host_header}{self.target}"

    def __repr__(self) -> str:
        return f"<Url {self}>"

    @property
    def host_header(self) -> str:
        """The value of `Host`: the port is left out if it is the default."""
        if DEFAULT_PORTS.get(self.scheme) == self.port:
            return bracketed(self.host)
        return self.authority

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query, as a request line has them."""
        path = self.path or "/"
        return f"{path}?{self.query}" if self.query else path

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    def without_query(self) -> Url:
        """The same URL without its query."""
        return replace(self, query="")

    def join(self, path: str, query: str = "") -> Url:
        """Append a path, and replace the query if there is a new one.

        Args:
            path: Without a leading slash. It is percent-encoded.
            query: Percent-encoded.
        """
        base = self.path.rstrip("/")
        return replace(self, path=f"{base}/{quote(path, safe=_SAFE_IN_PATH)}", query=query or self.query)


def parse_url(text: str, schemes: tuple[str, ...] = ("http", "https")) -> Url:
    """Parse an absolute URL. A fragment is dropped.

    Raises:
        ValueError: It has no host or another scheme, or is not a URL. The message does not quote it.
    """
    if _UNSAFE.search(text):
        message = "a URL cannot hold spaces, control characters or backslashes"
        raise ValueError(message)
    parts = urlsplit(text)
    scheme = parts.scheme.lower()
    if scheme not in schemes:
        message = f"the URL does not begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
        raise ValueError(message)
    host = parts.hostname or ""
    if ":" not in host:
        host = host.encode("idna").decode()  # raises for a label that is empty or too long, too
    if not _HOST.fullmatch(host):
        message = "the URL has no valid host"
        raise ValueError(message)
    port = parts.port
    if port == 0:
        message = "the URL has port 0"
        raise ValueError(message)
    return Url(
        scheme=scheme,
        host=host,
        port=DEFAULT_PORTS.get(scheme, 0) if port is None else port,
        path=quote(parts.path, safe=_SAFE_IN_PATH),
        query=quote(parts.query, safe=_SAFE_IN_PATH + "?"),
        user=None if parts.username is None else unquote(parts.username),
        password=unquote(parts.password or ""),
    )


def bracketed(host: str) -> str:
    """A host as a URL writes it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
