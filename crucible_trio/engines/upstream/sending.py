"""Sends requests to an upstream server, again while no status comes and that is safe.

A later retry could repeat text, so none comes after a status of success.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final, Protocol, final

import msgspec
import trio

from crucible_trio.engines.upstream.retries import RetrySchedule
from crucible_trio.errors import EngineError
from crucible_trio.http import (
    ConnectFailedError,
    ConnectTimeoutError,
    HttpClient,
    HttpError,
    HttpResponse,
    InvalidResponseError,
    Url,
)

logger = logging.getLogger(__name__)

# Codes of failures that say that the server does not respond at all.
_DOWN: Final = frozenset({"upstream_unreachable", "upstream_timeout"})


class ServerWatcher(Protocol):
    """Learns whether the server responds: an `UpstreamEngine`."""

    def saw(self, *, is_up: bool) -> None:
        """A request has shown whether the server responds."""


@final
class RequestSender:
    """Sends requests to one server.

    Args:
        client: Sends them.
        base_url: The server's URL, without `/chat/completions`.
        watcher: Learns whether the server responds.
    """

    def __init__(self, client: HttpClient, base_url: Url, watcher: ServerWatcher) -> None:
        self._client = client
        self._base_url = base_url
        self._watcher = watcher

    async def send(self, path: str, fields: Mapping[str, object], schedule: RetrySchedule) -> HttpResponse:
        """Send a request until a status comes.

        Args:
            path: Below the base URL.
            fields: The body.
            schedule: Decides whether the request is sent again.

        Raises:
            EngineError: None came, or one with headers that break HTTP.
        """
        content = _encode(fields)
        while True:
            try:
                response = await self._send(path, content)
            except HttpError as error:
                logger.warning("no response from the upstream server: %s", error)
                failure = _no_response(error)
            else:
                self._watcher.saw(is_up=True)
                return response
            if failure.code in _DOWN:
                self._watcher.saw(is_up=False)
            await wait_or_raise(schedule.after_no_response() if failure.retryable else None, failure)

    async def _send(self, path: str, content: bytes) -> HttpResponse:
        headers = {"Content-Type": "application/json"}
        if path != "chat/completions":
            headers["Accept"] = "application/json"
        return await self._client.send("POST", self._base_url.join(path), headers=headers, content=content)


async def wait_or_raise(delay: float | None, failure: EngineError) -> None:
    """Wait before a request is sent again.

    Args:
        delay: Seconds to wait. None: it is not sent again.
        failure: Why the last attempt failed.

    Raises:
        EngineError: The failure.
    """
    if delay is None:
        logger.warning("%s", failure)
        raise failure
    logger.info("retrying in %.1f s after %s", delay, failure)
    await trio.sleep(delay)


def _encode(fields: Mapping[str, object]) -> bytes:
    """The body of a request. It exists until the server answers, so it should not be larger than the request."""
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:  # half a character, which only an escape can hold
        return json.dumps(fields).encode()


def _no_response(error: HttpError) -> EngineError:
    match error:
        case ConnectTimeoutError():
            message = "The connection to the upstream server timed out."
            return EngineError("upstream_timeout", message, retryable=True)
        case ConnectFailedError():
            return EngineError("upstream_unreachable", "The upstream server is unreachable.", retryable=True)
        case InvalidResponseError():
            message = "The upstream server's response is not valid HTTP."
            if error.has_status:
                return EngineError("upstream_invalid_response", message)
            return EngineError("upstream_ended_early", message, retryable=True)
        case _:
            message = "The upstream server closed the connection without a response."
            return EngineError("upstream_ended_early", message, retryable=True)
