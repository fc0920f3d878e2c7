"""How long one response body has sent nothing."""

from __future__ import annotations

from typing import final

import trio


@final
class Silence:
    """The time since the last write to one client. The body and its direct writes share it.

    Args:
        limit_seconds: After this long, a keep-alive is due.

    Attributes:
        since: When the client was last sent something, in `trio.current_time()`. Every write sets it.
    """

    __slots__ = ("_limit_seconds", "since")

    def __init__(self, limit_seconds: float) -> None:
        self.since = 0.0
        self._limit_seconds = limit_seconds

    @property
    def deadline(self) -> float:
        """When a keep-alive is due, in `trio.current_time()`."""
        return self.since + self._limit_seconds

    @property
    def is_over(self) -> bool:
        """Whether a keep-alive is due."""
        return trio.current_time() >= self.since + self._limit_seconds
