"""One reader's view of a response, from any event on, and the response object.

A client resumes by `starting_after`, the `sequence_number` of the last event that it has. Event numbers depend on the
log only. So the view folds the log from record 1 until it reaches that event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, final

import trio

from crucible_trio.apis.openai.dialect import OpenAIDialect
from crucible_trio.apis.openai.responses.events import encode_event
from crucible_trio.apis.openai.responses.fold import ResponseFold
from crucible_trio.apis.openai.responses.objects import EchoedFields, ResponseObject
from crucible_trio.apis.openai.responses.sealed import Seal
from crucible_trio.errors import InvalidRequestError
from crucible_trio.log.contract import LogReader
from crucible_trio.records import decode_frame

# How much is folded between two checkpoints.
_FOLD_BYTES: Final = 64 * 1024


async def open_dialect(
    log: LogReader, echoed: EchoedFields, starting_after: int | None = None, seal: Seal | None = None
) -> ResponsesDialect:
    """Open one reader's view of a response.

    Args:
        log: The log.
        echoed: The request's fields that the response repeats.
        starting_after: The `sequence_number` of the last event that the client has. None for none.
        seal: Signs the traces (`ResponseFold`).

    Returns:
        The view. One record can have several events. If the client has some of them, `resume_offset` lies before this
        record, and the view leaves out the events that the client has.

    Raises:
        InvalidRequestError: The response has no such event yet.

    Checkpoints: while it folds earlier records, so that a long log does not block other tasks. Cancellation: safe.
    """
    fold = ResponseFold(echoed, seal)
    if starting_after is None:
        return ResponsesDialect(fold, 0)
    offset = 0
    while fold.next_number <= starting_after:
        frames = log.read(offset, _FOLD_BYTES)
        if not frames:
            # A reader elsewhere may have it before it is acknowledged here.
            await log.reached(offset + 1)
            frames = log.read(offset, _FOLD_BYTES)
        if not frames:
            message = f"starting_after is beyond the last event, {fold.next_number - 1}"
            raise InvalidRequestError(message, "starting_after")
        for frame in frames:
            events = fold.feed(decode_frame(frame))
            if fold.next_number > starting_after + 1:
                missing = [event for event in events if event.sequence_number > starting_after]
                return ResponsesDialect(fold, offset, b"".join(map(encode_event, missing)))
            offset += 1
            if fold.next_number > starting_after:
                break
        await trio.lowlevel.checkpoint()
    return ResponsesDialect(fold, offset)


async def response_object(log: LogReader, echoed: EchoedFields, seal: Seal | None = None) -> ResponseObject:
    """The response, from the records that the log has when this returns.

    Checkpoints: between the parts of a long log. Cancellation: safe.
    """
    fold = ResponseFold(echoed, seal)
    offset = 0
    while frames := log.read(offset, _FOLD_BYTES):
        if offset:
            await trio.lowlevel.checkpoint()
        for frame in frames:
            fold.feed(decode_frame(frame))
        offset += len(frames)
    return fold.response()


@final
class ResponsesDialect(OpenAIDialect):
    """The events of a response.

    Args:
        fold: Has folded the records up to the offset, and one more if there is a rest.
        resume_offset: Where the view begins.
        rest: Events of the first record, if it has been folded: those that the client lacks.
    """

    def __init__(self, fold: ResponseFold, resume_offset: int, rest: bytes | None = None) -> None:
        super().__init__(resume_offset)
        self._fold = fold
        self._rest = rest

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Fold the records (`Dialect`)."""
        return b"".join(self._each(frames))

    def keep_alive(self) -> bytes:
        """The event `response.in_progress` again (`Dialect`).

        Clients with a watchdog count events, and not comments. The event has the number of the one before it, and no
        place in the log. It is known to all SDKs, which do not know events for this purpose.
        """
        return encode_event(self._fold.in_progress())

    def _each(self, frames: Sequence[bytes]) -> Iterator[bytes]:
        for frame in frames:
            if self._rest is not None:
                rest, self._rest = self._rest, None
                yield rest
            else:
                yield b"".join(map(encode_event, self._fold.feed(decode_frame(frame))))
