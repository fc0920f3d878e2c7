"""Routes for operators and orchestrators: liveness, readiness, metrics."""

from __future__ import annotations

from typing import ClassVar, final

from quart import Blueprint, Response, request

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.replies import json_response
from crucible_trio.apis.operations import prometheus
from crucible_trio.engine import engines_behind


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
        """`GET /readyz`: 200 while new streams are accepted, 503 while the server drains or has no model."""
        if self._pipeline.draining:
            status = "draining"
        elif not self._pipeline.store.ready:
            status = "log_unavailable"
        elif not self._pipeline.engine.info.models:
            status = "no_model"
        else:
            status = "ready"
        answer: dict[str, object] = {"status": status}
        infos = [engine.info for engine in engines_behind(self._pipeline.engine)]
        if upstreams := {info.name: "up" if info.is_up else "down" for info in infos if info.is_up is not None}:
            answer["upstreams"] = upstreams
        return json_response(answer, 200 if status == "ready" else 503)

    async def metrics(self) -> Response:
        """`GET /metrics`: the metrics of all workers as Prometheus text. Needs a key if keys are configured."""
        self._access.owner(request)
        families = prometheus.families(self._pipeline)
        if self._context.workers is not None:
            families = await self._context.workers.collect(families)
        return Response(prometheus.render_families(families), content_type=prometheus.CONTENT_TYPE)
