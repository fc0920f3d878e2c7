"""Answer a request for models in the form that its client reads, errors included."""

from __future__ import annotations

from collections.abc import Callable

from quart import Request, Response

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.models import ModelsForm, form_for
from crucible_trio.apis.kit.registration import refuse
from crucible_trio.errors import CrucibleError


def answer_about_models(
    request: Request, context: ApiContext, answer: Callable[[ModelsForm | None], Response]
) -> Response:
    """Check the key and answer.

    Args:
        request: The request.
        context: The surroundings of the API that has the route.
        answer: Makes the response, in the usual form for None.

    Raises:
        CrucibleError: The request is refused, and its client reads the usual form: the error of the route's API.
    """
    form = form_for(request, context.models_forms)
    try:
        context.access.owner(request)
        return answer(form)
    except CrucibleError as error:
        if form is None:
            raise
        return refuse(error, form.error_shape, context.pipeline.metrics)
