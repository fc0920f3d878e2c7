"""Whether Redis can be used, and since when not."""

from __future__ import annotations

import logging
from math import inf
from typing import final

import trio

from crucible_trio.errors import trace_without_text

logger = logging.getLogger(__name__)


def log_internal_error(place: str, error: Exception) -> None:
    """Log an error that no service task may end with, without its text."""
    logger.error("internal error %s\n%s", place, trace_without_text(error))


@final
class Health:
    """Whether Redis takes writes.

    Args:
        outage_seconds: After how much time without a write the logs are unavailable.

    Attributes:
        failures: How often the connection was lost or a write was refused.
        since: When Redis last began to fail, in `trio.current_time()`. `inf` while it works.
    """

    def __init__(self, outage_seconds: float) -> None:
        self.failures = 0
        self.since = inf
        self._outage_seconds = outage_seconds

    def failed(self, reason: str) -> None:
        """The connection is lost, or a write was refused."""
        self.failures += 1
        if self.since == inf:
            self.since = trio.current_time()
            logger.warning("Redis does not take records (%s): streams wait for it", reason)

    def worked(self) -> None:
        """A write has succeeded."""
        if self.since != inf:
            logger.warning("Redis takes records again after %.1f s", trio.current_time() - self.since)
            self.since = inf

    @property
    def is_out(self) -> bool:
        """Whether Redis has failed for so long that streams are given up."""
        return trio.current_time() >= self.since + self._outage_seconds
