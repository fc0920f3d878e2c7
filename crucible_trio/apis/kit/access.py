"""Who may do what: keys and owners, stream tokens, and the rules against foreign pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from typing import Final, final
from urllib.parse import urlsplit

from itsdangerous import Signer
from quart import Request, Response

from crucible_trio.config import Settings
from crucible_trio.pipeline import ANONYMOUS
from crucible_trio.web.errors import ForbiddenError, UnauthorizedError
from crucible_trio.web.responses import no_content

_CORS_HEADERS: Final = {"Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600"}
# OpenAI's SDKs set the last; browsers that let them ask whether they may.
_CORS_ALLOWED: Final = ("Last-Event-ID", "Idempotency-Key", "Authorization", "Content-Type", "User-Agent")
# What the same SDKs say of themselves. Nobody reads it here, and there are more of them with each version.
_CORS_ALLOWED_TOO: Final = re.compile(r"x-stainless-[a-z0-9-]+")
_CORS_EXPOSED: Final = "Location, Crucible-Stream, Crucible-Replayed, Retry-After, X-Should-Retry"


@final
class Access:
    """The rules of one application."""

    def __init__(self, settings: Settings) -> None:
        self._owners = {_digest(key): owner for owner, key in settings.keys.items()}
        self._signer = Signer(settings.token_secret or secrets.token_bytes(32), salt="crucible_trio stream token")
        self._allowed_origins = frozenset(settings.allowed_origins)
        self._server_names = frozenset(name.lower() for name in settings.server_names)

    @property
    def has_keys(self) -> bool:
        """Whether keys are configured; without, everybody is the one anonymous owner."""
        return bool(self._owners)

    def owner(self, request: Request) -> str:
        """Whose request it is.

        Raises:
            UnauthorizedError: Keys are configured and the request brings none of them.
        """
        if not self._owners:
            return ANONYMOUS
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = _digest(key.strip())
        found: str | None = None
        for digest, owner in self._owners.items():  # all of them, each in constant time
            if hmac.compare_digest(digest, given):
                found = owner
        if found is None or scheme.lower() != "bearer":
            raise UnauthorizedError
        return found

    def token(self, stream_id: str) -> str:
        """A token that opens this stream's events and nothing else; valid until the stream is gone."""
        return self._signer.get_signature(stream_id).decode()

    def events_owner(self, request: Request, stream_id: str) -> str | None:
        """Whose events request it is; None for somebody who shows this stream's token.

        Raises:
            UnauthorizedError: Neither a valid token nor a valid key.
        """
        token = request.args.get("token")
        if token is not None and self._signer.verify_signature(stream_id, token.encode()):
            return None
        return self.owner(request)

    def check_origin(self, request: Request) -> None:
        """Refuse what a foreign page makes a browser send.

        Raises:
            ForbiddenError: The page is neither our own nor allowed; or, while no keys are configured, the host is not
                one we answer to: a foreign name that was pointed at this machine (DNS rebinding).
        """
        origin = request.headers.get("Origin")
        host = request.headers.get("Host", "")
        if not self._owners and host and not self._is_our_name(host):
            raise ForbiddenError("this server does not answer to that host name")
        if origin is not None and origin in self._allowed_origins:
            return
        if origin is not None and not _is_same_host(origin, host):
            raise ForbiddenError("this origin is not allowed")
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise ForbiddenError("cross-site requests are not allowed")

    def preflight(self, request: Request) -> Response:
        """Answer an `OPTIONS` request; without the CORS headers unless the origin is allowed."""
        response = no_content()
        if request.headers.get("Origin") in self._allowed_origins:
            response.headers.update(_CORS_HEADERS)
            asked = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
            allowed = [*_CORS_ALLOWED, *filter(_CORS_ALLOWED_TOO.fullmatch, map(str.strip, asked))]
            response.headers["Access-Control-Allow-Headers"] = ", ".join(allowed)
        return response

    def add_cors(self, request: Request, response: Response) -> None:
        """Let an allowed page read the response."""
        if not self._allowed_origins:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin in self._allowed_origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _CORS_EXPOSED

    def _is_our_name(self, host: str) -> bool:
        name = host_name(host)
        return name in self._server_names or is_loopback(name)


def is_loopback(name: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """The name in `name:port`, lower case and without the brackets of an IPv6 address; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_same_host(origin: str, host: str) -> bool:
    # The scheme does not count: behind a proxy that ends TLS we only see plain http.
    scheme, _, netloc = origin.lower().partition("://")
    default_port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(default_port) and netloc in {host.lower(), host.lower().removesuffix(default_port)}


def _digest(key: str) -> bytes:
    # Of one length, so that comparing says nothing about the lengths of keys.
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
