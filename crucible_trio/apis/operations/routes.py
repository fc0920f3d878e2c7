"""Routes for operators and orchestrators: liveness, readiness, metrics."""

from __future__ import annotations

from typing import ClassVar, final

from quart import Blueprint, Response, request

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.replies import json_response
from crucible_trio.apis.operations import prometheus


@final
class OperationsApi:
    """The operations routes of one pipeline (`Api`)."""

    name: ClassVar[str] = "operations"
    error_shape: ClassVar[ErrorShape | None] = None
    path_prefixes: ClassVar[tuple[str, ...]] = ()
    open_endpoints: ClassVar[frozenset[str]] = frozenset({"healthz", "readyz"})  # orchestrators ask by address

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._pipeline = context.pipeline
        self._access = context.access

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        blueprint.add_url_rule("/healthz", view_func=self.healthz, methods=["GET"])
        blueprint.add_url_rule("/readyz", view_func=self.readyz, methods=["GET"])
        blueprint.add_url_rule("/metrics", view_func=self.metrics, methods=["GET"])

    async def healthz(self) -> Response:
        """`GET /healthz`: 200 while the process answers."""
        return json_response({"status": "ok"})

    async def readyz(self) -> Response:
        """`GET /readyz`: 200 while new streams are accepted, 503 while the server drains."""
        if self._pipeline.draining:
            return json_response({"status": "draining"}, 503)
        if not self._pipeline.store.ready:
            return json_response({"status": "log_unavailable"}, 503)
        return json_response({"status": "ready"})

    async def metrics(self) -> Response:
        """`GET /metrics`: the metrics as Prometheus text. Needs a key if keys are configured."""
        self._access.owner(request)
        return Response(prometheus.render(self._pipeline), content_type=prometheus.CONTENT_TYPE)
