"""How a log looks on one wire: a dialect is a fold over the log's records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol


class Dialect(Protocol):
    """One reader's view of a log. What a record looks like depends on the records before it and on nothing else.

    Attributes:
        resumes: Whether this wire has ids, with which a client comes back by itself: then it is told how soon (`retry`)
            and why (control events).
    """

    resumes: ClassVar[bool]

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Take the next records of the log, every one from record 1 on and in order.

        Args:
            frames: Their frames, as the log holds them.

        Returns:
            Whole events for this wire; empty when the view leaves all of them out.
        """
