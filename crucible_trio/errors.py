"""Every error that this package raises on purpose.

All have one base class. A handler finds the facts in attributes, never only in the message. Using an object that has
ended raises `trio.ClosedResourceError`.
"""

from __future__ import annotations

import traceback
from typing import Final, final

import msgspec

# A prompt that is too long, or a field that the model does not accept. Other statuses, such as 401, 404 or 429, concern
# one server.
_BLAMES_REQUEST: Final = frozenset({400, 413, 422})


class CrucibleError(Exception):
    """Base of every error raised on purpose."""


@final
class ConfigError(CrucibleError, ValueError):
    """A setting is wrong, or the program lacks something it needs. The command exits with code 2.

    Attributes:
        settings: The settings at fault, whose sources the commands add to the message. Empty if there are none.
    """

    def __init__(self, message: str, *settings: str) -> None:
        super().__init__(message)
        self.settings = settings


@final
class EventTooLargeError(CrucibleError):
    """An event is longer than the reader accepts.

    Attributes:
        limit: The longest accepted event, in characters.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event is longer than {limit} characters")
        self.limit = limit


@final
class InvalidRequestError(CrucibleError, ValueError):
    """The request is invalid, or asks for something that this server cannot do.

    Attributes:
        param: The field at fault, as a dotted path. None when the whole request is.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RefusedError(CrucibleError):
    """A limit refuses something new for now. Running streams go on."""


@final
class OwnerLimitError(RefusedError):
    """The owner has as many running streams as one owner may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"you already have {limit} running streams")


@final
class OverloadedError(RefusedError):
    """All owners together have used up a limit."""


@final
class DrainingError(RefusedError):
    """The pipeline is shutting down and starts nothing new."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


@final
class LogUnavailableError(RefusedError):
    """The server that holds the logs cannot be reached or is full, or a newer version has written this log."""

    def __init__(self, message: str = "the event log cannot be reached") -> None:
        super().__init__(message)


@final
class LogLostError(CrucibleError):
    """The log of a running stream is lost, so its readers cannot get an end."""

    def __init__(self) -> None:
        super().__init__("the event log of this stream is lost")


@final
class TooManyReadersError(RefusedError):
    """The stream has as many readers as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the stream already has {limit} readers")


@final
class IdempotencyConflictError(CrucibleError):
    """The idempotency key was used with another request."""

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key was used with another request")


@final
class StreamNotFoundError(CrucibleError, LookupError):
    """There is no such stream, or another owner has it. The two look alike."""

    def __init__(self) -> None:
        super().__init__("no such stream")


class CursorError(CrucibleError):
    """The offset does not lead to a readable place in a log."""


@final
class InvalidLastEventIdError(CursorError, ValueError):
    """The text is not an event id that this server can have sent."""

    def __init__(self, message: str = "not an event id of this stream") -> None:
        super().__init__(message)


@final
class CursorAheadError(CursorError, ValueError):
    """The offset is beyond the log's head. The id is wrong or forged, so waiting would not help.

    Attributes:
        after: The offset asked for.
        head: The number of the last record.
    """

    def __init__(self, after: int, head: int) -> None:
        super().__init__(f"offset {after} is beyond the last record, {head}")
        self.after = after
        self.head = head


@final
class StreamExpiredError(CursorError, LookupError):
    """The stream existed and belonged to the owner. Its retention is over."""

    def __init__(self) -> None:
        super().__init__("the stream has expired")


@final
class UpstreamReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error in the words of the upstream server. It may quote the prompt, so it must never be logged.

    Attributes:
        message: The server's sentence.
        type: Its coarse kind, such as `invalid_request_error`.
        code: Its fine kind, such as `context_length_exceeded`.
        param: The field at fault.
    """

    message: str | None = None
    type: str | None = None
    code: str | None = None
    param: str | None = None


@final
class EngineError(CrucibleError):
    """An engine raises it to end its stream as `failed`, with a code and a message for the client.

    Attributes:
        code: A short identifier for programs, such as `upstream_timeout`.
        message: One sentence for people. The client and the log get it, so it names no secrets and quotes no prompt.
        retryable: Whether the same request may succeed later.
        status: The HTTP status of an upstream server. None if no status came.
        retry_after: Seconds after which the upstream server wants to be asked again. None if it does not say.
        upstream: The upstream server's own words, for the client only. They are not part of `str(error)`.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        status: int | None = None,
        retry_after: float | None = None,
        upstream: UpstreamReport | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.status = status
        self.retry_after = retry_after
        self.upstream = upstream

    @property
    def blames_request(self) -> bool:
        """Whether an upstream server says that the request is wrong, so that another server would say the same."""
        return self.status in _BLAMES_REQUEST or (self.status is None and self.code == "upstream_rejected")


@final
class ServerRefusedError(CrucibleError):
    """The client raises it when the server answers with an error status.

    Attributes:
        status: The HTTP status.
        code: The code in the body, or `http_error` when the body is not from this server.
        message: The message in the body.
        param: The field of the request that the body blames. None if it blames none.
        retry_after: Seconds after which the server wants to be asked again. None if it does not say.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after: float | None = None


@final
class StreamLostError(CrucibleError):
    """The client raises it when it cannot reach the stream again, or the stream breaks the protocol.

    Attributes:
        last_seq: The last record that arrived. Everything up to it is complete.
    """

    def __init__(self, message: str, last_seq: int) -> None:
        super().__init__(message)
        self.last_seq = last_seq


def trace_without_text(error: BaseException) -> str:
    """Where an error happened, for a log: types and frames, never the message, which may quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    trace = f"{frames}{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        trace = "\n".join([trace, *map(trace_without_text, error.exceptions)])
    return trace
