"""The deadlines of one stream. Nothing here waits: a timer fires at `next_deadline`, and then asks `expired`."""

from __future__ import annotations

from math import inf
from typing import Literal, TypeAlias, final

Expiry: TypeAlias = Literal["first_token_deadline", "idle_deadline", "total_deadline", "grace"]


@final
class Clocks:
    """When a stream has taken too long. All times are `trio.current_time()`, in seconds.

    Args:
        now: When the stream was accepted.
        first_token: From the engine's call to its first token, time spent queued left out.
        idle: Between two tokens, likewise. Only waiting for the engine counts, never waiting for a reader.
        total: From acceptance.
        grace: How long the stream may be without a reader.
    """

    def __init__(self, *, now: float, first_token: float, idle: float, total: float, grace: float) -> None:
        self._total_at = now + total
        self._first_token = first_token
        self._idle = idle
        self._has_token = False
        self._grace = grace
        self._waiting_since: float | None = None
        self._queued_before = 0.0
        self._alone_since: float | None = None

    @property
    def waits_for_token(self) -> bool:
        """Whether the idle deadline runs."""
        return self._has_token and self._waiting_since is not None

    def wait_begins(self, now: float, queued: float) -> None:
        """The engine is waited for, unless it was already. `queued`: seconds it has spent queued in all."""
        if self._waiting_since is None:
            self._waiting_since = now
            self._queued_before = queued

    def token_came(self) -> None:
        """From now on the idle deadline counts."""
        self._waiting_since = None
        self._has_token = True

    def alone(self, now: float) -> None:
        """Nobody is attached."""
        self._alone_since = now

    def joined(self) -> None:
        """Somebody is."""
        self._alone_since = None

    def next_deadline(self, queued: float) -> float:
        """The earliest time at which `expired` can say something new."""
        return min(self._total_at, self._silence_ends(queued), self._grace_ends())

    def expired(self, now: float, queued: float) -> Expiry | None:
        """What has run out by now, if anything."""
        if now >= self._total_at:
            return "total_deadline"
        if now >= self._grace_ends():
            return "grace"
        if now >= self._silence_ends(queued):
            return "idle_deadline" if self._has_token else "first_token_deadline"
        return None

    def _silence_ends(self, queued: float) -> float:
        if self._waiting_since is None:
            return inf
        allowance = self._idle if self._has_token else self._first_token
        return self._waiting_since + allowance + queued - self._queued_before

    def _grace_ends(self) -> float:
        return inf if self._alone_since is None else self._alone_since + self._grace
