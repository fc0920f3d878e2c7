"""How an API is added to an application.

`crucible_trio.web.app` lists one `Api` class for each API. Each becomes a blueprint that is nested in the
application's, so endpoints of two APIs may have the same name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar, Final, Protocol, final

from quart import Blueprint, Response, request, url_for
from werkzeug.exceptions import HTTPException

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape, answer_to
from crucible_trio.apis.kit.replies import error_response, http_error_response
from crucible_trio.errors import CrucibleError
from crucible_trio.metrics import Metrics

STREAM_BLUEPRINT: Final = "native"
STREAM_ENDPOINT: Final = "show_stream"
"""The endpoint of the native API that shows a stream. Every API names it in `Location`."""


class Api(Protocol):
    """The routes of one API.

    Attributes:
        name: The name of its blueprint. Unique in the application.
        error_shape: How it writes errors. None for the application's default.
        path_prefixes: Where its paths are. A path below a prefix that matches no route, or has no such method, is
            answered in `error_shape`. `/v1/chat` covers this path and all below it, `/v1/models/` only those below it.
            The longest prefix of all APIs counts.
        open_endpoints: Endpoints that answer any page, under any host name and without CORS preflight. They must not
            start, stop or read a stream.

    An API may also have a `models_form` (`HasModelsForm`).
    """

    name: ClassVar[str]
    error_shape: ClassVar[ErrorShape | None]
    path_prefixes: ClassVar[tuple[str, ...]]
    open_endpoints: ClassVar[frozenset[str]]

    def __init__(self, context: ApiContext) -> None:
        """Make the API.

        Raises:
            ConfigError: A setting of this API is wrong.
        """

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes to the API's blueprint. Every handler is a coroutine function: Quart runs others in a thread.

        Quart adds HEAD to every GET.
        """


@final
class ApiRegistry:
    """The APIs of an application.

    Args:
        apis: One class for each API.
        default_shape: The error shape of paths that belong to no API, and of APIs without an error shape.
    """

    def __init__(self, apis: tuple[type[Api], ...], *, default_shape: ErrorShape) -> None:
        self._apis = apis
        self._default_shape = default_shape
        self._open = frozenset(f"{api.name}.{endpoint}" for api in apis for endpoint in api.open_endpoints)

    def add_to(self, blueprint: Blueprint, context: ApiContext) -> None:
        """Add all APIs.

        Raises:
            ConfigError: A setting of one of them is wrong.
        """
        forms = tuple(api.models_form for api in self._apis if hasattr(api, "models_form"))
        context = replace(context, models_forms=forms)
        for api in self._apis:
            nested = Blueprint(api.name, __name__)
            api(context).add_to(nested)
            handlers = _ErrorHandlers(api.error_shape or self._default_shape, context.pipeline.metrics)
            nested.register_error_handler(CrucibleError, handlers.refuse)
            nested.register_error_handler(HTTPException, handlers.answer_http_error)
            blueprint.register_blueprint(nested)

    def without(self, apis: Collection[type[Api]]) -> ApiRegistry:
        """A copy that lacks some of the APIs."""
        kept = tuple(api for api in self._apis if api not in apis)
        return ApiRegistry(kept, default_shape=self._default_shape)

    def is_open(self, endpoint: str | None) -> bool:
        """Whether an endpoint is open (`Api.open_endpoints`), under any name that its blueprint was registered with."""
        return ".".join((endpoint or "").split(".")[-2:]) in self._open

    def error_shape(self, path: str) -> ErrorShape:
        """The error shape for a path that matches no route."""
        prefixes = {prefix: api.error_shape for api in self._apis for prefix in api.path_prefixes}
        longest = max((prefix for prefix in prefixes if _covers(prefix, path)), key=len, default="")
        return prefixes.get(longest) or self._default_shape


def stream_url(stream_id: str) -> str:
    """The stream's path in the native API. Works in a route of any API, also below the prefix of a blueprint."""
    parent = (request.blueprint or "").rpartition(".")[0]
    return url_for(f"{parent}.{STREAM_BLUEPRINT}.{STREAM_ENDPOINT}", stream_id=stream_id)


def refuse(error: CrucibleError, shape: ErrorShape, metrics: Metrics) -> Response:
    """Answer an error in the shape of one API, and count it."""
    answer = answer_to(error, shape)
    metrics.refused[answer.code] += 1
    return error_response(answer, shape)


@final
class _ErrorHandlers:
    def __init__(self, shape: ErrorShape, metrics: Metrics) -> None:
        self._shape = shape
        self._metrics = metrics

    async def refuse(self, error: CrucibleError) -> Response:
        return refuse(error, self._shape, self._metrics)

    async def answer_http_error(self, error: HTTPException) -> Response:
        return http_error_response(error, self._shape)


def _covers(prefix: str, path: str) -> bool:
    if prefix.endswith("/"):
        return path.startswith(prefix) and path != prefix
    return path == prefix or path.startswith(f"{prefix}/")
