"""What the server answers: bodies in chunks, and statuses as errors."""

from __future__ import annotations

import re
from typing import Final, NoReturn, final

import httpx
import msgspec

from crucible_trio.client.attempts import Attempts, CutError
from crucible_trio.errors import ServerRefusedError, StreamExpiredError, StreamNotFoundError
from crucible_trio.httpx_bodies import aclose_body

# Of an error's body; ours are far smaller, and a proxy's page is not worth reading.
MAX_ERROR_BYTES: Final = 64 * 1024

# Statuses that a later try may not meet again. 500 is among them: one failed request is no reason to lose a stream.
PASSING_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})


@final
class Body:
    """A response's body, in chunks, that can be closed halfway."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks = response.aiter_bytes()

    async def receive(self) -> bytes | None:
        """The next chunk; None at a clean end.

        Raises:
            CutError: The end was not clean, or nothing came for too long.
        """
        try:
            return await anext(self._chunks, None)
        except httpx.RequestError as error:
            raise transport_cut(error) from error

    async def read(self, limit: int) -> bytes:
        """Everything; at `limit` bytes the rest is left out."""
        content = b""
        while len(content) < limit and (chunk := await self.receive()) is not None:
            content += chunk
        return content[:limit]

    async def aclose(self) -> None:
        """Close the connection, unless the body has been read to its end.

        Checkpoints: perhaps. Cancellation: the connection is closed all the same.
        """
        await aclose_body(self._response, self._chunks)


async def ask(
    http: httpx.AsyncClient, attempts: Attempts, method: str, path: str, *, names_stream: bool, last_seq: int = 0
) -> bytes:
    """Send a request that does no harm when it is sent twice, until it is answered.

    Args:
        http: The server.
        attempts: How often to try.
        method: Of HTTP.
        path: Below the client's base URL.
        names_stream: Whether 404 speaks of a stream.
        last_seq: For the error, when no answer comes.
    """
    while True:
        try:
            try:
                response = await http.request(method, path, headers={"Accept": "application/json"})
            except httpx.RequestError as error:
                raise transport_cut(error) from error
            if not response.is_success:
                refuse(response, response.content, names_stream=names_stream)
        except CutError as cut:
            await attempts.wait(cut, last_seq)
        else:
            return response.content


def transport_cut(error: httpx.RequestError) -> CutError:
    """What a failed transport means to us; many of httpx's errors have no text."""
    return CutError(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def refuse(response: httpx.Response, content: bytes, *, names_stream: bool) -> NoReturn:
    """Raise what an error status means.

    Args:
        response: Status and headers.
        content: The body; it need not be this server's.
        names_stream: Whether the request named a stream by its id.

    Raises:
        CutError: A later try may succeed.
        StreamNotFoundError: 404, where a stream was named.
        StreamExpiredError: 410.
        ServerRefusedError: Every other status.
    """
    status = response.status_code
    if names_stream and status == httpx.codes.NOT_FOUND:
        raise StreamNotFoundError
    if status == httpx.codes.GONE:
        raise StreamExpiredError
    refusal = _refusal(response, content)
    if status not in PASSING_STATUSES:
        raise refusal
    # The header's other form, a date, needs two clocks that agree; our own delay does not.
    seconds = response.headers.get("Retry-After", "")
    raise CutError(str(refusal), refusal=refusal, wait=float(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else None)


@final
class _ErrorInfo(msgspec.Struct, frozen=True):
    code: str
    message: str


@final
class _ErrorBody(msgspec.Struct, frozen=True):
    error: _ErrorInfo


_error_decoder = msgspec.json.Decoder(_ErrorBody)


def _refusal(response: httpx.Response, content: bytes) -> ServerRefusedError:
    try:
        info = _error_decoder.decode(content).error
    except (msgspec.DecodeError, RecursionError):
        return ServerRefusedError(response.status_code, "http_error", response.reason_phrase)
    return ServerRefusedError(response.status_code, info.code, info.message)
