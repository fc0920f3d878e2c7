"""Every error this package raises on purpose.

One base class; what a handler needs to know is an attribute, never only part of the message. Misuse of something that
has ended stays `trio.ClosedResourceError`.
"""

from __future__ import annotations

import traceback
from typing import final


class CrucibleError(Exception):
    """Base of every error raised on purpose."""


@final
class ConfigError(CrucibleError, ValueError):
    """A setting is wrong or something the program needs is missing; the command exits with code 2."""


@final
class InvalidFieldError(CrucibleError, ValueError):
    """A field of a server-sent event holds a character that would forge another field.

    Attributes:
        field: The field's name, `id` or `event`.
    """

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} must not contain CR, LF or NUL")
        self.field = field


@final
class EventTooLargeError(CrucibleError):
    """An event stream sent more without ending an event than the reader accepts.

    Attributes:
        limit: What was accepted, in characters.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"an event is longer than {limit} characters")
        self.limit = limit


@final
class InvalidRequestError(CrucibleError, ValueError):
    """A request asks for something that cannot be done.

    Attributes:
        param: The field at fault, as a dotted path; None when it is the request as a whole.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RefusedError(CrucibleError):
    """A limit refuses something new for now; nothing that runs is touched."""


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
class TooManyReadersError(RefusedError):
    """The stream has as many readers attached as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the stream already has {limit} readers")


@final
class IdempotencyConflictError(CrucibleError):
    """The idempotency key was used before, with another request."""

    def __init__(self) -> None:
        super().__init__("this Idempotency-Key was used with another request")


@final
class StreamNotFoundError(CrucibleError, LookupError):
    """There is no such stream, or it is somebody else's: the two look alike."""

    def __init__(self) -> None:
        super().__init__("no such stream")


class CursorError(CrucibleError):
    """A position does not lead to a readable place in a log."""


@final
class InvalidLastEventIdError(CursorError, ValueError):
    """The text is not an id that this server can have sent."""

    def __init__(self, message: str = "not an event id of this stream") -> None:
        super().__init__(message)


@final
class CursorAheadError(CursorError, ValueError):
    """The position lies beyond the log's head: the id is wrong or forged, so waiting would never help.

    Attributes:
        after: The position asked for.
        head: The last position there is.
    """

    def __init__(self, after: int, head: int) -> None:
        super().__init__(f"position {after} is beyond the last record, {head}")
        self.after = after
        self.head = head


@final
class StreamExpiredError(CursorError, LookupError):
    """The stream existed and was yours; its retention is over."""

    def __init__(self) -> None:
        super().__init__("the stream has expired")


@final
class EngineError(CrucibleError):
    """Raised by an engine to end its stream as `failed` with a code and message of its own choosing.

    Attributes:
        code: A short identifier for programs, such as `upstream_timeout`.
        message: One sentence for people; it is sent to the client, so it names no secrets and quotes no prompt.
        retryable: Whether the same request may succeed later.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable


@final
class ServerRefusedError(CrucibleError):
    """Raised by the client: the server answered with an error status.

    Attributes:
        status: The HTTP status.
        code: The server's own code, or `http_error` when the body was not this server's.
        message: The server's sentence.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message


@final
class StreamLostError(CrucibleError):
    """Raised by the client: the stream could not be reached again, or broke the protocol.

    Attributes:
        last_seq: The last record that arrived; everything up to it is complete.
    """

    def __init__(self, message: str, last_seq: int) -> None:
        super().__init__(message)
        self.last_seq = last_seq


def trace_without_text(error: BaseException) -> str:
    """Where an error happened, for a log: types and frames, never its own text, which may quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    trace = f"{frames}{type(error).__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        trace = "\n".join([trace, *map(trace_without_text, error.exceptions)])
    return trace
