"""The Quart side: an application of its own, or a blueprint for another one."""

from __future__ import annotations

import os
from typing import Final, cast

import trio
from quart import Blueprint, Response, has_request_context, request
from quart.blueprints import BlueprintSetupState
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException

from crucible_trio.config import Settings, load_settings
from crucible_trio.engines import open_engine
from crucible_trio.errors import CrucibleError
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.web import openai
from crucible_trio.web.access import Access
from crucible_trio.web.connection import Connection
from crucible_trio.web.errors import answer_to, error_response, http_error_response
from crucible_trio.web.native import NativeApi
from crucible_trio.web.page import add_page
from crucible_trio.web.service import ServiceApi

# Served to any page, and under any host name: orchestrators ask by address, and people follow links to the demo page.
# Nothing here starts, stops or reads a stream.
_OPEN: Final = frozenset({"healthz", "readyz", "page", "page_file"})


def create_app(pipeline: Pipeline | None = None) -> QuartTrio:
    """The whole application.

    Args:
        pipeline: An open one, which this neither starts nor ends. None: engine and limits come from the environment
            (`CRUCIBLE_...`), and the application runs a pipeline of its own while it is served.

    Raises:
        ConfigError: The environment is wrong.
    """
    app = QuartTrio(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # `/v1//streams` is no path of ours, and no redirect either
    app.register_error_handler(HTTPException, _no_route)
    settings = load_settings(os.environ) if pipeline is None else pipeline.settings
    # Quart keeps a body in memory also where nobody reads it: for as long as a stream lasts.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    if pipeline is not None:
        app.register_blueprint(blueprint(pipeline))
    else:
        _run_own_pipeline(app, settings)
    return app


async def _no_route(error: HTTPException) -> Response:
    # A coroutine function, because Quart would run a plain one in a thread.
    is_openai = has_request_context() and openai.is_openai_path(request.path)  # a WebSocket has another context
    shape = openai.http_error_response if is_openai else http_error_response
    return await shape(error)


def _run_own_pipeline(app: QuartTrio, settings: Settings) -> None:
    over = trio.Event()

    async def run(*, task_status: trio.TaskStatus[Pipeline]) -> None:
        async with open_engine(settings) as engine, open_pipeline(engine, settings) as pipeline:
            task_status.started(pipeline)
            await over.wait()

    @app.before_serving
    async def start() -> None:
        app.register_blueprint(blueprint(await app.nursery.start(run)))

    @app.after_serving
    async def end() -> None:
        over.set()


def blueprint(pipeline: Pipeline) -> Blueprint:
    """The API as a blueprint for any quart-trio application.

    It corrects the application's connection class (see `web/connection.py`) if that is quart-trio's own. 404 and 405
    for paths that are no route of ours remain the application's.

    Args:
        pipeline: An open one, which this neither starts nor ends.
    """
    access = Access(pipeline.settings)
    api = Blueprint("crucible", __name__)
    NativeApi(pipeline, access).add_to(api)
    ServiceApi(pipeline, access).add_to(api)
    add_page(api)
    api.register_blueprint(openai.openai_blueprint(pipeline, access))

    @api.record_once
    def correct_connection(state: BlueprintSetupState) -> None:
        app = cast("QuartTrio", state.app)
        if app.asgi_http_class is TrioASGIHTTPConnection:
            app.asgi_http_class = Connection

    @api.before_request
    async def guard() -> Response | None:
        if (request.endpoint or "").rpartition(".")[2] in _OPEN:  # under whatever name it is registered
            return None
        access.check_origin(request)
        return access.preflight(request) if request.method == "OPTIONS" else None

    @api.after_request
    async def add_cors(response: Response) -> Response:
        access.add_cors(request, response)
        return response

    @api.errorhandler(CrucibleError)
    async def refuse(error: CrucibleError) -> Response:
        pipeline.metrics.refused.labels(answer_to(error).code).inc()
        return error_response(error)

    api.register_error_handler(HTTPException, http_error_response)
    return api
