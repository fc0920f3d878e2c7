"""Receives the bodies of requests.

A route checks the key and the owner before it calls `read_body`, so nobody without a key can take a part of the limit
of all bodies (`Uploads`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio
from quart import Request
from quart.wrappers.request import Body
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import BodyTooLargeError, UnsupportedMediaTypeError
from crucible_trio.apis.kit.uploads import Upload

T = TypeVar("T")

BODY_SECONDS: Final = 60.0
"""The longest time a request's body may take. A stalled upload holds its part of the limit no longer than this."""


async def read_body(request: Request, context: ApiContext, parse: Callable[[memoryview], T]) -> T:
    """Receive and parse a JSON body. The body is freed when this returns.

    Args:
        request: The request. Its client has shown that it may send one.
        context: For the limits.
        parse: Parses the body, and keeps no reference to it.

    Returns:
        What `parse` returns.

    Raises:
        UnsupportedMediaTypeError: The content type is not JSON, or the body is compressed.
        BodyTooLargeError: The body is larger than the limit for one body. If its declared length is, nothing is read.
        OverloadedError: All bodies together are larger than their limit, or so are all answers.
        RequestTimeout: The body took longer than `BODY_SECONDS`.
        As `parse`.

    Cancellation: safe.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in {"", "identity"}:
        raise UnsupportedMediaTypeError(encoding)
    if request.mimetype != "application/json":
        raise UnsupportedMediaTypeError
    limit = min(context.settings.max_request_bytes, context.settings.total_request_bytes)
    declared = request.content_length or 0
    if declared > limit:
        raise BodyTooLargeError(limit)
    # Nothing is reserved for a declared length, or a client that sends nothing could hold a part of the limit.
    context.uploads.check_room(declared)
    context.downloads.check_room()
    with context.uploads.upload() as upload:
        await _receive(request, upload, limit)
        return upload.parse(parse)


async def _receive(request: Request, upload: Upload, limit: int) -> None:
    with trio.move_on_after(BODY_SECONDS) as slow:
        try:
            async for chunk in request.body:
                if upload.size + len(chunk) > limit:
                    raise BodyTooLargeError(limit)
                upload.add(chunk)
        except RequestEntityTooLarge as error:  # the application's own limit, which may be lower than ours
            raise BodyTooLargeError(request.max_content_length or limit) from error
    if slow.cancelled_caught:
        raise RequestTimeout


def drop_body(request: Request) -> None:
    """Drop what no handler has read of a request's body, and what still arrives.

    Quart would keep it until the response ends, which takes hours for an event stream, and no limit counts it.
    """
    request.body = _DROPPED


class _DroppedBody(Body):
    """Reads as empty."""

    def append(self, data: bytes) -> None:
        """Drop the bytes."""


# One for all requests. It has nothing of a request, and Quart's two events take 1.6 KiB of every idle stream.
_DROPPED: Final = _DroppedBody(None, None)
_DROPPED.set_complete()
