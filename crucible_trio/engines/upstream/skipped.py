"""Count and name the values that the parser of a stream skipped. No trio: nothing here waits.

A name comes from the upstream server, so it is escaped and cut. A value is never kept: it may be a part of the answer.
"""

from __future__ import annotations

import logging
from typing import Final, final

MAX_NAMES: Final = 8
MAX_NAME_LENGTH: Final = 64


@final
class SkippedFields:
    """The skipped values of one stream. An empty value carries nothing and does not count.

    Attributes:
        total: The number of values and events skipped so far.
        may_hold_text: Whether one of them may have been text of the model.
        names: The first different names, escaped: at most 8, of at most 64 characters each.
    """

    def __init__(self) -> None:
        self.total = 0
        self.may_hold_text = False
        self.names: list[str] = []

    def add(self, name: str, *, may_hold_text: bool = False) -> None:
        """Count a skipped value.

        Args:
            name: The path of the field, such as `delta.audio`. An event is named by its type.
            may_hold_text: Its value may have been text of the model.
        """
        self.total += 1
        self.may_hold_text = self.may_hold_text or may_hold_text
        if len(self.names) < MAX_NAMES:
            shown = name[:MAX_NAME_LENGTH].encode("unicode_escape").decode("ascii")[:MAX_NAME_LENGTH]
            if shown not in self.names:
                self.names.append(shown)

    def log(self, logger: logging.Logger) -> None:
        """Write one line, if anything was skipped."""
        if self.total:
            names = ", ".join(self.names)
            logger.info("skipped %d values of the upstream server's stream, among them: %s", self.total, names)
