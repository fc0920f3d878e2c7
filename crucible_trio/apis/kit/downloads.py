"""Counts the large answers that are being written, within one limit for all of them together.

A client that does not read leaves its whole answer in memory until the write deadline. So an answer that can be asked
for again is refused beyond the limit. The answer to a start has taken a model's work, so it counts and is written, but
beyond the limit nothing starts.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self, final

from quart import Response
from quart.wrappers.response import DataBody, ResponseBody

from crucible_trio.errors import OverloadedError
from crucible_trio.metrics import Metrics

LARGE_BYTES: Final = 64 * 1024
"""Only answers with more bytes count. A smaller one takes no more than other memory of its connection."""

_PIECE_BYTES: Final = 64 * 1024
_TOO_MANY: Final = "the server is sending too many large responses at the same time"


@final
class Downloads:
    """Counts the bytes of all large answers, in `Metrics.download_bytes`.

    Args:
        limit: The largest number of bytes.
        metrics: Where they are counted.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics

    def check_room(self) -> None:
        """Check that the answers do not pass the limit already, before a model works for another one.

        Raises:
            OverloadedError: They do.
        """
        if self._metrics.download_bytes > self._limit:
            raise OverloadedError(_TOO_MANY)

    def reserve(self, size: int) -> Download:
        """Count an answer that can be refused.

        Raises:
            OverloadedError: All answers together would pass the limit. One alone may be larger.
        """
        used = self._metrics.download_bytes
        if used and used + size > self._limit:
            raise OverloadedError(_TOO_MANY)
        return self.count(size)

    def count(self, size: int) -> Download:
        """Count an answer that cannot be refused."""
        return Download(self._metrics, size)


@final
class Download:
    """The bytes of one answer. They count until `close`, or until nothing refers to this object."""

    def __init__(self, metrics: Metrics, size: int) -> None:
        metrics.download_bytes += size
        # The server may drop a response before it enters the body, so no `__aexit__` would run.
        self._finalizer = weakref.finalize(self, _free, metrics, size)

    def close(self) -> None:
        """Count the bytes no more. May be repeated."""
        self._finalizer()


def _free(metrics: Metrics, size: int) -> None:
    metrics.download_bytes -= size


def limit_body(response: Response, downloads: Downloads, *, can_refuse: bool) -> None:
    """Count the body of a whole answer if it is large, and have it written in pieces.

    Args:
        response: The answer. An event stream is left as it is.
        downloads: Where it counts.
        can_refuse: Whether the client can ask again.

    Raises:
        OverloadedError: All answers together would pass the limit.
    """
    body = response.response
    if not isinstance(body, DataBody) or body.end - body.begin <= LARGE_BYTES:
        return
    size = body.end - body.begin
    download = downloads.reserve(size) if can_refuse else downloads.count(size)
    response.response = _LargeBody(memoryview(body.data)[body.begin : body.end], download)


@final
class _LargeBody(ResponseBody):
    """A whole answer in pieces. Written at once, every layer of the server would have a copy of all of it."""

    def __init__(self, data: memoryview, download: Download) -> None:
        self._data = data
        self._download = download

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._download.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._data:
            raise StopAsyncIteration
        piece, self._data = self._data[:_PIECE_BYTES], self._data[_PIECE_BYTES:]
        return bytes(piece)
