"""What every API of an application shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from crucible_trio.apis.kit.access import Access
from crucible_trio.apis.kit.models import ModelsForm
from crucible_trio.apis.kit.uploads import Uploads
from crucible_trio.pipeline import Pipeline
from crucible_trio.settings.apis import ApiSettings


@final
@dataclass(frozen=True, slots=True)
class ApiContext:
    """The surroundings of an API.

    Attributes:
        pipeline: An open pipeline.
        settings: The settings of the APIs.
        access: The access rules.
        uploads: The bodies of requests that are being received.
        models_forms: The forms of the model list besides the usual one.
    """

    pipeline: Pipeline
    settings: ApiSettings
    access: Access
    uploads: Uploads
    models_forms: tuple[ModelsForm, ...] = ()
