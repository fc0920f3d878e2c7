"""The hold of a stream: its clients wait for the engine's answer before they get a status line.

An engine that asks another server may be refused there. As long as no status line has been sent, the client can get the
refusal as a status. A client that waits here counts as a reader, so the stream's policy and its grace period treat both
alike.
"""

from __future__ import annotations

from typing import Protocol, final

import trio


class HeldStream(Protocol):
    """The source of a held stream's records: a `Generation`."""

    def client_waits(self) -> None:
        """A client waits for the answer."""

    def client_stopped_waiting(self, *, has_left: bool) -> None:
        """A client has left, or goes on and will attach a reader."""


@final
class Hold:
    """The clients of one stream that wait for its engine's answer. The client that starts the stream is the first.

    Args:
        stream: Is told of the clients.

    Attributes:
        waiting: How many clients wait.
        was_accepted: Whether another server has accepted the engine's request. Then its clients get the stream, even if
            it has ended without output before they look.
    """

    def __init__(self, stream: HeldStream) -> None:
        self.waiting = 1
        self.was_accepted = False
        self._stream = stream
        self._answered = trio.Event()

    def answer(self) -> None:
        """The engine has answered: it has written something, or its stream has ended."""
        self._answered.set()

    def accept(self) -> None:
        """Another server has accepted the engine's request."""
        self.was_accepted = True
        self._answered.set()

    def join(self) -> None:
        """One more client waits."""
        self.waiting += 1
        self._stream.client_waits()

    async def wait(self, seconds: float) -> None:
        """Wait as one of the clients until the engine has answered, at most `seconds`.

        Checkpoints: always. Cancellation: the client has left, and the stream's policy decides.
        """
        has_left = True
        try:
            with trio.move_on_after(seconds):
                await self._answered.wait()
            has_left = False
        finally:
            self.waiting -= 1
            self._stream.client_stopped_waiting(has_left=has_left)
