"""Traces that a client keeps and sends back in a later turn, and their signatures.

They are signed and readable, and not encrypted: the client has the trace anyway. The signature shows that this server
wrote the trace for this owner, so that a client cannot make a model believe thoughts that it never had.
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, final

from itsdangerous import Signer

_PREFIX: Final = "trace."


@final
class Seals:
    """Makes the seals of all owners.

    Args:
        secret: Signs the traces. None: a random secret, so a restarted server does not know its own traces.
    """

    def __init__(self, secret: str | None) -> None:
        # The salt makes another key than that of the stream tokens.
        self._signer = Signer(
            secret or secrets.token_bytes(32), salt="crucible_trio reasoning", digest_method=hashlib.sha256
        )

    def of(self, owner: str) -> Seal:
        """The seal of one owner."""
        return Seal(self._signer, owner)


@final
class Seal:
    """Signs and verifies the traces of one owner."""

    def __init__(self, signer: Signer, owner: str) -> None:
        self._signer = signer
        self._owner = owner.encode()

    def sign(self, trace: str) -> str:
        """The trace with its signature. The same trace always gives the same text."""
        content = urlsafe_b64encode(trace.encode())
        return f"{_PREFIX}{content.decode()}.{self._signature(content)}"

    def verify(self, sealed: str) -> str | None:
        """The trace in a signed text. None if this server has not signed it for this owner."""
        content, _, signature = sealed.removeprefix(_PREFIX).partition(".")
        if not sealed.isascii() or not self._signer.verify_signature(self._signed(content.encode()), signature):
            return None
        return urlsafe_b64decode(content).decode()

    def signature(self, trace: str) -> str:
        """The signature alone, for a client that keeps the trace beside it. The same trace always has the same one."""
        return self._signature(urlsafe_b64encode(trace.encode()))

    def matches(self, trace: str, signature: str) -> bool:
        """Whether this server has signed a trace for this owner."""
        if not signature.isascii():
            return False
        try:
            content = urlsafe_b64encode(trace.encode())
        except UnicodeEncodeError:  # half a character, which JSON can hold and no trace has
            return False
        return bool(self._signer.verify_signature(self._signed(content), signature))

    def _signature(self, content: bytes) -> str:
        return self._signer.get_signature(self._signed(content)).decode()

    def _signed(self, content: bytes) -> bytes:
        return b"%d.%b.%b" % (len(self._owner), self._owner, content)
