"""The ids of streams in APIs whose clients expect another prefix. The random part is the same."""

from __future__ import annotations

from crucible_trio.errors import StreamNotFoundError
from crucible_trio.records import STREAM_PREFIX, is_stream_id


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
    stream_id = STREAM_PREFIX + text.removeprefix(prefix)
    if not text.startswith(prefix) or not is_stream_id(stream_id):
        raise StreamNotFoundError
    return stream_id
