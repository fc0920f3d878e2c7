"""Idempotency keys: a start that is repeated finds the stream that the first one made."""

from __future__ import annotations

import hashlib
from typing import final

import msgspec

from crucible_trio.engine import Request
from crucible_trio.errors import IdempotencyConflictError


@final
class Keys:
    """Which stream each owner's keys have started."""

    def __init__(self) -> None:
        # The request's digest, not the request: a key is kept for longer than its stream, and no cap counts its bytes.
        self._started: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._key_of: dict[str, tuple[str, str]] = {}

    def find(self, owner: str, key: str, request: Request) -> str | None:
        """The id of the stream that this key started; None if it started none.

        Raises:
            IdempotencyConflictError: It started one with another request.
        """
        started = self._started.get((owner, key))
        if started is None:
            return None
        if started[0] != _digest(request):
            raise IdempotencyConflictError
        return started[1]

    def enter(self, owner: str, key: str, request: Request, stream_id: str) -> None:
        """Remember what a key has started."""
        self._started[owner, key] = (_digest(request), stream_id)
        self._key_of[stream_id] = (owner, key)

    def drop(self, stream_id: str) -> None:
        """Forget the key of a stream that nobody remembers any more, if it had one."""
        key = self._key_of.pop(stream_id, None)
        if key is not None:
            del self._started[key]


def _digest(request: Request) -> bytes:
    return hashlib.sha256(msgspec.json.encode(request)).digest()
