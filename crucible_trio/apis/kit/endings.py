"""How the APIs tell a client of a stream that did not end well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crucible_trio.records import CancelledBy, IncompleteReason

# The client has set these limits or can know them, so a stream that they end counts as cut to length. A deadline is
# different: an answer that stopped in the middle must not look complete.
CUT_TO_LENGTH: Final[frozenset[IncompleteReason]] = frozenset({"max_output_tokens", "log_limit"})

DEADLINES: Final[Mapping[IncompleteReason, str]] = {
    "first_token_deadline": "The model did not begin in time.",
    "idle_deadline": "The model stopped in the middle.",
    "total_deadline": "The answer was not finished in time.",
}
"""A sentence for each deadline that can end a stream."""

CANCELLED: Final[Mapping[CancelledBy, str]] = {
    "client": "The stream was cancelled.",
    "disconnect": "The stream was cancelled, because its client had left.",
    "shutdown": "The server is shutting down.",
}
"""A sentence for each way to cancel a stream."""
