"""The wire of OpenAI's responses API: numbered events with whole objects in them, folded from the log."""

from crucible_trio.dialects.responses.objects import (
    Asked,
    ReasoningAsked,
    Response,
    format_response_id,
    parse_response_id,
)
from crucible_trio.dialects.responses.view import open_view, snapshot

__all__ = [
    "Asked",
    "ReasoningAsked",
    "Response",
    "format_response_id",
    "open_view",
    "parse_response_id",
    "snapshot",
]
