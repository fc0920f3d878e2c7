"""All routes that speak OpenAI's language, and the form of their errors."""

from __future__ import annotations

import re
from typing import Final

from quart import Blueprint, Response
from werkzeug.exceptions import HTTPException

from crucible_trio.errors import CrucibleError
from crucible_trio.pipeline import Pipeline
from crucible_trio.web.access import Access
from crucible_trio.web.openai.asks import Asks
from crucible_trio.web.openai.chat import ChatApi
from crucible_trio.web.openai.errors import answer_to, error_response, http_error_response
from crucible_trio.web.openai.models import ModelsApi
from crucible_trio.web.openai.responses import ResponsesApi

__all__ = ["http_error_response", "is_openai_path", "openai_blueprint"]

_PATHS: Final = re.compile(r"/v1/(?:(?:chat|responses)(?:/|$)|models/.)")


def openai_blueprint(pipeline: Pipeline, access: Access) -> Blueprint:
    """The routes, to be nested in the native API's blueprint: that one's rules hold here, its form of errors does not.

    Args:
        pipeline: An open one.
        access: The rules.

    Raises:
        ConfigError: `openai_models` names a model that the engine does not have.
    """
    api = Blueprint("openai", __name__)
    asks = Asks(pipeline.engine.info, pipeline.settings)
    ChatApi(pipeline, access, asks).add_to(api)
    ResponsesApi(pipeline, access, asks).add_to(api)
    ModelsApi(pipeline, access, asks).add_to(api)

    @api.errorhandler(CrucibleError)
    async def refuse(error: CrucibleError) -> Response:
        pipeline.metrics.refused.labels(answer_to(error).code).inc()
        return error_response(error)

    api.register_error_handler(HTTPException, http_error_response)
    return api


def is_openai_path(path: str) -> bool:
    """Whether a path that is no route, or has no such method, is meant for these APIs."""
    return _PATHS.match(path) is not None
