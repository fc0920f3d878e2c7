"""What a token is here, on both sides of the wire: when it was made, which one it is, and how a loss is found.

All tokens have one length, so that a record into which several were merged can be taken apart again.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final

STAMP_LENGTH: Final = 16  # nanoseconds of the machine's monotonic clock
TOKEN_LENGTH: Final = 24  # about five words' worth of a word piece: what a model's chunk has in JSON
_NUMBER_LENGTH: Final = TOKEN_LENGTH - STAMP_LENGTH


class TokensLostError(Exception):
    """A reader has not got each token once and in order."""


def stamp(now_ns: int) -> str:
    """The first part of every token that was made at this moment, in `time.monotonic_ns()`."""
    return f"{now_ns:016d}"


def token(stamped: str, number: int) -> str:
    """Token `number` of its stream, counting from 0."""
    return f"{stamped}{number:07d} "


def split(delta: bytes) -> list[bytes]:
    """The tokens of one record."""
    return [delta[at : at + TOKEN_LENGTH] for at in range(0, len(delta), TOKEN_LENGTH)]


def latencies_ns(delta: bytes, arrived_ns: int) -> list[int]:
    """How long each token of one record has been under way."""
    return [arrived_ns - int(delta[at : at + STAMP_LENGTH]) for at in range(0, len(delta), TOKEN_LENGTH)]


def check(text: bytes, *, count: int | None = None, first: int = 0) -> int:
    """See that a reader's text is the tokens `first`, `first + 1` and so on: nothing lost, repeated or out of order.

    Args:
        text: All deltas of one reader, joined.
        count: How many there must be; None: as many as there are.
        first: The number of the first.

    Returns:
        How many there are.

    Raises:
        TokensLostError: They are not.
    """
    got, rest = divmod(len(text), TOKEN_LENGTH)
    if rest:
        raise TokensLostError(f"{len(text)} characters are no whole number of tokens")
    numbers = _without_stamps(text, got)
    if blake2b(numbers).digest() != _digest(first, got):
        raise TokensLostError(_first_difference(numbers, first))
    if count is not None and got != count:
        raise TokensLostError(f"{got} tokens instead of {count}")
    return got


def _without_stamps(text: bytes, count: int) -> bytes:
    # Column by column: a million tokens are eight slices, not a million.
    numbers = bytearray(count * _NUMBER_LENGTH)
    for column in range(_NUMBER_LENGTH):
        numbers[column::_NUMBER_LENGTH] = text[STAMP_LENGTH + column :: TOKEN_LENGTH]
    return bytes(numbers)


@lru_cache(maxsize=256)
def _digest(first: int, count: int) -> bytes:
    return blake2b(b"".join(b"%07d " % number for number in range(first, first + count))).digest()


def _first_difference(numbers: bytes, first: int) -> str:
    for index in range(len(numbers) // _NUMBER_LENGTH):
        got = numbers[index * _NUMBER_LENGTH : (index + 1) * _NUMBER_LENGTH]
        if got != b"%07d " % (first + index):
            return f"token {got.decode(errors='replace')!r} came where {first + index} was due"
    raise AssertionError("the digests differ and the texts do not")
