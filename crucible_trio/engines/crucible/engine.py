"""An engine that relays the streams of another crucible_trio, which it reads over the native API.

The client of this package reads the upstream: after a cut it resumes behind the last record. So a cut between the two
servers costs nothing. Easy to get wrong:

* Every generation has one idempotency key. A start whose answer is lost is repeated with it, and joins its stream.
* The upstream's stream pauses while it has no reader. Otherwise it would run ahead of a slow client during a cut, and
  would run to its end when this process dies.
* The upstream accepts a request before its model does. So `Output.accepted` is not called, and a client that waits for
  a status learns of the model's refusal too.
* Leaving a stream does not stop it. A stream that ends here before it ends there is cancelled there.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Final, final

import msgspec
import trio

from crucible_trio.client import Client, ClientStream, open_client
from crucible_trio.client.attempts import RETRY_SECONDS
from crucible_trio.engine import Capabilities, EngineInfo, Finish
from crucible_trio.engines.crucible.models import EVERYTHING, ask_for_models
from crucible_trio.engines.crucible.relay import RecordRelay, finish_of
from crucible_trio.engines.upstream.discovery import check_key, parse_base_url
from crucible_trio.engines.upstream.failures import to_engine_error
from crucible_trio.engines.watching import discover_at_start
from crucible_trio.errors import (
    CrucibleError,
    EngineError,
    ServerRefusedError,
    StreamExpiredError,
    StreamLostError,
    StreamNotFoundError,
)
from crucible_trio.output import Output
from crucible_trio.request import Request

logger = logging.getLogger(__name__)

# Failures in a row after which an upstream's stream is lost: at least 63 s, at most 95. Longer than a restart of a load
# balancer, and shorter than the default `idle` deadline: a dead upstream should end the stream as failed.
MAX_ATTEMPTS: Final = 7

# Seconds that an upstream's stream waits for this engine. They outlast the attempts, and the time for which a stream of
# this server waits for its own reader while the engine reads nothing.
GRACE_SECONDS: Final = 300.0
# By how much the upstream waits longer than a request asks this server to wait.
_GRACE_MARGIN: Final = 180.0

# Seconds spent on telling the upstream that its stream is no longer wanted. After that its grace period ends it.
CANCEL_SECONDS: Final = 2.0


@asynccontextmanager
async def open_crucible_upstream(
    base_url: str,
    *,
    name: str = "upstream",
    model: str | None = None,
    models: Sequence[str] = (),
    must_be_up: bool = True,
    key: str | None = None,
    capabilities: Capabilities = EVERYTHING,
    retry_seconds: float = RETRY_SECONDS,
    max_attempts: int = MAX_ATTEMPTS,
) -> AsyncIterator[CrucibleEngine]:
    """Open an engine that relays the streams of another crucible_trio. Its connections close with the context.

    Args:
        base_url: Such as `http://127.0.0.1:8000`. It may end with `/v1`, like the URL of an OpenAI-compatible server.
        name: Of the engine, for logs and metrics.
        model: The only model, in place of `models`.
        models: Names of models on the server, which is then not asked and need not be up yet. None given: ask the
            server for its models and their capabilities. The first one is the default.
        must_be_up: Without names of models, ask for them now. False: the engine has none until `discover` is called.
        key: Sent as `Authorization: Bearer`.
        capabilities: The most that a model may have.
        retry_seconds: The first delay after a cut, until the server sets another one.
        max_attempts: Failures in a row after which a stream is lost.

    Raises:
        ConfigError: The URL or the key is invalid, or the server does not list a model.
    """
    shown = str(parse_base_url(base_url).without_query())
    native_url = shown.rstrip("/").removesuffix("/v1")
    if key is not None:
        check_key(key)
    async with open_client(native_url, key=key, retry_seconds=retry_seconds, max_attempts=max_attempts) as client:
        named = tuple(models) if model is None else (model,)
        info = EngineInfo(name=name, models=named, capabilities=capabilities, waits_for_upstream=True)
        engine = CrucibleEngine(client, info, shown)
        if must_be_up and not named:
            await discover_at_start(engine)
        if engine.info.models:
            logger.info("engine %s: upstream server %s, default model %s", name, shown, engine.info.models[0])
        yield engine


@final
class CrucibleEngine:
    """Relays the streams of another crucible_trio. Made by `open_crucible_upstream`.

    Args:
        client: Of the server.
        info: Its models. Without models, the server is asked for them.
        shown: The server's URL, for messages.

    Attributes:
        info: The engine's models and their capabilities, and whether the server responds.
        skipped_fields: Records of unknown types in the server's streams, since the start.
    """

    def __init__(self, client: Client, info: EngineInfo, shown: str) -> None:
        self.info = info
        self._shown = shown
        self._asks_for_models = not info.models
        self.skipped_fields = 0
        self._client = client
        self._may_ask_for_grace = True

    async def discover(self) -> None:
        """Ask the server for its models, and declare in `info` what it says (`DiscoversModels`).

        If the models were named when the engine was opened, this only finds out whether the server responds.

        Raises:
            EngineError: The server does not respond, or has no list of models. The engine keeps the models that it has.
        """
        try:
            listed = await ask_for_models(self._client, self._shown)
        except EngineError as error:
            if self._asks_for_models or error.status is None or error.status >= 500:
                self._saw(is_up=False)
                raise
        else:
            if self._asks_for_models:
                by_model = {model: can & self.info.capabilities for model, can in listed.items()}
                self.info = replace(self.info, models=tuple(by_model), by_model=by_model)
        self._saw(is_up=True)

    def _saw(self, *, is_up: bool) -> None:
        if self.info.is_up is not is_up:
            self.info = replace(self.info, is_up=is_up)

    async def generate(self, request: Request, output: Output) -> Finish:
        """Start the stream on the server and relay its records.

        Cancellation: cancels the server's stream, for which the call takes at most 2 s.

        Raises:
            EngineError: The server's stream failed, with its code. Or it could not be read to its end, with a code of
                `engines/upstream/engine.py`.
        """
        try:
            try:
                return await self._generate(request, output)
            except ServerRefusedError as refusal:
                if refusal.param != "grace_seconds" or not self._may_ask_for_grace:
                    raise
                logger.warning("the upstream server refuses grace_seconds, and gets its own from now on")
                self._may_ask_for_grace = False
            return await self._generate(request, output)
        except ServerRefusedError as refusal:
            raise _refused(refusal) from refusal

    async def _generate(self, request: Request, output: Output) -> Finish:
        asked = self._for_upstream(request)
        key = secrets.token_urlsafe(16)
        # With another engine left, an unreachable server is not waited for.
        max_first_attempts = 1 if output.has_fallback else None
        stream = self._client.start(
            asked,
            idempotency_key=key,
            repeats_refused=not (output.client_retries or output.has_fallback),
            max_first_attempts=max_first_attempts,
        )
        relay = RecordRelay(output)
        is_over = False  # on the server
        try:
            async with stream:
                self._saw(is_up=True)
                await relay.run(stream)
            is_over = True
        except StreamLostError as error:
            is_over = True  # or out of reach
            if not stream.last_seq:
                self._saw(is_up=False)
            logger.warning("the upstream server's stream is lost after record %d", error.last_seq)
            raise _lost(stream) from error
        except (StreamNotFoundError, StreamExpiredError) as error:
            is_over = True
            message = "The upstream server no longer has the stream."
            raise EngineError("upstream_ended_early", message, retryable=True) from error
        except ServerRefusedError:
            is_over = True
            raise
        finally:
            self.skipped_fields += relay.skipped
            if not is_over:
                await self._cancel(stream, asked, key)
        return finish_of(stream.terminal)

    def _for_upstream(self, request: Request) -> Request:
        grace = None
        if self._may_ask_for_grace:
            grace = max(GRACE_SECONDS, (request.grace_seconds or 0.0) + _GRACE_MARGIN)
        return msgspec.structs.replace(request, trace="segments", on_disconnect="pause", grace_seconds=grace)

    async def _cancel(self, stream: ClientStream, asked: Request, key: str) -> None:
        with trio.move_on_after(CANCEL_SECONDS, shield=True), suppress(CrucibleError):
            if stream.last_seq:
                await stream.cancel()
                return
            # The server may have the request, and only its answer is missing. The key finds the stream.
            async with self._client.start(asked, idempotency_key=key) as joined:
                await joined.cancel()


def _lost(stream: ClientStream) -> EngineError:
    if stream.last_seq == 0:
        return EngineError("upstream_unreachable", "The upstream server is unreachable.", retryable=True)
    message = "The connection to the upstream server was lost, and the stream could not be resumed."
    return EngineError("upstream_ended_early", message, retryable=True)


def _refused(refusal: ServerRefusedError) -> EngineError:
    words = {"code": refusal.code, "message": refusal.message, "param": refusal.param}
    return to_engine_error(refusal.status, words, retry_after=refusal.retry_after)
