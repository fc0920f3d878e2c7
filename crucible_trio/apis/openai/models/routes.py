"""One model, as OpenAI's SDKs retrieve it. The list of models is a route of the native API, in the same form."""

from __future__ import annotations

from typing import ClassVar, final

from quart import Blueprint, Response, request

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape
from crucible_trio.apis.kit.model_answers import answer_about_models
from crucible_trio.apis.kit.models import ModelsForm
from crucible_trio.apis.kit.replies import json_response, model_entries
from crucible_trio.apis.openai.errors import OPENAI_ERRORS


@final
class ModelsApi:
    """The models API over one pipeline (`Api`)."""

    name: ClassVar[str] = "openai_models"
    error_shape: ClassVar[ErrorShape | None] = OPENAI_ERRORS
    # Everything below `/v1` that no other API has: only clients of OpenAI's APIs ask for other paths there.
    path_prefixes: ClassVar[tuple[str, ...]] = ("/v1/",)
    open_endpoints: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._engine = context.pipeline.engine
        self._builder = context.request_builder()

    def add_to(self, blueprint: Blueprint) -> None:
        """Add the route. A model's name may contain slashes."""
        blueprint.add_url_rule("/v1/models/<path:model>", view_func=self.retrieve, methods=["GET"])

    async def retrieve(self, model: str) -> Response:
        """`GET /v1/models/{model}`: any name that a request may give, including names that mean another model."""

        def answer(form: ModelsForm | None) -> Response:
            name, _ = self._builder.resolve(model)
            if form is not None:
                return json_response(form.one(model))
            [entry] = model_entries(self._engine, [name])
            return json_response(entry | {"id": model})

        return answer_about_models(request, self._context, answer)
