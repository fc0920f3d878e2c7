"""What a request may ask of an upstream server."""

from __future__ import annotations

from typing import Final

from crucible_trio.engine import Capabilities
from crucible_trio.settings.upstreams import CapabilitySettings

# The fields of a request that this engine passes on. The server judges them.
UPSTREAM_CAPABILITIES: Final = Capabilities(sampling=frozenset({"temperature", "top_p", "seed", "stop"}))


def capabilities_within(settings: CapabilitySettings) -> Capabilities:
    """What the settings leave of `UPSTREAM_CAPABILITIES`. A field that the engine does not pass on cannot be added."""
    passed_on = UPSTREAM_CAPABILITIES
    sampling = passed_on.sampling if settings.sampling is None else passed_on.sampling & set(settings.sampling)
    return Capabilities(
        tools=passed_on.tools and settings.tools,
        images=passed_on.images and settings.images,
        files=passed_on.files and settings.files,
        audio=passed_on.audio and settings.audio,
        structured_output=passed_on.structured_output and settings.structured_output,
        logprobs=passed_on.logprobs and settings.logprobs,
        reasoning_input=passed_on.reasoning_input and settings.reasoning_input,
        unknown_fields=passed_on.unknown_fields and settings.unknown_fields,
        sampling=sampling,
    )
