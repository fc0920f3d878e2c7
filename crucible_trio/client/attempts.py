"""When to try again, and when to stop trying."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, final

import trio

from crucible_trio.errors import ServerRefusedError, StreamLostError

# The first delay after a cut, until the server has named one in `retry`.
RETRY_SECONDS: Final = 1.0

# Delays double from one failure to the next, up to this one.
MAX_DELAY_SECONDS: Final = 30.0

# What doubling starts from when the server names less: `retry: 0` must not use up all attempts within a millisecond.
MIN_DOUBLED_SECONDS: Final = 0.1

# Delays are stretched by up to this factor, and never shortened: readers that were cut together come back one by one.
MAX_STRETCH: Final = 1.5

# Failures in a row after which a stream that was once reached is lost: their delays add up to 151 s at least, more than
# the 120 s that a server keeps a stream without readers by default.
MAX_ATTEMPTS: Final = 10

# The same while nothing has been reached yet, 7 s: somebody waits to hear that the address is wrong.
MAX_FIRST_ATTEMPTS: Final = 4

# A refusal that names a longer time is final: the program knows better than we whether to wait that long.
MAX_RETRY_AFTER_SECONDS: Final = 120.0


class CutError(Exception):
    """A connection ended, or a request failed, in a way that the next one may not; never leaves the client.

    Attributes:
        refusal: The server's own words, if it said something.
        wait: Seconds that the server asked for; None leaves it to us.
        counts: Whether it is a failure; a server that says when to come back is in good health.
        broke_protocol: Whether the server sent what it must never send.
    """

    def __init__(
        self,
        message: str,
        *,
        refusal: ServerRefusedError | None = None,
        wait: float | None = None,
        counts: bool = True,
        broke_protocol: bool = False,
    ) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.wait = wait
        self.counts = counts
        self.broke_protocol = broke_protocol


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a client tries.

    Attributes:
        retry_seconds: The first delay after a cut, until the server names one.
        max_first_attempts: Failures in a row before the server has answered for the first time.
        max_attempts: Failures in a row, without progress between them, after which a stream is lost.

    Raises:
        ValueError: A number makes no sense, at construction.
    """

    retry_seconds: float = RETRY_SECONDS
    max_first_attempts: int = MAX_FIRST_ATTEMPTS
    max_attempts: int = MAX_ATTEMPTS

    def __post_init__(self) -> None:
        if min(self.max_attempts, self.max_first_attempts) < 1 or not 0 <= self.retry_seconds <= MAX_DELAY_SECONDS:
            message = f"there is at least 1 attempt, and retry is 0 to {MAX_DELAY_SECONDS:.0f} seconds"
            raise ValueError(message)


@final
class Attempts:
    """Counts failures in a row, and waits between them."""

    def __init__(self, patience: Patience) -> None:
        self._retry_seconds = patience.retry_seconds
        self._limit = patience.max_first_attempts
        self._max_attempts = patience.max_attempts
        self._reached = False
        self._failures = 0
        self._broken_at: int | None = None

    def set_retry(self, milliseconds: int) -> None:
        """The server has named the first delay."""
        self._retry_seconds = min(milliseconds / 1000, MAX_DELAY_SECONDS)

    def reached(self) -> None:
        """The server has answered with the stream: from now on there is something to lose."""
        if not self._reached:
            self._reached = True
            self._failures = 0
            self._limit = self._max_attempts

    def progressed(self) -> None:
        """What failed before does not count any more."""
        self._failures = 0

    async def wait(self, cut: CutError, last_seq: int) -> None:
        """Wait until it is time for the next attempt.

        Checkpoints: always. Cancellation: loses nothing.

        Raises:
            StreamLostError: There have been enough, or the protocol was broken twice at the same place.
            ServerRefusedError: There have been enough, nothing was reached by any, and the server has said why.
        """
        if not cut.counts:
            # Never under our own delay: "come back in 0 ms" must not make a tight loop.
            await trio.sleep(max(cut.wait or 0.0, self._retry_seconds, MIN_DOUBLED_SECONDS) * _stretch())
            return
        self._failures += 1
        if cut.broke_protocol and self._broken_at == last_seq:
            raise StreamLostError(f"the server broke the protocol twice: {cut}", last_seq) from cut
        self._broken_at = last_seq if cut.broke_protocol else None
        if self._failures >= self._limit or (cut.wait or 0.0) > MAX_RETRY_AFTER_SECONDS:
            if cut.refusal is not None and not self._reached:
                raise cut.refusal from None
            raise StreamLostError(f"gave up at failure {self._failures} in a row: {cut}", last_seq) from cut
        await trio.sleep(max(self._delay(), cut.wait or 0.0) * _stretch())

    def _delay(self) -> float:
        if self._failures == 1:
            return self._retry_seconds
        doubled: float = max(self._retry_seconds, MIN_DOUBLED_SECONDS) * 2 ** (self._failures - 1)
        return min(doubled, MAX_DELAY_SECONDS)


def _stretch() -> float:
    return random.uniform(1.0, MAX_STRETCH)
