"""Sends requests to the server, and reads its answers: bodies in chunks, and statuses as errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NoReturn, final

import msgspec
import trio

from crucible_trio.client.attempts import Attempts, CutError
from crucible_trio.errors import ServerRefusedError, StreamExpiredError, StreamNotFoundError
from crucible_trio.http import HttpClient, HttpError, HttpResponse, Url

# Size limits of bodies. This server's errors are far smaller, and the rest of a proxy's error page is useless. A
# snapshot has all the text of a stream.
MAX_ERROR_BYTES: Final = 64 * 1024
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024

# Statuses after which a retry may succeed. 500 is one of them: a single failed request must not lose a stream.
RETRYABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRequest:
    """One request, which may be sent more than once.

    Attributes:
        method: The HTTP method.
        path: Below the client's base URL, without a leading slash.
        query: Percent-encoded.
        headers: Besides those of the client.
        content: The body.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = field(default=b"", repr=False)  # it has the prompt


@final
class ServerLink:
    """Sends requests to one server. A server that is silent for too long counts as lost.

    Args:
        http: The server.
        base: Its base URL.
        silence_seconds: The longest time without a byte.
    """

    def __init__(self, http: HttpClient, base: Url, silence_seconds: float) -> None:
        self._http = http
        self._base = base
        self._silence_seconds = silence_seconds

    async def send(self, request: ClientRequest) -> ClientResponse:
        """Send a request and wait for the status.

        Raises:
            CutError: There is no response.

        Cancellation: the server may have received the request.
        """
        url = self._base.join(request.path, request.query)
        try:
            with trio.fail_after(self._silence_seconds):
                response = await self._http.send(request.method, url, headers=request.headers, content=request.content)
        except HttpError as error:
            raise transport_cut(error) from error
        except trio.TooSlowError:
            raise _silence(self._silence_seconds) from None
        return ClientResponse(response, self._silence_seconds)


@final
class ClientResponse:
    """A response and its body in chunks. It can be closed before its end.

    Attributes:
        http: Status and headers.
    """

    def __init__(self, response: HttpResponse, silence_seconds: float) -> None:
        self.http = response
        self._silence_seconds = silence_seconds

    async def receive(self) -> bytes:
        """The next chunk. Empty at a clean end.

        Raises:
            CutError: The body was cut, or the server was silent for too long.
        """
        try:
            with trio.fail_after(self._silence_seconds):
                return await self.http.read()
        except HttpError as error:
            raise transport_cut(error) from error
        except trio.TooSlowError:
            raise _silence(self._silence_seconds) from None

    async def read(self, limit: int) -> bytes:
        """The whole body, or its first `limit` bytes."""
        parts = []
        while limit > 0 and (chunk := await self.receive()):
            parts.append(chunk[:limit])
            limit -= len(chunk)
        return b"".join(parts)

    async def aclose(self) -> None:
        """Close the connection, or give it back to the pool if the body was read to its end.

        Checkpoints: sometimes. Cancellation: the connection is still closed.
        """
        await self.http.aclose()


async def send_with_retries(
    server: ServerLink, attempts: Attempts, method: str, path: str, *, names_stream: bool, last_seq: int = 0
) -> bytes:
    """Send an idempotent request, and retry until the server answers it.

    Args:
        server: The server.
        attempts: Counts the failures and limits them.
        method: The HTTP method.
        path: Below the client's base URL, without a leading slash.
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
    request = ClientRequest(method=method, path=path, headers={"Accept": "application/json"})
    while True:
        try:
            response = await server.send(request)
            try:
                content = await response.read(MAX_ANSWER_BYTES)
            finally:
                await response.aclose()
            if not response.http.is_success:
                raise_error_status(response.http, content, names_stream=names_stream)
        except CutError as cut:
            await attempts.wait(cut, last_seq)
        else:
            return content


def transport_cut(error: HttpError) -> CutError:
    """The cut that an error of the HTTP client means."""
    return CutError(str(error))


def _silence(seconds: float) -> CutError:
    return CutError(f"the server was silent for {seconds:g} s")


def raise_error_status(response: HttpResponse, content: bytes, *, names_stream: bool) -> NoReturn:
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
    status = response.status
    if names_stream and status == HTTPStatus.NOT_FOUND:
        raise StreamNotFoundError
    if status == HTTPStatus.GONE:
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


def _refusal(response: HttpResponse, content: bytes) -> ServerRefusedError:
    try:
        error = _error_decoder.decode(content).error
    except (msgspec.DecodeError, RecursionError):
        return ServerRefusedError(response.status, "http_error", response.reason)
    return ServerRefusedError(response.status, error.code, error.message, error.param)
