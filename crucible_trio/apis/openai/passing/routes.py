"""The routes of requests that go on to an upstream: `POST /v1/embeddings` and `POST /v1/completions`.

No header of the client goes on, and none of the upstream's comes back. Nothing is recorded, so there is no stream.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, final

import trio
from quart import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from crucible_trio.apis.kit.bodies import read_body
from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.parsing import check_parameters
from crucible_trio.apis.kit.replies import encoded_json_response, error_response
from crucible_trio.apis.openai.errors import OPENAI_ERRORS, answer_to_deadline, answer_to_failure
from crucible_trio.apis.openai.passing.requests import read_request
from crucible_trio.engine import PassedPath, PassesOn, passing_engines
from crucible_trio.errors import DrainingError, EngineError
from crucible_trio.recorder import bounded_error

logger = logging.getLogger(__name__)

# Answers are kept whole in memory. Further requests wait, and their deadline counts that.
_AT_A_TIME: Final = 64


@final
class PassingApi:
    """The APIs that are passed on, over one pipeline (`Api`)."""

    name: ClassVar[str] = "openai_passing"
    error_shape: ClassVar[ErrorShape | None] = OPENAI_ERRORS
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/completions", "/v1/embeddings")
    open_endpoints: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access
        self._limiter = trio.CapacityLimiter(_AT_A_TIME)
        self._builder = context.request_builder()

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        blueprint.add_url_rule("/v1/completions", view_func=self.completions, methods=["POST"])
        blueprint.add_url_rule("/v1/embeddings", view_func=self.embeddings, methods=["POST"])

    async def completions(self) -> Response:
        """`POST /v1/completions`: a text that the upstream continues."""
        return await self._pass_on("completions")

    async def embeddings(self) -> Response:
        """`POST /v1/embeddings`: vectors that the upstream makes of texts."""
        return await self._pass_on("embeddings")

    async def _pass_on(self, path: PassedPath) -> Response:
        self._access.owner(request)
        check_parameters(request)
        model, fields = await read_body(request, self._context, lambda body: read_request(body, self._builder))
        engines = passing_engines(self._pipeline.engine, model)
        if not engines:
            raise NotFound
        if self._pipeline.draining:
            raise DrainingError
        content = None
        try:
            with trio.move_on_after(self._pipeline.settings.total_seconds):
                async with self._limiter:
                    content = await _ask_in_turn(engines, path, fields)
        except EngineError as error:
            logger.warning("%s are not passed on: %s", path, error)
            return error_response(answer_to_failure(bounded_error(error), repeatable=True), OPENAI_ERRORS)
        if content is None:
            return error_response(answer_to_deadline("total_deadline"), OPENAI_ERRORS)
        return encoded_json_response(content)


async def _ask_in_turn(engines: Sequence[PassesOn], path: PassedPath, fields: Mapping[str, object]) -> bytes:
    """The answer of the first engine that does not fail.

    Raises:
        EngineError: The failure of the last one, or one that blames the request.
    """
    *others, last = engines
    for engine in others:
        try:
            return await engine.pass_on(path, fields, has_fallback=True)
        except EngineError as error:
            if error.blames_request:
                raise
            logger.warning("%s are not passed on, asking the next upstream: %s", path, error)
    return await last.pass_on(path, fields)
