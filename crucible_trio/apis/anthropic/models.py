"""Models in the form that Anthropic's clients read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

from crucible_trio.apis.anthropic.errors import ANTHROPIC_ERRORS
from crucible_trio.apis.kit.errors import ErrorShape


@final
class AnthropicModels:
    """The list of models for clients that send `anthropic-version` (`ModelsForm`)."""

    header: Final = "anthropic-version"
    error_shape: Final[ErrorShape] = ANTHROPIC_ERRORS

    def one(self, name: str) -> Mapping[str, object]:
        """A model. The date of its release is not known, for which Anthropic's API has the epoch."""
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "active",
        }

    def all(self, names: Sequence[str]) -> Mapping[str, object]:
        """All models on one page. `limit` is not read."""
        ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
        return {"data": [self.one(name) for name in names], "has_more": False, **ends}
