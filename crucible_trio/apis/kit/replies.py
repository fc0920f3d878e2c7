"""The answers that routes of every API need."""

from __future__ import annotations

import msgspec
from quart import Response
from quart.wrappers.response import ResponseBody

from crucible_trio import sse
from crucible_trio.stream import Stream


def json_response(value: object, status: int = 200) -> Response:
    """An answer in JSON that nobody caches."""
    response = Response(msgspec.json.encode(value), status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def no_content() -> Response:
    """204. The empty bytes matter: with no body at all Quart would make one that needs asyncio."""
    response = Response(b"", 204)
    del response.headers["Content-Type"]
    del response.headers["Content-Length"]
    return response


def event_response(body: ResponseBody | bytes, stream: Stream | None = None) -> Response:
    """An event stream.

    Args:
        body: Its events; empty bytes for an answer to HEAD.
        stream: Whose events they are; None where there is no stream yet.
    """
    response = Response(body, content_type=sse.MEDIA_TYPE)
    response.timeout = None  # Quart's RESPONSE_TIMEOUT would cut a healthy stream without a word
    response.headers.update(
        {
            "Cache-Control": "no-store, no-transform",  # proxies that compress, buffer
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
        }
    )
    response.headers.pop("Content-Length", None)  # of an answer to HEAD: the stream's length is nobody's to know
    if stream is not None:
        response.headers["Crucible-Stream"] = stream.id
    return response


def name_stream(response: Response, url: str, *, joined: bool) -> Response:
    """Say where the stream is that a request has started, or joined by its idempotency key.

    Args:
        response: The answer.
        url: The stream's path in the native API.
        joined: Whether it was there before.
    """
    response.headers["Location"] = url
    if joined:
        response.headers["Crucible-Replayed"] = "true"
    return response
