"""Read the bytes of one response as a completion, to its judged end. No trio: nothing here waits.

Easy to get wrong:

* The end of the body does not mean success. A body without a finish was cut, however cleanly it ended.
* Text held back must come out before a failure is reported.
* A completed stream with an empty answer, of which something was skipped, has lost its text.
"""

from __future__ import annotations

import re
import sys
from codecs import BOM_UTF8
from typing import Final, final

from crucible_trio.content import Piece
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.chunks import decode_data
from crucible_trio.engines.upstream.completion import DONE, UpstreamCompletion
from crucible_trio.engines.upstream.failures import error_in_chunk, to_engine_error, unwrapped
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.sse import Decoder, ServerSentEvent

# Bytes of a body without events that are kept, to find an error in it.
_MAX_HEAD: Final = 16 * 1024
_LINE_END: Final = re.compile(r"[\r\n]")
# A line of an event stream: a comment, or a field. Neither HTML nor JSON.
_FIELD_LINE: Final = re.compile(r"[A-Za-z_-]*(?::.*)?")


@final
class CompletionReader:
    """Turns the bytes of a body into pieces, then into a `Finish` or a failure.

    Args:
        splitter: Separates a trace inside the content.
        skipped: Counts the skipped values.
        max_event_length: Characters of one event.
        keeps_logprobs: As in `UpstreamCompletion`.
        passed: As in `ChunkReader`.

    Attributes:
        lost: The failure of a completion whose connection was lost before the model ended.
    """

    def __init__(
        self,
        splitter: ThinkSplitter | None,
        skipped: SkippedFields,
        max_event_length: int,
        *,
        keeps_logprobs: bool = False,
        passed: PassedFields | None = None,
    ) -> None:
        self.lost: EngineError | None = None
        self._completion = UpstreamCompletion(skipped, splitter, keeps_logprobs=keeps_logprobs, passed=passed)
        self._skipped = skipped
        self._decoder = Decoder(max_event_length=sys.maxsize)  # would raise before it returns earlier events
        self._max_event_length = max_event_length
        self._head = b""  # of a body without events so far
        self._has_events = False
        self._is_readable = True

    @property
    def is_over(self) -> bool:
        """Whether nothing that may still come can change the result."""
        completion = self._completion
        has_failed = completion.failure is not None or not self._is_readable
        return has_failed or (completion.done and completion.finish_reason is None)

    @property
    def is_final(self) -> bool:
        """Whether the completion is whole even if nothing more comes. Later text can withdraw this."""
        return self._completion.is_final

    @property
    def is_done(self) -> bool:
        """Whether only the end of the body can still come."""
        return self._completion.done

    @property
    def usage(self) -> Usage:
        """The server's token counts so far."""
        return self._completion.usage

    def feed(self, data: bytes) -> list[Piece]:
        """Take the next bytes. Returns the decided pieces in order, none of them empty."""
        events = self._decoder.feed(data)
        if not self._has_events:
            self._has_events = bool(events)
            self._head = b"" if events else (self._head + data)[:_MAX_HEAD]
        pieces = [piece for event in events for piece in self._completion.feed(event)]
        if self._decoder.unfinished_length > self._max_event_length:
            self._is_readable = False
            is_events = self._has_events or _may_begin_events(self._head)
            self._completion.fail(_too_large(self._max_event_length) if is_events else _not_an_event_stream())
        return pieces

    def end(self, *, was_cut: bool, as_promised: bool = False) -> list[Piece]:
        """End the body. Then `finish` has the result. Returns the pieces held back.

        Args:
            was_cut: The connection was lost.
            as_promised: The body's length or its last chunk says that it has ended.
        """
        pieces: list[Piece] = []
        event = self._decoder.finish() if self._is_readable else None
        if event is not None and _is_complete(event):
            self._has_events = True
            pieces = self._completion.feed(event)
        if self._completion.failure is None:
            is_whole = self._completion.is_whole(ended_as_promised=as_promised and not was_cut)
            if not is_whole:
                self._completion.failure = self._not_whole(was_cut=was_cut, as_promised=as_promised)
            elif self._completion.is_empty and self._skipped.may_hold_text:
                message = "The upstream server sent no text that crucible_trio understands. The log names the fields."
                self._completion.failure = EngineError("upstream_invalid_response", message)
        return pieces + self._completion.flush()

    def finish(self) -> Finish:
        """The result, after `end`. Its `stop_string` need not be one of the request's.

        Raises:
            EngineError: The completion has failed or is not whole.
        """
        if self._completion.failure is not None:
            raise self._completion.failure
        completion = self._completion
        reason = completion.finish_reason or "stop"
        return Finish(reason, completion.usage, completion.stop_string if reason == "stop" else None)

    def _not_whole(self, *, was_cut: bool, as_promised: bool) -> EngineError:
        if not self._has_events and (error := self._error_without_events()) is not None:
            return error
        if not self._has_events and self._head and not was_cut and not _may_begin_events(self._head):
            return _not_an_event_stream()
        if was_cut:
            failure = _lost_connection()
            self.lost = failure if self._completion.finish_reason is None else None
            return failure
        if not self._head and not self._has_events:
            return EngineError("upstream_ended_early", "The upstream server sent an empty response.", retryable=True)
        if not self._completion.has_chunks and self._skipped.may_hold_text and as_promised:
            message = "The upstream server's events are not chat completion chunks."
            return EngineError("upstream_invalid_response", message)
        if self._completion.finish_reason is not None:
            message = "The upstream server's response ended early: nothing confirms its finish_reason."
            return EngineError("upstream_ended_early", message, retryable=True)
        message = "The upstream server's response ended without a finish_reason."
        return EngineError("upstream_ended_early", message, retryable=True)

    def _error_without_events(self) -> EngineError | None:
        """The error in a body that is JSON: some servers report one under status 200."""
        try:
            body = decode_data(self._head.decode("utf-8", "replace"))
        except ValueError:
            return None
        body = unwrapped(body)
        error = error_in_chunk(body) if isinstance(body, dict) else None
        return None if error is None else to_engine_error(None, error)


def _is_complete(event: ServerSentEvent) -> bool:
    """Whether an event without its end is whole: a torn one is not JSON."""
    data = event.data or ""
    if event.event == "error" or data.strip() == DONE:
        return True
    try:
        return isinstance(decode_data(data), dict)
    except ValueError:
        return False


def _may_begin_events(body: bytes) -> bool:
    """Whether a body without a whole event was an event stream: only comments, or cut inside its first event."""
    if BOM_UTF8.startswith(body):
        return True
    return all(_FIELD_LINE.fullmatch(line) for line in _LINE_END.split(body.decode("utf-8-sig", "replace")))


def _lost_connection() -> EngineError:
    message = "The connection to the upstream server was lost before the completion ended."
    return EngineError("upstream_ended_early", message, retryable=True)


def _too_large(max_event_length: int) -> EngineError:
    message = f"The upstream server sent an event that is too large: more than {max_event_length} characters."
    return EngineError("upstream_invalid_response", message)


def _not_an_event_stream() -> EngineError:
    return EngineError("upstream_invalid_response", "The upstream server's response is not an event stream.")
