"""The benchmark's tokens, for server and client. A token has its time and its number, so that a loss is found.

The stand-in model writes each token as one piece. All tokens have the same length, so that a record into which several
tokens were merged can be split again.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import Final

STAMP_LENGTH: Final = 16  # nanoseconds of the machine's monotonic clock
TOKEN_LENGTH: Final = 24  # characters: about five word pieces, as in a chunk of a real model
_NUMBER_LENGTH: Final = TOKEN_LENGTH - STAMP_LENGTH


class TokensLostError(Exception):
    """A reader did not get each token once and in order."""


def stamp(now_ns: int) -> str:
    """The first part of every token that is generated at `now_ns`, a `time.monotonic_ns()`."""
    return f"{now_ns:016d}"


def token(stamped: str, number: int) -> str:
    """Token `number` of its stream, counting from 0."""
    return f"{stamped}{number:07d} "


def split(delta: bytes) -> list[bytes]:
    """The tokens of one record."""
    return [delta[at : at + TOKEN_LENGTH] for at in range(0, len(delta), TOKEN_LENGTH)]


def latencies_ns(delta: bytes, arrived_ns: int) -> list[int]:
    """The latency of each token in one record, in nanoseconds."""
    return [arrived_ns - int(delta[at : at + STAMP_LENGTH]) for at in range(0, len(delta), TOKEN_LENGTH)]


def check(text: bytes, *, count: int | None = None, first: int = 0) -> int:
    """Check that a reader's text is the tokens `first`, `first + 1` and so on: none lost, repeated or out of order.

    Args:
        text: All deltas of one reader, joined.
        count: The expected number of tokens. None: any number.
        first: The number of the first token.

    Returns:
        The number of tokens.

    Raises:
        TokensLostError: A token is lost, repeated or out of order.
    """
    got, rest = divmod(len(text), TOKEN_LENGTH)
    if rest:
        raise TokensLostError(f"{len(text)} characters are not a whole number of tokens")
    numbers = _without_stamps(text, got)
    if blake2b(numbers).digest() != _digest(first, got):
        raise TokensLostError(_first_difference(numbers, first))
    if count is not None and got != count:
        raise TokensLostError(f"{got} tokens instead of {count}")
    return got


def _without_stamps(text: bytes, count: int) -> bytes:
    # Column by column: eight slices for a million tokens, instead of a million slices.
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
            return f"token {got.decode(errors='replace')!r} arrived instead of {first + index}"
    raise AssertionError("the digests differ and the texts do not")
