"""One model, as the SDKs retrieve it; the list is part of the native API."""

from __future__ import annotations

from typing import final

from quart import Blueprint, Response, request

from crucible_trio.pipeline import Pipeline
from crucible_trio.web.access import Access
from crucible_trio.web.native import model_entry
from crucible_trio.web.openai.asks import Asks
from crucible_trio.web.responses import json_response


@final
class ModelsApi:
    """The route over one pipeline."""

    def __init__(self, pipeline: Pipeline, access: Access, asks: Asks) -> None:
        self._info = pipeline.engine.info
        self._access = access
        self._asks = asks

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the route. A model's name may hold slashes."""
        blueprint.add_url_rule("/v1/models/<path:model>", view_func=self.retrieve, methods=["GET"])

    async def retrieve(self, model: str) -> Response:
        """`GET /v1/models/{model}`: a name that a request may give, the ones that mean another model too."""
        self._access.owner(request)
        self._asks.resolve(model)
        return json_response(model_entry(self._info, model))
