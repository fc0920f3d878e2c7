"""Closes httpx bodies on trio without leaving tasks or generators behind.

httpx reads and sends bodies through nested async generators. If the outermost one is closed, or its task is cancelled,
the others are left to the garbage collector. trio warns about each of them and finishes them in system tasks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, Self, final

import httpx
import trio

# Closing a socket does not wait. The limit is for the unexpected case.
_CLOSE_SECONDS: Final = 1.0


async def aclose_body(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Close the connection, or give it back to the pool if the body has ended. Leaves no generator behind.

    Args:
        response: A response that was requested with `stream=True`.
        chunks: The iterator that reads its body.

    Checkpoints: sometimes. Cancellation: the connection is still closed.
    """
    # All generators end only if the innermost one raises, and a cancelled read raises there.
    with trio.CancelScope() as scope, suppress(httpx.RequestError, httpx.StreamError):
        scope.cancel()
        async for _ in chunks:
            pass
    with trio.move_on_after(_CLOSE_SECONDS, shield=True):
        await response.aclose()


@final
class RequestContent(httpx.AsyncByteStream):
    """A request body in one chunk. Sending it can be cancelled, and it can be sent again."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _SingleChunk(self._content)


@final
class _SingleChunk:
    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._content is None:
            raise StopAsyncIteration
        content, self._content = self._content, None
        return content
