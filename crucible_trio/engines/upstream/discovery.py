"""Check an upstream server's base URL and key, and ask the server for its models."""

from __future__ import annotations

from typing import Final

import httpx
import msgspec

from crucible_trio.errors import ConfigError, EngineError

# Seconds. The models are asked for at start, where no stream's deadlines apply.
LIST_TIMEOUT: Final = 10.0


class _ListedModel(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


async def list_models(client: httpx.AsyncClient, url: httpx.URL) -> tuple[str, ...]:
    """Ask a server for the names of its models, in its order.

    Args:
        client: Sends the request.
        url: `{base URL}/models`.

    Returns:
        At least one name.

    Raises:
        EngineError: The server is unreachable, sends an invalid list or lists no models. `status` is the HTTP status,
            if one came.
    """
    shown = without_query(url)
    try:
        response = await client.get(url, headers={"Accept": "application/json"}, timeout=LIST_TIMEOUT)
    except httpx.RequestError as error:
        message = f"cannot get the list of models from {shown} ({type(error).__name__})"
        raise EngineError("upstream_unreachable", message, retryable=True) from error
    status = response.status_code
    if not response.is_success:
        message = f"{shown} returned status {status} instead of a list of models"
        raise EngineError("upstream_error", message, retryable=True, status=status)
    try:
        models = tuple(model.id for model in msgspec.json.decode(response.content, type=_ModelList).data)
    except (ValueError, RecursionError) as error:
        message = f"{shown} returned an invalid list of models"
        raise EngineError("upstream_invalid_response", message, status=status) from error
    if not models:
        message = f"{shown} lists no models"
        raise EngineError("upstream_invalid_response", message, status=status)
    return models


def parse_base_url(text: str) -> httpx.URL:
    """Check a base URL.

    Raises:
        ConfigError: It is not an http(s) URL with a host, or it holds a user or password.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        # httpx logs URLs, so a password must not be in one. The message does not quote it either.
        message = "the base URL of the upstream must look like http://127.0.0.1:8080/v1, without a user or password"
        raise ConfigError(message, "upstream_base_url")
    return url


def check_key(key: str) -> str:
    """Return a key that an HTTP header can carry.

    Raises:
        ConfigError: The key is empty, or a header cannot carry it. The message never quotes it.
    """
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        message = "the upstream's key is empty or holds a character that an HTTP header cannot carry"
        raise ConfigError(message, "upstream_key")
    return key


def join_url(base: httpx.URL, path: str) -> httpx.URL:
    """Append a path. A query such as `?api-version=` is kept."""
    return base.copy_with(path=f"{base.path.rstrip('/')}/{path}")


def without_query(url: httpx.URL) -> str:
    """The URL for logs and messages. A query may hold a key."""
    return str(url.copy_with(query=None, fragment=None))
