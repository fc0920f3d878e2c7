"""Access control: keys and owners, stream tokens, and the rules against foreign pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from functools import lru_cache
from typing import Final, final

from itsdangerous import Signer
from quart import Request, Response

from crucible_trio.apis.kit.errors import ForbiddenError, UnauthorizedError
from crucible_trio.apis.kit.replies import no_content
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.settings.hosts import host_name, is_loopback
from crucible_trio.store.memory import ANONYMOUS

_CORS_HEADERS: Final = {"Access-Control-Allow-Methods": "GET, POST, DELETE", "Access-Control-Max-Age": "600"}
# The SDKs set `User-Agent`. A browser that lets them do so asks in the preflight.
_CORS_ALLOWED: Final = (
    "Last-Event-ID",
    "Idempotency-Key",
    "Authorization",
    "X-Api-Key",
    "Anthropic-Version",
    "Anthropic-Beta",
    "Anthropic-Dangerous-Direct-Browser-Access",
    "Content-Type",
    "User-Agent",
)
# Headers in which these SDKs describe themselves. The server ignores them, and each version adds some.
_CORS_SDK_HEADERS: Final = re.compile(r"x-stainless-[a-z0-9-]+")
_CORS_EXPOSED: Final = (
    "Location, Crucible-Stream, Crucible-Replayed, Crucible-Ignored, Crucible-Error, Retry-After, "
    "X-Should-Retry, Request-Id, X-Workflow-Run-Id, X-Workflow-Stream-Tail-Index"
)


@final
class Access:
    """The access rules of one application."""

    def __init__(self, settings: ApiSettings) -> None:
        self._owners = {_digest(key): owner for owner, key in settings.keys.items()}
        self._signer = Signer(settings.token_secret or secrets.token_bytes(32), salt="crucible_trio stream token")
        self._allowed_origins = frozenset(settings.allowed_origins)
        self._server_names = frozenset(name.lower() for name in settings.server_names)

    @property
    def has_keys(self) -> bool:
        """Whether keys are configured. Without keys, every client is the same anonymous owner."""
        return bool(self._owners)

    def owner(self, request: Request) -> str:
        """The owner that a request acts for.

        Raises:
            UnauthorizedError: Keys are configured and the request has none of them.
        """
        if not self._owners:
            return ANONYMOUS
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        found = self._owner_of(key.strip()) if scheme.lower() == "bearer" else None
        if found is None and (key := request.headers.get("X-Api-Key", "").strip()):  # clients of Anthropic's API
            found = self._owner_of(key)
        if found is None:
            raise UnauthorizedError
        return found

    def _owner_of(self, key: str) -> str | None:
        given = _digest(key)
        found: str | None = None
        for digest, owner in self._owners.items():  # compares with every key, each in constant time
            if hmac.compare_digest(digest, given):
                found = owner
        return found

    def token(self, stream_id: str) -> str:
        """A token that gives read access to the events of this stream, until the stream is gone."""
        return self._signer.get_signature(stream_id).decode()

    def events_owner(self, request: Request, stream_id: str) -> str | None:
        """The owner that a request for events acts for. None for a client that has the stream's token.

        Raises:
            UnauthorizedError: The request has neither a valid token nor a valid key.
        """
        token = request.args.get("token")
        if token is not None and self._signer.verify_signature(stream_id, token.encode()):
            return None
        return self.owner(request)

    def check_origin(self, request: Request) -> None:
        """Refuse requests that a foreign page made a browser send.

        Raises:
            ForbiddenError: The page's origin is neither this server's nor allowed. Or no keys are configured, and the
                host is neither an IP address nor one of the server's names: a foreign name may point to this machine
                (DNS rebinding), and an address cannot.
        """
        origin = request.headers.get("Origin")
        host = request.headers.get("Host", "")
        if not self._owners and host and not self._is_our_name(host):
            message = f"this server does not answer to the host {host[:64]!a}: add its name to the setting server_names"
            raise ForbiddenError(message)
        if origin is not None and origin in self._allowed_origins:
            return
        if origin is not None and not _is_same_host(origin, host):
            message = f"the origin {origin[:64]!a} is not allowed: add it to the setting allowed_origins"
            raise ForbiddenError(message)
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            raise ForbiddenError("cross-site requests are not allowed")

    def preflight(self, request: Request) -> Response:
        """Answer an `OPTIONS` request, with CORS headers only if the origin is allowed."""
        response = no_content()
        if request.headers.get("Origin") in self._allowed_origins:
            response.headers.update(_CORS_HEADERS)
            asked = request.headers.get("Access-Control-Request-Headers", "").lower().split(",")
            allowed = [*_CORS_ALLOWED, *filter(_CORS_SDK_HEADERS.fullmatch, map(str.strip, asked))]
            response.headers["Access-Control-Allow-Headers"] = ", ".join(allowed)
        return response

    def add_cors(self, request: Request, response: Response) -> None:
        """Let a page of an allowed origin read the response."""
        if not self._allowed_origins:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get("Origin")
        if origin in self._allowed_origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _CORS_EXPOSED

    def _is_our_name(self, host: str) -> bool:
        name = host_name(host)
        return name in self._server_names or is_loopback(name) or _is_address(name)


@lru_cache(maxsize=64)  # a client's `Host` is nearly always the same, and parsing it took 2 % of a start
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_same_host(origin: str, host: str) -> bool:
    # The scheme is not compared: behind a proxy that ends TLS, this server only sees plain http.
    scheme, _, netloc = origin.lower().partition("://")
    default_port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(default_port) and netloc in {host.lower(), host.lower().removesuffix(default_port)}


def _digest(key: str) -> bytes:
    # All digests have one length, so that the time of a comparison does not reveal the length of a key.
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
