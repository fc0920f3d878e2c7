"""Decides when to retry and when to give up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, final

import trio

from crucible_trio.errors import ServerRefusedError, StreamLostError

# The first delay after a cut, until the server sets another one with `retry`.
RETRY_SECONDS: Final = 1.0

# The delay doubles after each failure, up to this limit.
MAX_DELAY_SECONDS: Final = 30.0

# Doubling starts here when the server sets a shorter delay: `retry: 0` must not use up all attempts in a millisecond.
MIN_DOUBLED_SECONDS: Final = 0.1

# Each delay is multiplied by a random factor from 1 to this one, so that readers that were cut at the same time do not
# reconnect at the same time. A factor below 1 would break the delay that the server asked for.
MAX_JITTER: Final = 1.5

# Failures in a row after which a stream is lost once the server has answered. Their delays add up to at least 151 s,
# longer than the 120 s for which a server keeps a stream without readers by default.
MAX_ATTEMPTS: Final = 10

# The same limit until the server has answered for the first time. It takes 7 s: a wrong address is reported soon.
MAX_FIRST_ATTEMPTS: Final = 4

# A `Retry-After` longer than this is not waited for. The program decides whether to wait that long.
MAX_RETRY_AFTER_SECONDS: Final = 120.0


class CutError(Exception):
    """A connection ended or a request failed, and a retry may succeed. The client never raises it to its caller.

    Attributes:
        refusal: The server's own error, if it sent one.
        wait: The delay in seconds that the server asked for. None if it did not.
        is_failure: Whether it counts as a failure. A busy server that says when to come back works as it should.
        broke_protocol: Whether the server violated the protocol.
    """

    def __init__(
        self,
        message: str,
        *,
        refusal: ServerRefusedError | None = None,
        wait: float | None = None,
        is_failure: bool = True,
        broke_protocol: bool = False,
    ) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.wait = wait
        self.is_failure = is_failure
        self.broke_protocol = broke_protocol


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLimits:
    """How long a client keeps trying.

    Attributes:
        retry_seconds: The first delay after a cut, until the server sets another one.
        max_first_attempts: Failures in a row until the server has answered for the first time.
        max_attempts: Failures in a row without progress, after which a stream is lost.

    Raises:
        ValueError: A number is out of range, at construction.
    """

    retry_seconds: float = RETRY_SECONDS
    max_first_attempts: int = MAX_FIRST_ATTEMPTS
    max_attempts: int = MAX_ATTEMPTS

    def __post_init__(self) -> None:
        if min(self.max_attempts, self.max_first_attempts) < 1 or not 0 <= self.retry_seconds <= MAX_DELAY_SECONDS:
            message = (
                "max_attempts and max_first_attempts must be at least 1, "
                f"and retry_seconds must be from 0 to {MAX_DELAY_SECONDS:.0f}"
            )
            raise ValueError(message)


@final
class Attempts:
    """Counts failures in a row and waits between them."""

    def __init__(self, limits: RetryLimits) -> None:
        self._retry_seconds = limits.retry_seconds
        self._limit = limits.max_first_attempts
        self._max_attempts = limits.max_attempts
        self._is_reached = False
        self._failures = 0
        self._broken_at: int | None = None

    def set_retry(self, milliseconds: int) -> None:
        """Take the server's value for the first delay."""
        self._retry_seconds = min(milliseconds / 1000, MAX_DELAY_SECONDS)

    def mark_reached(self) -> None:
        """The server has answered with the stream. From now on `max_attempts` applies."""
        if not self._is_reached:
            self._is_reached = True
            self._failures = 0
            self._limit = self._max_attempts

    def mark_progress(self) -> None:
        """Start counting failures from 0 again."""
        self._failures = 0

    async def wait(self, cut: CutError, last_seq: int) -> None:
        """Wait until the next attempt is due.

        Args:
            cut: The reason for another attempt.
            last_seq: The offset of the reader, for the error.

        Raises:
            StreamLostError: The limit is reached, or the server violated the protocol twice at the same offset.
            ServerRefusedError: The limit is reached, no attempt reached the stream, and the server said why.

        Checkpoints: always. Cancellation: loses nothing.
        """
        if not cut.is_failure:
            # At least our own delay, because "come back in 0 ms" must not make a tight loop.
            await trio.sleep(max(cut.wait or 0.0, self._retry_seconds, MIN_DOUBLED_SECONDS) * _jitter())
            return
        self._failures += 1
        if cut.broke_protocol and self._broken_at == last_seq:
            raise StreamLostError(f"the server violated the protocol twice: {cut}", last_seq) from cut
        self._broken_at = last_seq if cut.broke_protocol else None
        if self._failures >= self._limit or (cut.wait or 0.0) > MAX_RETRY_AFTER_SECONDS:
            if cut.refusal is not None and not self._is_reached:
                raise cut.refusal from None
            raise StreamLostError(f"gave up after failure {self._failures} in a row: {cut}", last_seq) from cut
        await trio.sleep(max(self._delay(), cut.wait or 0.0) * _jitter())

    def _delay(self) -> float:
        if self._failures == 1:
            return self._retry_seconds
        doubled: float = max(self._retry_seconds, MIN_DOUBLED_SECONDS) * 2 ** (self._failures - 1)
        return min(doubled, MAX_DELAY_SECONDS)


def _jitter() -> float:
    return random.uniform(1.0, MAX_JITTER)
