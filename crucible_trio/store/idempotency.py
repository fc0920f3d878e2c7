"""Idempotency keys: a repeated start finds the stream that the first start made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import final

import msgspec
import trio

from crucible_trio.errors import IdempotencyConflictError


@final
@dataclass(slots=True)
class _Claim:
    digest: bytes  # not the request: a key is kept for longer than its stream, and no cap counts its bytes
    stream_id: str
    is_started: bool = False
    waiters: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


@final
class IdempotencyKeys:
    """The streams that each owner's keys have started, or are about to start."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, str], _Claim] = {}
        self._key_of: dict[str, tuple[str, str]] = {}

    async def claim(self, owner: str, key: str, digest: bytes, stream_id: str) -> str:
        """Claim a key, or wait for the stream of the first claim (`StreamStore.claim`).

        Checkpoints: only while another claim is about to start its stream. None lies between looking a key up and
        entering it.
        """
        while (claim := self._claims.get((owner, key))) is not None:
            if claim.digest != digest:
                raise IdempotencyConflictError
            if claim.is_started:
                return claim.stream_id
            await claim.waiters.park()
        self._claims[owner, key] = _Claim(digest, stream_id)
        return stream_id

    def started(self, owner: str, key: str, stream_id: str) -> None:
        """The stream of a claim has started."""
        claim = self._claims[owner, key]
        claim.is_started = True
        self._key_of[stream_id] = (owner, key)
        claim.waiters.unpark_all()

    def release(self, owner: str, key: str, stream_id: str) -> None:
        """Give a claimed key back, if `stream_id` holds it."""
        claim = self._claims.get((owner, key))
        if claim is not None and claim.stream_id == stream_id:
            del self._claims[owner, key]
            self._key_of.pop(stream_id, None)
            claim.waiters.unpark_all()

    def drop(self, stream_id: str) -> None:
        """Drop the key of a stream whose id is forgotten, if it had one."""
        key = self._key_of.pop(stream_id, None)
        if key is not None:
            del self._claims[key]


def digest_of(identity: object, label: str | None = None) -> bytes:
    """A digest of everything that a repeated start must have in common with the first: values that JSON can hold."""
    # Deterministic: the order of the keys in `extra` or in a schema does not make another request.
    return hashlib.sha256(msgspec.json.encode((identity, label), order="deterministic")).digest()
