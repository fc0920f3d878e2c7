"""Check an upstream server's base URL and key, and ask the server for its models."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

import msgspec
import trio

from crucible_trio.errors import ConfigError, EngineError
from crucible_trio.http import HttpClient, HttpError, Url, parse_url

# Seconds. The models are asked for at start, where no stream's deadlines apply.
LIST_TIMEOUT: Final = 10.0
MAX_LIST_BYTES: Final = 4 * 1024 * 1024


# More models, and longer names, than any server has. Requests look models up by name.
MAX_MODELS: Final = 4096
MAX_NAME_LENGTH: Final = 512


class _ModelList(msgspec.Struct):
    data: list[object]


async def list_models(client: HttpClient, url: Url) -> tuple[str, ...]:
    """Ask a server for the names of its models, in its order.

    Args:
        client: Sends the request.
        url: `{base URL}/models`.

    Returns:
        At least one name, and each only once. Entries without a usable name are skipped.

    Raises:
        EngineError: The server is unreachable, sends an invalid list or lists no models. `status` is the HTTP status,
            if one came.
    """
    shown = url.without_query()
    try:
        with trio.fail_after(LIST_TIMEOUT):
            async with await client.send("GET", url, headers={"Accept": "application/json"}) as response:
                content = await response.read_all(MAX_LIST_BYTES)
    except (HttpError, trio.TooSlowError) as error:
        reason = "it took too long" if isinstance(error, trio.TooSlowError) else error
        message = f"cannot get the list of models from {shown} ({reason})"
        raise EngineError("upstream_unreachable", message, retryable=True) from error
    status = response.status
    if not response.is_success:
        message = f"{shown} returned status {status} instead of a list of models"
        raise EngineError("upstream_error", message, retryable=True, status=status)
    try:
        listed = msgspec.json.decode(content, type=_ModelList).data
    except (ValueError, RecursionError) as error:
        message = f"{shown} returned an invalid list of models"
        raise EngineError("upstream_invalid_response", message, status=status) from error
    models = usable_names(model.get("id") if isinstance(model, dict) else None for model in listed)
    if not models:
        message = f"{shown} lists no models" if not listed else f"{shown} returned an invalid list of models"
        raise EngineError("upstream_invalid_response", message, status=status)
    return models


def usable_names(names: Iterable[object]) -> tuple[str, ...]:
    """The names of a list of models that a request can give, in order and without repetitions."""
    usable = (name for name in names if isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH)
    return tuple(islice(dict.fromkeys(usable), MAX_MODELS))


def parse_base_url(text: str) -> Url:
    """Check a base URL.

    Raises:
        ConfigError: It is not an http(s) URL with a host, or it holds a user or password.
    """
    try:
        url = parse_url(text)
    except ValueError:
        url = None
    if url is None or url.user is not None:
        # URLs are logged, so a password must not be in one. The message does not quote it either.
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
