"""One reader's view of a log in this API, from any event on, and the response as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, final

import trio

from crucible_trio.dialects import Dialect
from crucible_trio.dialects.responses.events import encode_event
from crucible_trio.dialects.responses.fold import ResponseFold
from crucible_trio.dialects.responses.objects import Asked, Response
from crucible_trio.errors import InvalidRequestError
from crucible_trio.log import MemoryLog
from crucible_trio.records import decode_frame

# What is folded at a time where a log is folded from its beginning.
_FOLD_BYTES: Final = 64 * 1024


async def open_view(log: MemoryLog, asked: Asked, starting_after: int | None = None) -> tuple[Dialect, int]:
    """A reader's view of a log, ready for the event after the one the client has.

    Args:
        log: The log.
        asked: What the request said.
        starting_after: The `sequence_number` of the last event the client has; None for none.

    Returns:
        The view, and the position in the log from which it is to be fed. One record can have several events: when the
        client has some of them, the position lies before the record and the view leaves those out.

    Raises:
        InvalidRequestError: There has been no such event so far.

    Checkpoints: where it folds what came before, so that a long log holds nobody up. Cancellation: safe.
    """
    fold = ResponseFold(asked)
    if starting_after is None:
        return _View(fold), 0
    position = 0
    while fold.next_number <= starting_after:
        frames = log.read(position, _FOLD_BYTES)
        if not frames:
            message = f"starting_after is beyond the last event, {fold.next_number - 1}"
            raise InvalidRequestError(message, "starting_after")
        for frame in frames:
            events = fold.feed(decode_frame(frame))
            if fold.next_number > starting_after + 1:
                missing = [event for event in events if event.sequence_number > starting_after]
                return _View(fold, b"".join(map(encode_event, missing))), position
            position += 1
            if fold.next_number > starting_after:
                break
        await trio.lowlevel.checkpoint()
    return _View(fold), position


async def snapshot(log: MemoryLog, asked: Asked) -> Response:
    """The response as it stands: what the log held at the moment this returns.

    Checkpoints: between pieces of a long log. Cancellation: safe.
    """
    fold = ResponseFold(asked)
    position = 0
    while frames := log.read(position, _FOLD_BYTES):
        if position:
            await trio.lowlevel.checkpoint()
        for frame in frames:
            fold.feed(decode_frame(frame))
        position += len(frames)
    return fold.response()


@final
class _View:
    resumes: ClassVar = False

    def __init__(self, fold: ResponseFold, rest: bytes | None = None) -> None:
        self._fold = fold
        self._rest = rest  # of the next record, which has been folded: the events that the client lacks

    def feed(self, frames: Sequence[bytes]) -> bytes:
        return b"".join(self._each(frames))

    def _each(self, frames: Sequence[bytes]) -> Iterator[bytes]:
        for frame in frames:
            if self._rest is not None:
                rest, self._rest = self._rest, None
                yield rest
            else:
                yield b"".join(map(encode_event, self._fold.feed(decode_frame(frame))))
