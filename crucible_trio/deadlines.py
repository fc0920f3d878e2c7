"""The deadlines of one stream. Nothing here waits: a timer fires at `next_deadline`, and then asks `expired`."""

from __future__ import annotations

from math import inf
from typing import Literal, TypeAlias, final

Expiry: TypeAlias = Literal["first_token_deadline", "idle_deadline", "total_deadline", "grace"]


@final
class DeadlineClock:
    """Tells when a stream has taken too long. All times are `trio.current_time()`, in seconds.

    Args:
        now: When the stream was accepted.
        first_token: From the engine's call to its first piece, without time spent queued.
        idle: Between two pieces, likewise. Only time spent waiting for the engine counts, never for a reader.
        total: From acceptance.
        grace: How long the stream may be without a reader.
    """

    def __init__(self, *, now: float, first_token: float, idle: float, total: float, grace: float) -> None:
        self._total_at = now + total
        self._first_token = first_token
        self._idle = idle
        self._has_piece = False
        self._grace = grace
        self._waiting_since: float | None = None
        self._queued_before = 0.0
        self._grace_ends = inf

    @property
    def idle_is_running(self) -> bool:
        """Whether the idle deadline is running."""
        return self._has_piece and self._waiting_since is not None

    def wait_begins(self, now: float, queued: float) -> None:
        """The stream waits for its engine. `queued`: seconds that the engine has spent queued in total."""
        if self._waiting_since is None:
            self._waiting_since = now
            self._queued_before = queued

    def piece_came(self) -> None:
        """The engine has written a piece. From now on the idle deadline counts."""
        self._waiting_since = None
        self._has_piece = True

    def last_reader_left(self, now: float) -> None:
        """No reader is attached any more, so the grace period begins."""
        self._grace_ends = now + self._grace

    def reader_expected(self, now: float, *, within: float, may_be_late: bool) -> None:
        """A reader is about to attach.

        Args:
            now: The time.
            within: Seconds that it may take.
            may_be_late: Whether the grace period counts if it is longer.
        """
        self._grace_ends = now + (max(within, self._grace) if may_be_late else within)

    def reader_attached(self) -> None:
        """A reader is attached, so the grace period is over."""
        self._grace_ends = inf

    def next_deadline(self, queued: float) -> float:
        """The earliest time at which `expired` can change its answer."""
        return min(self._total_at, self._silence_ends(queued), self._grace_ends)

    def expired(self, now: float, queued: float) -> Expiry | None:
        """The deadline that has passed, if any."""
        if now >= self._total_at:
            return "total_deadline"
        if now >= self._grace_ends:
            return "grace"
        if now >= self._silence_ends(queued):
            return "idle_deadline" if self._has_piece else "first_token_deadline"
        return None

    def _silence_ends(self, queued: float) -> float:
        if self._waiting_since is None:
            return inf
        allowance = self._idle if self._has_piece else self._first_token
        return self._waiting_since + allowance + queued - self._queued_before
