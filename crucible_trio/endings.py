"""How a stream can end. An ending makes the terminal record once its number and the timings are known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, TypeAlias, get_args

import msgspec

from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError, trace_without_text
from crucible_trio.recorder import bounded_error
from crucible_trio.records import (
    CancelledBy,
    IncompleteReason,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    Usage,
)

logger = logging.getLogger(__name__)

# Takes `seq` and `timings`.
Ending: TypeAlias = Callable[..., Terminal]

# Finish reasons with which an engine says that a limit ended its stream. One that reads another server's streams passes
# on that server's reason.
_INCOMPLETE: Final[Mapping[str, IncompleteReason]] = {
    "length": "max_output_tokens",
    **{reason: reason for reason in get_args(IncompleteReason)},
}

# Both may come from an upstream, and the terminal record has a bounded size.
_MAX_FINISH_REASON_LENGTH: Final = 64
_MAX_STOP_STRING_LENGTH: Final = 256


def finished(finish: object) -> Ending:
    """The engine returned.

    Raises:
        EngineError: It did not return a `Finish`.
    """
    if not isinstance(finish, Finish):
        raise EngineError("engine_protocol", "The engine did not return a Finish.")
    # All three may come from an upstream unchecked. If the terminal record cannot hold them, the engine is at fault.
    usage = msgspec.convert(msgspec.to_builtins(finish.usage), Usage)
    reason = finish.reason.encode(errors="replace").decode()[:_MAX_FINISH_REASON_LENGTH]
    if reason in _INCOMPLETE:
        return partial(StreamIncomplete, reason=_INCOMPLETE[reason], usage=usage)
    return partial(StreamCompleted, finish_reason=reason, usage=usage, stop_string=_clean_stop(finish.stop_string))


def _clean_stop(stop_string: str | None) -> str | None:
    if stop_string is None:
        return None
    return stop_string.encode(errors="replace").decode()[:_MAX_STOP_STRING_LENGTH]


def incomplete(reason: IncompleteReason) -> Ending:
    """A limit was reached."""
    return partial(StreamIncomplete, reason=reason, usage=Usage())


def cancelled(by: CancelledBy) -> Ending:
    """A client, a disconnection or a shutdown cancelled the stream."""
    return partial(StreamCancelled, by=by, usage=Usage())


def failed(stream_id: str, group: ExceptionGroup[Exception]) -> Ending:
    """The engine raised. An `EngineError` goes to the client. Any other error is logged without its text."""
    errors = list(_leaves(group))
    if len(errors) == 1 and isinstance(errors[0], EngineError):
        error = errors[0]
    else:
        logger.error("stream %s: the engine failed\n%s", stream_id, trace_without_text(group))
        error = EngineError("engine_error", "The engine failed.")
    return partial(StreamFailed, error=bounded_error(error), usage=Usage())


def log_lost() -> Ending:
    """The log is lost. No reader gets this record."""
    error = EngineError("log_lost", "The event log of this stream is lost.", retryable=True)
    return partial(StreamFailed, error=bounded_error(error), usage=Usage())


def internal_error() -> Ending:
    """This server failed."""
    error = EngineError("internal_error", "Internal error.")
    return partial(StreamFailed, error=bounded_error(error), usage=Usage())


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
