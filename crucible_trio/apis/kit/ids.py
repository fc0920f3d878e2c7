"""The ids of streams in APIs whose clients expect another prefix. The random part is the same."""

from __future__ import annotations

import re
from typing import Final

from crucible_trio.errors import StreamNotFoundError

STREAM_PREFIX: Final = "str_"

_RANDOM: Final = re.compile(r"[A-Za-z0-9_-]{22}")


def with_prefix(prefix: str, stream_id: str) -> str:
    """The id of a stream in another API.

    Args:
        prefix: The API's prefix.
        stream_id: The id of the stream here.
    """
    return prefix + stream_id.removeprefix(STREAM_PREFIX)


def stream_id_in(prefix: str, text: str) -> str:
    """The id of the stream that another API's id names.

    Args:
        prefix: The API's prefix.
        text: The id, as a client sent it.

    Raises:
        StreamNotFoundError: This server never makes such an id.
    """
    random = text.removeprefix(prefix)
    if not text.startswith(prefix) or not _RANDOM.fullmatch(random):
        raise StreamNotFoundError
    return STREAM_PREFIX + random
