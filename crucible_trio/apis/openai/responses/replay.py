"""One reader's view of a response, from any event on, and the response object.

A client resumes by `starting_after`, the `sequence_number` of the last event that it has.
"""

from __future__ import annotations

import trio

from crucible_trio.apis.kit.replay import FOLD_BYTES, NumberedDialect, open_after
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.apis.openai.responses.fold import ResponseFold
from crucible_trio.apis.openai.responses.objects import EchoedFields, ResponseObject
from crucible_trio.errors import CursorAheadError, InvalidRequestError
from crucible_trio.log.contract import LogReader
from crucible_trio.records import decode_frame


async def open_dialect(
    log: LogReader, echoed: EchoedFields, starting_after: int | None = None, seal: Seal | None = None
) -> NumberedDialect:
    """Open one reader's view of a response.

    Args:
        log: The log.
        echoed: The request's fields that the response repeats.
        starting_after: The `sequence_number` of the last event that the client has. None for none.
        seal: Signs the traces (`ResponseFold`).

    Raises:
        InvalidRequestError: The response has no such event yet.

    Checkpoints: while it folds earlier records, so that a long log does not block other tasks. Cancellation: safe.
    """
    try:
        return await open_after(log, ResponseFold(echoed, seal), starting_after)
    except CursorAheadError as error:
        message = f"starting_after is beyond the last event, {error.head}"
        raise InvalidRequestError(message, "starting_after") from error


async def response_object(log: LogReader, echoed: EchoedFields, seal: Seal | None = None) -> ResponseObject:
    """The response, from the records that the log has when this returns.

    Checkpoints: between the parts of a long log. Cancellation: safe.
    """
    fold = ResponseFold(echoed, seal)
    offset = 0
    while frames := log.read(offset, FOLD_BYTES):
        if offset:
            await trio.lowlevel.checkpoint()
        for frame in frames:
            fold.feed(decode_frame(frame))
        offset += len(frames)
    return fold.response()
