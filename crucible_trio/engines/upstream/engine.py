"""An engine that passes on what an OpenAI-compatible server streams: vLLM, llama.cpp, Ollama, OpenAI.

What is easy to get wrong:

* Silence is no failure. How long a model may think is for the stream's deadlines to say, so only connecting has a
  time-out here.
* A second try may only replace a first one that gave nothing: once the server has answered with a stream, never.

The codes a stream can fail with, and whether trying again may help:

=========================== =====================================================================================
`upstream_unreachable`      no connection; yes
`upstream_timeout`          connecting took too long; yes
`upstream_refused`          status 429 or 503; yes
`upstream_rejected`         another status below 500, such as a wrong key or too long a prompt; no
`upstream_error`            status 5xx, or a failure that the server reported inside its stream; yes (no, if the
                            report says that it is the request's fault: `upstream_rejected`)
`upstream_ended_early`      the connection or the body ended before the model did; yes
`upstream_rubbish`          what came is no stream of chat completion chunks; no
=========================== =====================================================================================
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal, final

import httpx
import msgspec
import trio

from crucible_trio.engine import EngineInfo, Finish, Request
from crucible_trio.engines.upstream.response import open_body, pass_on, read_refusal
from crucible_trio.errors import ConfigError, EngineError
from crucible_trio.httpx_bodies import RequestContent
from crucible_trio.output import Output
from crucible_trio.records import Mode

logger = logging.getLogger(__name__)

# The host of an upstream answers a connection in milliseconds; what takes this long is down or filtered.
CONNECT_TIMEOUT: Final = 10.0
# For the list of models, asked for at start, where no stream's deadlines hold.
LIST_TIMEOUT: Final = 10.0

# Seconds before the second and the third try; there is no fourth. Together they outlast a dropped connection or the
# switch of a load balancer; a restart takes longer, and then the client is better told than kept waiting. Up to half of
# each is taken off by chance, so that many streams that failed together do not return together.
RETRY_DELAYS: Final = (0.5, 2.0)
# A longer Retry-After is the client's to wait: it can show it, and give up.
MAX_RETRY_AFTER: Final = 10.0
_RETRIED_STATUS: Final = frozenset({429, 503})

# Connections kept open between two streams: saves a handshake, and holds few of the upstream's places.
MAX_IDLE_CONNECTIONS: Final = 20

# What makes servers with Jinja templates (vLLM, llama.cpp, SGLang) think or not. Others need their own words.
THINKING: Final[Mapping[Mode, Mapping[str, object]]] = {
    "standard": {"chat_template_kwargs": {"enable_thinking": False}},
    "deep": {"chat_template_kwargs": {"enable_thinking": True}},
}

LimitField = Literal["max_tokens", "max_completion_tokens"]


@asynccontextmanager
async def open_upstream(
    base_url: str,
    *,
    model: str | None = None,
    key: str | None = None,
    thinking: Mapping[Mode, Mapping[str, object]] = THINKING,
    extra_body: Mapping[str, object] | None = None,
    limit_field: LimitField = "max_tokens",
) -> AsyncIterator[UpstreamEngine]:
    """Open an engine on a server; its connections close with the context.

    Args:
        base_url: What comes before `/chat/completions`, such as `http://127.0.0.1:8080/v1`.
        model: The model's name there; the server is then not asked and need not be up yet. None: the server is asked
            for its models, and the first one it lists is the default.
        key: Sent as `Authorization: Bearer`.
        thinking: Per mode, fields for the request's body that make the server think, or not.
        extra_body: Fields for every request's body. `thinking` and what a request sets win over them.
        limit_field: The field for `max_output_tokens`; OpenAI's own reasoning models want `max_completion_tokens`.

    Raises:
        ConfigError: The URL or the key cannot be used, or the server does not list a model.
    """
    url = _parse_base_url(base_url)
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}  # compressing holds tokens back
    if key is not None:
        headers["Authorization"] = f"Bearer {_check_key(key)}"
    async with httpx.AsyncClient(
        headers=headers,
        # No read time-out, and nobody waits for a connection: how many streams there are is the pipeline's to limit.
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=MAX_IDLE_CONNECTIONS),
    ) as client:
        models = (model,) if model is not None else await _list_models(client, _join(url, "models"))
        info = EngineInfo(name="upstream", models=models, sampling=frozenset({"temperature", "top_p", "seed", "stop"}))
        logger.info("upstream %s, default model %s", _without_query(url), models[0])
        yield UpstreamEngine(
            client,
            _join(url, "chat/completions"),
            info,
            thinking=thinking,
            extra_body=extra_body or {},
            limit_field=limit_field,
        )


@final
class UpstreamEngine:
    """Made by `open_upstream`.

    Attributes:
        info: What the engine can do.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: httpx.URL,
        info: EngineInfo,
        *,
        thinking: Mapping[Mode, Mapping[str, object]],
        extra_body: Mapping[str, object],
        limit_field: LimitField,
    ) -> None:
        self.info = info
        self._client = client
        self._url = url
        self._thinking = thinking
        self._extra_body = extra_body
        self._limit_field = limit_field

    async def generate(self, request: Request, output: Output) -> Finish:
        """Ask the server and pass on what it streams.

        Cancellation: closes the connection to the server, which frees its slot.

        Raises:
            EngineError: With one of this module's codes.
        """
        content = json.dumps(self._body(request)).encode()
        delays = iter(RETRY_DELAYS)
        while True:
            delay = next(delays, None)
            busy = False
            try:
                response = await self._send(content)
            except httpx.RequestError as error:
                logger.warning("no answer from the upstream: %s", _explain(error))
                failure, wait = _no_answer(error), _with_chance(delay)
            else:
                async with open_body(response) as body:
                    if response.is_success:
                        return await pass_on(body, output)
                    failure = await read_refusal(response, body)
                wait, busy = _wait_before_retry(response, delay), True
            if wait is None:
                logger.warning("%s", failure)
                raise failure
            logger.info("%s trying again in %.1f s", failure, wait)
            # A server without room is one more place to wait for a model in; one that cannot be reached is not.
            async with output.queued() if busy else nullcontext():
                await trio.sleep(wait)

    def _body(self, request: Request) -> dict[str, object]:
        sampling = {name: getattr(request.sampling, name) for name in sorted(request.sampling.given)}
        limit: dict[str, object] = {}
        if request.max_output_tokens is not None:
            limit[self._limit_field] = request.max_output_tokens
        return {
            **self._extra_body,
            **self._thinking.get(request.mode, {}),
            **sampling,
            **limit,
            "model": request.model or self.info.models[0],
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    async def _send(self, content: bytes) -> httpx.Response:
        request = self._client.build_request(
            "POST", self._url, content=content, headers={"Content-Type": "application/json"}
        )
        request.stream = RequestContent(content)
        return await self._client.send(request, stream=True)


def _no_answer(error: httpx.RequestError) -> EngineError:
    match error:
        case httpx.ConnectTimeout():
            return EngineError("upstream_timeout", "The upstream server took too long to answer.", retryable=True)
        case httpx.ConnectError() | httpx.ProxyError():
            return EngineError("upstream_unreachable", "The upstream server cannot be reached.", retryable=True)
        case _:
            message = "The upstream server broke the connection before it answered."
            return EngineError("upstream_ended_early", message, retryable=True)


def _explain(error: httpx.RequestError) -> str:
    """For the log: which kind of error, and for a failed connection what is at its root, such as a certificate."""
    root: BaseException = error
    if isinstance(error, httpx.ConnectError):  # others may quote what the server sent, and that can be anything
        while (cause := root.__cause__ or root.__context__) is not None:
            root = cause
        if isinstance(root, BaseExceptionGroup):  # one for each of the host's addresses
            root = root.exceptions[0]
    return type(root).__name__ if root is error else f"{type(error).__name__}, {root}"


def _wait_before_retry(response: httpx.Response, delay: float | None) -> float | None:
    """Seconds until the next try; None for none."""
    if response.status_code not in _RETRIED_STATUS or delay is None:
        return None
    asked = _parse_retry_after(response.headers.get("Retry-After", ""))
    if asked is None:
        return _with_chance(delay)
    return asked if asked <= MAX_RETRY_AFTER else None


def _parse_retry_after(value: str) -> float | None:
    """Seconds, from a number of them or a date; None for anything else."""
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _with_chance(delay: float | None) -> float | None:
    return None if delay is None else delay * random.uniform(0.5, 1.0)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def _list_models(client: httpx.AsyncClient, url: httpx.URL) -> tuple[str, ...]:
    shown = _without_query(url)
    hint = "check the base URL, or name the model with --model"
    try:
        response = await client.get(url, headers={"Accept": "application/json"}, timeout=LIST_TIMEOUT)
    except httpx.RequestError as error:
        message = f"cannot ask {shown} for its models ({type(error).__name__}): start the server, or {hint}"
        raise ConfigError(message) from error
    if not response.is_success:
        message = f"{shown} answered with status {response.status_code} instead of its models: {hint}"
        raise ConfigError(message)
    try:
        models = tuple(model.id for model in msgspec.json.decode(response.content, type=_Models).data)
    except (ValueError, RecursionError) as error:
        message = f"{shown} answered with something that is no list of models: {hint}"
        raise ConfigError(message) from error
    if not models:
        message = f"{shown} lists no models: {hint}"
        raise ConfigError(message)
    return models


def _parse_base_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        # httpx logs URLs: a password has no place there. The message does not quote it either.
        message = "the base URL of the upstream must look like http://127.0.0.1:8080/v1, without a user or password"
        raise ConfigError(message)
    return url


def _join(base: httpx.URL, path: str) -> httpx.URL:
    return base.copy_with(path=f"{base.path.rstrip('/')}/{path}")  # keeps a query such as ?api-version=


def _without_query(url: httpx.URL) -> str:
    return str(url.copy_with(query=None, fragment=None))


def _check_key(key: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        message = "the upstream's key is empty or holds a character that no header can carry"  # never quotes a key
        raise ConfigError(message)
    return key
