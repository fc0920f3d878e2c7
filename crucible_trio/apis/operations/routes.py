"""What operators and machines ask: is it up, is it ready, what are the numbers."""

from __future__ import annotations

from typing import final

from quart import Blueprint, Response, request

from crucible_trio import metrics
from crucible_trio.pipeline import Pipeline
from crucible_trio.web.access import Access
from crucible_trio.web.responses import json_response


@final
class ServiceApi:
    """The routes beside the API proper."""

    def __init__(self, pipeline: Pipeline, access: Access) -> None:
        self._pipeline = pipeline
        self._access = access

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the routes."""
        blueprint.add_url_rule("/healthz", view_func=self.healthz, methods=["GET"])
        blueprint.add_url_rule("/readyz", view_func=self.readyz, methods=["GET"])
        blueprint.add_url_rule("/metrics", view_func=self.metrics, methods=["GET"])

    async def healthz(self) -> Response:
        """`GET /healthz`: 200 while the process answers."""
        return json_response({"status": "ok"})

    async def readyz(self) -> Response:
        """`GET /readyz`: 200 while new streams are welcome, 503 while it drains."""
        if self._pipeline.draining:
            return json_response({"status": "draining"}, 503)
        return json_response({"status": "ready"})

    async def metrics(self) -> Response:
        """`GET /metrics`: Prometheus' text; with a key where keys are configured."""
        self._access.owner(request)
        return Response(self._pipeline.metrics.render(), content_type=metrics.CONTENT_TYPE)
