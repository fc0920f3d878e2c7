"""The application: all APIs over one pipeline, as a Quart application or as a blueprint for another one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Final, cast

import trio
from quart import Blueprint, Request, Response, has_request_context
from quart.blueprints import BlueprintSetupState
from quart.globals import request_ctx
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from werkzeug.exceptions import HTTPException

from crucible_trio.apis.anthropic.routes import MessagesApi
from crucible_trio.apis.kit.access import Access
from crucible_trio.apis.kit.bodies import drop_body
from crucible_trio.apis.kit.context import ApiContext, Workers
from crucible_trio.apis.kit.downloads import Downloads, limit_body
from crucible_trio.apis.kit.errors import answer_to
from crucible_trio.apis.kit.registration import Api, ApiRegistry
from crucible_trio.apis.kit.replies import error_response, http_error_response
from crucible_trio.apis.kit.uploads import Uploads
from crucible_trio.apis.native.errors import NATIVE_ERRORS
from crucible_trio.apis.native.routes import NativeApi
from crucible_trio.apis.openai.chat.routes import ChatApi
from crucible_trio.apis.openai.models.routes import ModelsApi
from crucible_trio.apis.openai.passing.routes import PassingApi
from crucible_trio.apis.openai.responses.routes import ResponsesApi
from crucible_trio.apis.operations.routes import OperationsApi
from crucible_trio.apis.page.routes import PageApi
from crucible_trio.apis.ui.routes import UIApi
from crucible_trio.engines import open_engine
from crucible_trio.errors import OverloadedError
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.settings import ApiSettings, ServiceSettings, load_settings
from crucible_trio.settings.apis import ApiName
from crucible_trio.web.connection import QuartConnection

APIS: Final = ApiRegistry(
    (
        NativeApi,
        OperationsApi,
        PageApi,
        ChatApi,
        ResponsesApi,
        MessagesApi,
        PassingApi,
        ModelsApi,
        UIApi,
    ),
    default_shape=NATIVE_ERRORS,
)
"""The APIs of every application. A new API is added here."""

_OPTIONAL: Final[Mapping[ApiName, tuple[type[Api], ...]]] = {
    "openai": (ChatApi, ResponsesApi, PassingApi),
    "anthropic": (MessagesApi,),
    "ui": (UIApi,),
    "page": (PageApi,),
}


def create_app(
    pipeline: Pipeline | None = None, settings: ApiSettings | None = None, workers: Workers | None = None
) -> QuartTrio:
    """Make the whole application.

    Args:
        pipeline: An open pipeline. The application neither starts nor ends it. None: all settings come from the
            environment (`CRUCIBLE_...`), and the application runs its pipeline while it is served.
        settings: The settings of the APIs. The default settings if `pipeline` is given without them.
        workers: The processes that serve together with this one, for `/metrics`.

    Raises:
        ConfigError: The environment is wrong.
    """
    app = QuartTrio(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # `/v1//streams` is an unknown path, and must not redirect
    if pipeline is not None:
        settings = settings or ApiSettings()
        app.register_blueprint(blueprint(pipeline, settings, workers))
    else:
        service = load_settings(os.environ)
        settings = settings or service.apis
        _run_own_pipeline(app, service, settings)
    app.register_error_handler(HTTPException, partial(_answer_unknown_path, _apis_of(settings)))
    # Quart keeps a request's body in memory until it is read or the response begins.
    app.config["MAX_CONTENT_LENGTH"] = settings.max_request_bytes
    return app


def _apis_of(settings: ApiSettings) -> ApiRegistry:
    return APIS.without([api for name, apis in _OPTIONAL.items() if name not in settings.apis for api in apis])


async def _answer_unknown_path(apis: ApiRegistry, error: HTTPException) -> Response:
    # A coroutine function, because Quart would run a plain function in a thread. A WebSocket has no request context.
    path = request_ctx.request.path if has_request_context() else ""
    return http_error_response(error, apis.error_shape(path))


def _run_own_pipeline(app: QuartTrio, service: ServiceSettings, settings: ApiSettings) -> None:
    over = trio.Event()

    async def run(*, task_status: trio.TaskStatus[Pipeline]) -> None:
        async with open_engine(service.engine) as engine, open_pipeline(engine, service.pipeline) as pipeline:
            task_status.started(pipeline)
            await over.wait()

    @app.before_serving
    async def start() -> None:
        app.register_blueprint(blueprint(await app.nursery.start(run), settings))

    @app.after_serving
    async def end() -> None:
        over.set()


def blueprint(pipeline: Pipeline, settings: ApiSettings | None = None, workers: Workers | None = None) -> Blueprint:
    """Make a blueprint of all APIs, for any quart-trio application.

    It replaces the application's connection class if that is quart-trio's own (see `web/connection.py`). For paths that
    match no route, 404 and 405 remain the application's.

    Args:
        pipeline: An open pipeline. The blueprint neither starts nor ends it.
        settings: The settings of the APIs.
        workers: The processes that serve together with this one, for `/metrics`.

    Raises:
        ConfigError: `openai_models` names a model that the engine does not have.
    """
    settings = settings or ApiSettings()
    access = Access(settings)
    uploads = Uploads(settings.total_request_bytes, pipeline.metrics)
    downloads = Downloads(settings.total_request_bytes, pipeline.metrics)
    root = Blueprint("crucible", __name__)
    apis = _apis_of(settings)
    apis.add_to(root, ApiContext(pipeline, settings, access, uploads, downloads, workers))

    @root.record_once
    def correct_connection(state: BlueprintSetupState) -> None:
        app = cast("QuartTrio", state.app)
        if app.asgi_http_class is TrioASGIHTTPConnection:
            app.asgi_http_class = QuartConnection

    @root.before_request
    async def guard() -> Response | None:
        request = request_ctx.request  # not Quart's proxy, which looks the request up at every use
        if apis.is_open(request.endpoint):
            return None
        access.check_origin(request)
        return access.preflight(request) if request.method == "OPTIONS" else None

    @root.after_request
    async def finish(response: Response) -> Response:
        request = request_ctx.request
        drop_body(request)
        try:
            limit_body(response, downloads, can_refuse=_can_ask_again(request, response))
        except OverloadedError as error:
            shape = apis.error_shape(request.path)
            answer = answer_to(error, shape)
            pipeline.metrics.refused[answer.code] += 1
            response = error_response(answer, shape)
        access.add_cors(request, response)
        return response

    return root


def _can_ask_again(request: Request, response: Response) -> bool:
    """Whether the client can repeat its request, and no model works for it once more."""
    is_replayed = "Crucible-Replayed" in response.headers
    return request.method != "POST" or is_replayed or request.path.endswith("/cancel")
