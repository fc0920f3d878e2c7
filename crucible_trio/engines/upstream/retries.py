"""When a request to an upstream server is sent again, and after how many seconds. No trio: nothing here waits."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, final

from crucible_trio.http import HttpResponse

# Seconds before the second and the third attempt, the last one. Together they outlast a dropped connection or a load
# balancer's failover. A restart takes longer, and the client should hear about it. Up to half of each delay is taken
# off at random, so that many streams that failed together do not return together.
RETRY_DELAYS: Final = (0.5, 2.0)
# A longer Retry-After is left to the client, which can show it and give up.
MAX_RETRY_AFTER: Final = 10.0
_RETRIED_STATUS: Final = frozenset({429, 503})


@final
class RetrySchedule:
    """The attempts that one request has left. Call one of the methods after each failed attempt."""

    def __init__(self) -> None:
        self._delays = iter(RETRY_DELAYS)

    def after_no_response(self) -> float | None:
        """Seconds to wait before the next attempt when no response came. None: give up."""
        delay = next(self._delays, None)
        return None if delay is None else delay * random.uniform(0.5, 1.0)

    def after_error_response(self, response: HttpResponse) -> float | None:
        """Seconds to wait before the next attempt after an error status. None: give up."""
        delay = self.after_no_response()
        if delay is None or response.status not in _RETRIED_STATUS:
            return None
        asked = parse_retry_after(response.headers.get("Retry-After", ""))
        if asked is None:
            return delay
        return asked if asked <= MAX_RETRY_AFTER else None


def parse_retry_after(value: str) -> float | None:
    """Read a `Retry-After` header: a number of seconds, or a date.

    Returns:
        Seconds from now. None if the value is neither.

    Source: RFC 9110, 10.2.3.
    """
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
