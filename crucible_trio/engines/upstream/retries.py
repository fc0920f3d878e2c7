"""When a request to an upstream server is sent again, and after how many seconds. No trio: nothing here waits.

A server that has answered is asked again only for a client that cannot repeat its request. Two sides that both repeat
multiply their attempts.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, final

from crucible_trio.errors import EngineError
from crucible_trio.recorder import LONGEST_RETRY_AFTER

# Seconds before the second and the third attempt, the last one. Together they outlast a dropped connection or a load
# balancer's failover. A restart takes longer, and the client should hear about it. Up to half of each delay is taken
# off at random, so that many streams that failed together do not return together. Without a response they are shorter
# than a hold (`hold_seconds`), so that an unreachable server becomes a status too.
RETRY_DELAYS: Final = (0.5, 2.0)
NO_RESPONSE_DELAYS: Final = (0.5, 1.0)
# A longer Retry-After is left to the client, which can show it and give up.
MAX_RETRY_AFTER: Final = 10.0
_RETRIED_STATUS: Final = frozenset({429, 503})


@final
class RetrySchedule:
    """The attempts that one request has left. Call one of the methods after each failed attempt.

    Args:
        client_retries: As `Output.client_retries`.
        has_fallback: Whether another server is asked next. Then this one is asked once.
    """

    def __init__(self, *, client_retries: bool, has_fallback: bool = False) -> None:
        self._client_retries = client_retries
        self._has_fallback = has_fallback
        self._attempts = 0

    def after_no_response(self) -> float | None:
        """Seconds to wait before the next attempt when no status came. None: give up."""
        return self._next(NO_RESPONSE_DELAYS)

    def after_error_response(self, failure: EngineError) -> float | None:
        """Seconds to wait before the next attempt after an error status. None: give up."""
        delay = self._next(RETRY_DELAYS)
        if delay is None or self._client_retries or failure.status not in _RETRIED_STATUS:
            return None
        if failure.retry_after is None:
            return delay
        return failure.retry_after if failure.retry_after <= MAX_RETRY_AFTER else None

    def _next(self, delays: tuple[float, ...]) -> float | None:
        self._attempts += 1
        if self._has_fallback:
            return None
        return delays[self._attempts - 1] * random.uniform(0.5, 1.0) if self._attempts <= len(delays) else None


def parse_retry_after(value: str) -> float | None:
    """Read a `Retry-After` header: a number of seconds, or a date.

    Returns:
        Seconds from now, at most a week. None if the value is neither.

    Source: RFC 9110, 10.2.3.
    """
    if value.isascii() and value.isdecimal():
        return min(float(value), LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the latter for a year of eleven digits
        return None
    if moment.tzinfo is None:
        return None
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), LONGEST_RETRY_AFTER)
