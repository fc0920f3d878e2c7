"""Explain a failed connection or an invalid response, for the log.

An error of httpx or h11 may quote the server, and such a quote must not be logged. So only known fixed texts are used.
"""

from __future__ import annotations

from typing import Final

import httpx

# How the errors of h11 and httpcore begin when a response breaks HTTP. A quote may follow.
_FAULTS: Final = (
    "multiple Transfer-Encoding headers",
    "Only Transfer-Encoding: chunked is supported",
    "conflicting Content-Length headers",
    "bad Content-Length",
    "illegal header line",
    "illegal status line",
    "illegal chunk header",
    "continuation line at start of headers",
    "no response line received",
    "Receive buffer too long",
    "Got data when expecting EOF",
    "malformed chunk footer",
    "peer closed connection without sending complete message body",
    "peer unexpectedly closed connection",
    "Server disconnected without sending a response",
)


def explain_fault(error: httpx.RequestError) -> str:
    """Name the kind of an error. For a failed connection also the root cause, such as a certificate."""
    kind = type(error).__name__
    if isinstance(error, httpx.ConnectError):
        root: BaseException = error
        while (cause := root.__cause__ or root.__context__) is not None:
            root = cause
        if isinstance(root, BaseExceptionGroup):  # one error per address of the host
            root = root.exceptions[0]
        return kind if root is error else f"{kind}, {root}"
    text = str(error)
    fault = next((fault for fault in _FAULTS if text.startswith(fault)), None)
    return kind if fault is None else f"{kind}, {fault}"
