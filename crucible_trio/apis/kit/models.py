"""`GET /v1/models` in more than one form.

The native API and OpenAI's have the routes, in the form of `replies.model_entries`. An API whose clients expect another
form is known by a header of theirs, and has a `models_form`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from crucible_trio.apis.kit.errors import ErrorShape

if TYPE_CHECKING:  # forms are plain functions over data, and must not load Quart
    from quart import Request


class ModelsForm(Protocol):
    """How the clients of one API read models."""

    @property
    def header(self) -> str:
        """The request header by which these clients are known."""

    @property
    def error_shape(self) -> ErrorShape:
        """How errors are written for these clients."""

    def one(self, name: str) -> Mapping[str, object]:
        """A model, by a name that a request may give."""

    def all(self, names: Sequence[str]) -> Mapping[str, object]:
        """All models, by their names."""


class HasModelsForm(Protocol):
    """An `Api` with a form for models."""

    models_form: ClassVar[ModelsForm]


def form_for(request: Request, forms: Sequence[ModelsForm]) -> ModelsForm | None:
    """The form that the client of a request reads. None for the usual one."""
    return next((form for form in forms if form.header in request.headers), None)
