"""Why a request has no whole response. The messages never quote the server, so they can be logged."""

from __future__ import annotations

from typing import final

from crucible_trio.errors import CrucibleError


class HttpError(CrucibleError):
    """A request has no response, or its response is not whole."""


class ConnectFailedError(HttpError):
    """No connection: the host is unknown or unreachable, its certificate is invalid, or the proxy refused."""


@final
class ConnectTimeoutError(ConnectFailedError):
    """Connecting took too long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no connection within {seconds:g} s")


@final
class ConnectionLostError(HttpError):
    """The server closed the connection, before the response or inside it.

    Attributes:
        received_nothing: Whether not a single byte of the response came.
    """

    def __init__(self, message: str, *, received_nothing: bool = False) -> None:
        super().__init__(message)
        self.received_nothing = received_nothing


@final
class InvalidResponseError(HttpError):
    """The response breaks HTTP, or its headers are too large.

    Attributes:
        has_status: Whether a status came before the fault.
    """

    def __init__(self, message: str, *, has_status: bool = False) -> None:
        super().__init__(message)
        self.has_status = has_status
