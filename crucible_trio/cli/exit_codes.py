"""The exit codes of `crucible ask`."""

from __future__ import annotations

from typing import Final

ANSWERED: Final = 0  # also if a limit cut the answer short
FAILED: Final = 1  # or lost
CANNOT_START: Final = 2
STOPPED: Final = 130  # 128 + SIGINT, as in shells
