"""The fields that OpenAI's APIs share."""

from __future__ import annotations

from typing import Final

HARMLESS: Final = {
    "prompt_cache_key": "a hint for a cache",
    "prompt_cache_options": "hints for a cache",
    "prompt_cache_retention": "a hint for a cache",
    "safety_identifier": "names an end user. Here keys name the owners",
    "service_tier": "this server has one tier",
    "user": "names an end user. Here keys name the owners",
}
"""Fields that are harmless in both APIs (`Fields.harmless`)."""
