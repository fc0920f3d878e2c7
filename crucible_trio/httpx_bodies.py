"""What httpx leaves lying about on trio when a body is not read, or not sent, to its end.

httpx passes bodies through nested async generators. When the outermost is closed, or its task cancelled, the others are
left to the garbage collector; trio warns of each, and finishes them in system tasks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, Self, final

import httpx
import trio

# Closing a socket does not wait; this is for the surprise.
_CLOSE_SECONDS: Final = 1.0


async def aclose_body(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Give the connection back, or close it if the body has not ended, and leave no generator behind.

    Args:
        response: One that was sent with `stream=True`.
        chunks: The iterator its body is read by.

    Checkpoints: perhaps. Cancellation: the connection is closed all the same.
    """
    # Only an exception out of the innermost generator ends them all, and a cancelled read raises one.
    with trio.CancelScope() as scope, suppress(httpx.RequestError, httpx.StreamError):
        scope.cancel()
        async for _ in chunks:
            pass
    with trio.move_on_after(_CLOSE_SECONDS, shield=True):
        await response.aclose()


@final
class Content(httpx.AsyncByteStream):
    """The body of a request, in one piece, that can be cancelled while it is sent; may be sent again."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


@final
class _Once:
    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._content is None:
            raise StopAsyncIteration
        content, self._content = self._content, None
        return content
