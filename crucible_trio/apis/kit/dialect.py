"""The contract of a dialect: how the records of a log look on one API's wire.

A dialect is a fold: the bytes of a record depend on the records before it and on nothing else. So every replay sends
the same bytes, and one stream can be read on several wires at the same time.

Each API opens a dialect from the cursor that its wire has: `Last-Event-ID` on the native wire, `starting_after` on the
responses wire, none for chat completions. The result is `resume_offset`: where in the log the reader resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Dialect(Protocol):
    """One reader's view of a log. It does no I/O and knows no HTTP."""

    @property
    def resume_offset(self) -> int:
        """The `seq` of the last record that the reader does not need. 0 where the body begins with record 1."""

    def opening(self) -> bytes:
        """The start of the body, before the first event: a `retry:` line, or nothing."""

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Fold the next records, in order and each once, beginning after `resume_offset`.

        Args:
            frames: The frames of the records, as the log holds them.

        Returns:
            Whole events. Empty if this view leaves all of these records out.
        """

    def keep_alive(self) -> bytes:
        """What to send after a silence, so that proxies and clients keep the connection. Never empty."""

    def draining(self) -> bytes:
        """The event for a client whose server is shutting down. Empty where the wire has no such event."""

    def busy(self) -> bytes | None:
        """The event for a client when the stream has no place for another reader.

        Returns:
            The event, after which the body ends. None where the wire has no such event: then the request is refused
            with an error, or reset if the status line has been sent.
        """
