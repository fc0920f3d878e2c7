"""How long leases and keys live in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self, final

from crucible_trio.config import Settings
from crucible_trio.store.retention import REMEMBERED_SECONDS

# A running stream's keys are renewed with its lease. They outlive a process that died, so that its streams can be read.
_RESERVE_SECONDS: Final = 120.0


@final
@dataclass(frozen=True, slots=True)
class Times:
    """Times in milliseconds, as Redis takes them.

    Attributes:
        lease: How long a process counts as alive after it was last heard of.
        running: How long the keys of a running stream live after they were last renewed.
        kept: How long a finished stream can be read.
        gone: How much longer its id is remembered.
    """

    lease: int
    running: int
    kept: int
    gone: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The times of these settings."""
        return cls(
            lease=_milliseconds(settings.log_lease_seconds),
            running=_milliseconds(settings.retention_seconds + _RESERVE_SECONDS),
            kept=max(1, _milliseconds(settings.retention_seconds)),
            gone=_milliseconds(REMEMBERED_SECONDS),
        )


def _milliseconds(seconds: float) -> int:
    # Redis refuses times that do not fit into 64 bits.
    return int(min(seconds * 1000, 2**53))
