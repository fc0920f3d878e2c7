"""The events that foreign wires do not have."""

from __future__ import annotations


class PlainDialect:
    """The shared part of the dialects of foreign APIs. Subclasses add `feed` and `keep_alive` (`Dialect`).

    Their clients read events until the stream ends, and do not reconnect. They know no `retry:` line and no control
    events. So a draining server lets the stream finish without a word, and a reader too many is refused with an error.

    Args:
        resume_offset: The `seq` of the last record that the reader does not need.
    """

    def __init__(self, resume_offset: int = 0) -> None:
        self.resume_offset = resume_offset

    def opening(self) -> bytes:
        """Nothing (`Dialect`)."""
        return b""

    def draining(self) -> bytes:
        """Nothing (`Dialect`)."""
        return b""

    def busy(self) -> None:
        """No event (`Dialect`)."""
        return
