"""Relay one response of an upstream server: the stream of a completion, or an error.

Easy to get wrong:

* Backpressure: while the buffer is full, nothing is read and the upstream's socket fills. So a slow client slows the
  upstream down.
* A finish reason starts a timeout. Text after it withdraws both.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

import msgspec
import trio

from crucible_trio.content import Piece
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.continuing import ContinuedAnswer
from crucible_trio.engines.upstream.failures import find_error, to_engine_error
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.reading import CompletionReader
from crucible_trio.engines.upstream.retries import parse_retry_after
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.engines.upstream.writing import PieceWriter
from crucible_trio.errors import EngineError
from crucible_trio.http import BodySink, HttpError, HttpResponse
from crucible_trio.output import Output

logger = logging.getLogger(__name__)

# Seconds. After a final finish only usage and `[DONE]` are missing. A server that never sends them must not hold back
# the end of a complete answer. The time is long because a server that calls its own tools pauses after a finish
# reason, and then goes on with text. After `[DONE]` only the end of the body is missing, which makes the connection
# reusable.
USAGE_TIMEOUT: Final = 30.0
END_TIMEOUT: Final = 0.5

# Characters of one event. A chunk usually has a few tokens, but some servers send a whole answer in one.
MAX_CHUNK_LENGTH: Final = 4 * 1024 * 1024

# Bytes of an answer that is passed on whole. 2,048 embeddings of 1,024 numbers in JSON take about 25 MB.
MAX_PASSED_BODY: Final = 32 * 1024 * 1024

# Bytes and seconds spent on the body of an error response, to find its identifier. A body that does not end must not
# outlast the hold: the client would lose the status.
_MAX_ERROR_BODY = 16 * 1024
_ERROR_BODY_TIMEOUT = 0.5


class UpstreamBody(Protocol):
    """The bytes of one response, such as an `HttpResponse`.

    Attributes:
        has_promised_end: Whether the response says where its body ends. Otherwise it ends with the connection, and a
            cut looks like an end.
    """

    has_promised_end: bool

    async def read(self) -> bytes:
        """Wait for the next bytes. Empty at the end. Cancellation: nothing is lost."""

    async def pass_on(self, sink: BodySink) -> bool:
        """Give the bytes to a sink as they come, until it wants no more. Returns whether the body has ended."""


async def relay_completion(
    body: UpstreamBody,
    output: Output,
    splitter: ThinkSplitter | None,
    skipped: SkippedFields,
    answer: ContinuedAnswer | None = None,
    *,
    keeps_logprobs: bool = False,
    passed: PassedFields | None = None,
) -> Finish:
    """Write the completion in a body to `output`, each piece as it arrives.

    Cancellation: text held back is not written.

    Args:
        body: The body.
        output: Takes the pieces.
        splitter: Separates a trace inside the content.
        skipped: Counts the skipped values.
        answer: Decides what of the completion goes on with an answer, and learns whether the connection is lost.
        keeps_logprobs: Whether the log probabilities of the answer's tokens are written.
        passed: Decides which fields are written without being interpreted. None: none are.

    Raises:
        EngineError: `upstream_ended_early`, `upstream_invalid_response`, `upstream_error`, `upstream_rejected`,
            `upstream_refused`.
    """
    reader = CompletionReader(splitter, skipped, MAX_CHUNK_LENGTH, keeps_logprobs=keeps_logprobs, passed=passed)
    try:
        async with PieceWriter(output) as writer:
            was_cut, as_promised = await _read_completion(body, reader, writer, answer)
            pieces = reader.end(was_cut=was_cut, as_promised=as_promised)
            await writer.write(pieces if answer is None else answer.pass_on(pieces))
            finish = reader.finish()
            if answer is not None:
                await writer.write(answer.end())
    except EngineError as error:
        logger.warning("%s", error)
        if answer is not None and error is reader.lost:
            answer.lose(reader.usage, may_lack_text=skipped.may_hold_text)
        raise
    finally:
        skipped.log(logger)
    return finish


async def read_error_response(response: HttpResponse) -> tuple[EngineError, bytes]:
    """Translate a response with an error status. Its body need not be JSON and need not end.

    Returns:
        The error, and the beginning of the body.
    """
    content = b""
    with trio.move_on_after(_ERROR_BODY_TIMEOUT), suppress(HttpError):
        while len(content) < _MAX_ERROR_BODY and (chunk := await response.read()):
            content += chunk
    retry_after = parse_retry_after(response.headers.get("Retry-After", ""))
    return to_engine_error(response.status, find_error(content), retry_after=retry_after), content


async def read_json(body: UpstreamBody) -> bytes:
    """Read the whole body of a response in JSON.

    Raises:
        EngineError: `upstream_invalid_response`: it is not JSON, or too long. `upstream_ended_early`: it was cut.
    """
    content = bytearray()
    try:
        while chunk := await body.read():
            content += chunk
            if len(content) > MAX_PASSED_BODY:
                raise EngineError("upstream_invalid_response", "The upstream server's response is too long.")
    except HttpError as error:
        logger.info("the upstream server's response was cut: %s", error)
        message = "The connection to the upstream server was lost before the response ended."
        raise EngineError("upstream_ended_early", message, retryable=True) from error
    try:
        msgspec.json.decode(content, type=msgspec.Raw)  # reads every byte and builds nothing
    except (ValueError, RecursionError) as error:
        raise EngineError("upstream_invalid_response", "The upstream server's response is not JSON.") from error
    return bytes(content)


async def _read_completion(
    body: UpstreamBody, reader: CompletionReader, writer: PieceWriter, answer: ContinuedAnswer | None
) -> tuple[bool, bool]:
    """Read until the result is certain. Returns whether the body was cut, and whether it ended as it promised."""
    deadline = math.inf
    sink = _CompletionSink(reader, writer, answer)
    while not reader.is_over:
        has_ended = is_too_late = False
        sink.has_deadline = deadline != math.inf
        try:
            if deadline == math.inf:
                has_ended = await body.pass_on(sink)
            else:
                with trio.CancelScope(deadline=deadline) as scope:
                    has_ended = await body.pass_on(sink)
                is_too_late = scope.cancelled_caught
        except HttpError as error:
            logger.info("the upstream server's response was cut: %s", error)
            return True, False
        if has_ended or is_too_late:
            return False, body.has_promised_end and not is_too_late
        await writer.write(sink.unwritten)
        if not reader.is_final:
            deadline = math.inf
        else:
            patience = END_TIMEOUT if reader.is_done else USAGE_TIMEOUT
            deadline = min(deadline, trio.current_time() + patience)
    return False, False


class _CompletionSink:
    """Writes a completion as it comes, without the engine's task, until a piece or the end needs the task.

    Attributes:
        unwritten: The pieces that the task must write.
        has_deadline: Whether a deadline runs. Then every chunk goes back to the task, because text withdraws it.
    """

    def __init__(self, reader: CompletionReader, writer: PieceWriter, answer: ContinuedAnswer | None) -> None:
        self.unwritten: Iterable[Piece] = ()
        self.has_deadline = False
        self._reader = reader
        self._writer = writer
        self._answer = answer

    def take(self, data: bytes) -> bool:
        reader = self._reader
        pieces = iter(reader.feed(data))
        if self._answer is not None:
            pieces = self._answer.pass_on(pieces)
        piece = self._writer.write_nowait(pieces)
        self.unwritten = () if piece is None else itertools.chain([piece], pieces)
        return piece is None and not self.has_deadline and not reader.is_final and not reader.is_over
