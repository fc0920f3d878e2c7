"""Reads the server's answers: bodies in chunks, and statuses as errors."""

from __future__ import annotations

import re
from typing import Final, NoReturn, final

import httpx
import msgspec

from crucible_trio.client.attempts import Attempts, CutError
from crucible_trio.errors import ServerRefusedError, StreamExpiredError, StreamNotFoundError
from crucible_trio.httpx_bodies import aclose_body

# Size limit of an error's body. This server's errors are far smaller, and the rest of a proxy's error page is useless.
MAX_ERROR_BYTES: Final = 64 * 1024

# Statuses after which a retry may succeed. 500 is one of them: a single failed request must not lose a stream.
RETRYABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})


@final
class ClientBody:
    """A response body in chunks. It can be closed before its end."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_bytes()

    async def receive(self) -> bytes | None:
        """The next chunk. None at a clean end.

        Raises:
            CutError: The body was cut, or the server was silent for too long.
        """
        try:
            return await anext(self._chunks, None)
        except httpx.RequestError as error:
            raise transport_cut(error) from error

    async def read(self, limit: int) -> bytes:
        """The whole body, or its first `limit` bytes."""
        content = b""
        while len(content) < limit and (chunk := await self.receive()) is not None:
            content += chunk
        return content[:limit]

    async def aclose(self) -> None:
        """Close the connection, or give it back to the pool if the body was read to its end.

        Checkpoints: sometimes. Cancellation: the connection is still closed.
        """
        await aclose_body(self._response, self._chunks)


async def send_with_retries(
    http: httpx.AsyncClient, attempts: Attempts, method: str, path: str, *, names_stream: bool, last_seq: int = 0
) -> bytes:
    """Send an idempotent request, and retry until the server answers it.

    Args:
        http: The server.
        attempts: Counts the failures and limits them.
        method: The HTTP method.
        path: Below the client's base URL.
        names_stream: Whether the path names a stream, so that 404 means that stream.
        last_seq: The offset of the reader, for the error if the attempts fail.

    Returns:
        The body of the answer.

    Raises:
        StreamNotFoundError: 404, if the path names a stream.
        StreamExpiredError: 410.
        ServerRefusedError: Another error status.
        StreamLostError: Too many failures.

    Cancellation: the server may have received the request.
    """
    while True:
        try:
            try:
                response = await http.request(method, path, headers={"Accept": "application/json"})
            except httpx.RequestError as error:
                raise transport_cut(error) from error
            if not response.is_success:
                raise_error_status(response, response.content, names_stream=names_stream)
        except CutError as cut:
            await attempts.wait(cut, last_seq)
        else:
            return response.content


def transport_cut(error: httpx.RequestError) -> CutError:
    """The cut that an error of httpx means. It starts with the error's type, because many of them have no text."""
    return CutError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def raise_error_status(response: httpx.Response, content: bytes, *, names_stream: bool) -> NoReturn:
    """Raise the error that a status means.

    Args:
        response: Status and headers.
        content: The body, which may come from a proxy.
        names_stream: Whether the request named a stream by its id.

    Raises:
        CutError: A retry may succeed.
        StreamNotFoundError: 404, if the request named a stream.
        StreamExpiredError: 410.
        ServerRefusedError: Any other status.
    """
    status = response.status_code
    if names_stream and status == httpx.codes.NOT_FOUND:
        raise StreamNotFoundError
    if status == httpx.codes.GONE:
        raise StreamExpiredError
    refusal = _refusal(response, content)
    # The other form of the header, a date, works only if the clocks of client and server agree. It is ignored.
    seconds = response.headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", seconds):
        refusal.retry_after = float(seconds)
    if status not in RETRYABLE_STATUSES:
        raise refusal
    raise CutError(str(refusal), refusal=refusal, wait=refusal.retry_after)


@final
class _ReceivedError(msgspec.Struct, frozen=True):
    code: str
    message: str
    param: str | None = None


@final
class _ReceivedErrorBody(msgspec.Struct, frozen=True):
    error: _ReceivedError


_error_decoder = msgspec.json.Decoder(_ReceivedErrorBody)


def _refusal(response: httpx.Response, content: bytes) -> ServerRefusedError:
    try:
        error = _error_decoder.decode(content).error
    except (msgspec.DecodeError, RecursionError):
        return ServerRefusedError(response.status_code, "http_error", response.reason_phrase)
    return ServerRefusedError(response.status_code, error.code, error.message, error.param)
