"""What every API of an application shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final

from crucible_trio.apis.kit.access import Access
from crucible_trio.apis.kit.downloads import Downloads
from crucible_trio.apis.kit.models import ModelsForm
from crucible_trio.apis.kit.request_builder import SAME_NAMES, RequestBuilder
from crucible_trio.apis.kit.uploads import Uploads
from crucible_trio.pipeline import Pipeline
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.totals import Family


class Workers(Protocol):
    """The processes that serve together with this one."""

    async def collect(self, own: list[Family]) -> list[Family]:
        """Add the metrics of all processes to those of this process.

        Raises:
            OverloadedError: They do not answer.
        """


@final
@dataclass(frozen=True, slots=True)
class ApiContext:
    """The surroundings of an API.

    Attributes:
        pipeline: An open pipeline.
        settings: The settings of the APIs.
        access: The access rules.
        uploads: The bodies of requests that are being received.
        downloads: The large answers that are being written.
        workers: The processes that serve together with this one. None if it serves alone.
        models_forms: The forms of the model list besides the usual one.
    """

    pipeline: Pipeline
    settings: ApiSettings
    access: Access
    uploads: Uploads
    downloads: Downloads
    workers: Workers | None = None
    models_forms: tuple[ModelsForm, ...] = ()

    def request_builder(self, names: Mapping[str, str] = SAME_NAMES) -> RequestBuilder:
        """Makes an API's requests for the engine. `names` as for `RequestBuilder`."""
        return RequestBuilder(self.pipeline.engine, self.settings, self.pipeline.settings.max_output_tokens, names)
