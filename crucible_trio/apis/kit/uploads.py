"""Receives the bodies of requests, within one limit for all bodies that are being received or parsed.

A route checks the key and the owner before it calls `read_body`, so nobody without a key can take a part of the limit.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar, final

import trio
from quart import Request
from quart.wrappers.request import Body
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from crucible_trio.apis.kit.errors import BodyTooLargeError, UnsupportedMediaTypeError
from crucible_trio.errors import InvalidRequestError, OverloadedError
from crucible_trio.metrics import Metrics

if TYPE_CHECKING:  # the context holds an `Uploads`
    from crucible_trio.apis.kit.context import ApiContext

T = TypeVar("T")

BODY_SECONDS: Final = 60.0
"""The longest time a request's body may take. A stalled upload holds its part of the limit no longer than this."""


# JSON values take up to 100 times their text when they are parsed: `{},` takes 64 bytes and more. They also take time:
# a tool or a message about 10 us. Real requests with thousands of tools and messages stay below this number.
MAX_VALUES: Final = 250_000
# A value begins with one of them, except the first of a list or an object. A string may hold them, too.
_SEPARATORS: Final = (b",", b"[", b"{")
_STRING_OR_SEPARATOR: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[,\[{]', re.DOTALL)
_COUNTED_BYTES: Final = 64 * 1024

# Most requests fit into it.
_FIRST_BYTES: Final = 64 * 1024


@final
class Uploads:
    """Counts the bytes of all bodies that are being received or parsed, in `Metrics.upload_bytes`.

    Args:
        limit: The largest number of bytes.
        metrics: Where they are counted.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics

    @contextmanager
    def upload(self) -> Iterator[Upload]:
        """A body to be received. Leaving the context frees its bytes, also while an exception still refers to it."""
        upload = Upload(self)
        try:
            yield upload
        finally:
            self._metrics.upload_bytes -= upload.size
            upload.close()

    def check_room(self, size: int) -> None:
        """Check that this many more bytes are within the limit.

        Raises:
            OverloadedError: They are not.
        """
        if self._metrics.upload_bytes + size > self._limit:
            message = "the server is receiving too many large requests at the same time"
            raise OverloadedError(message)

    def reserve(self, size: int) -> None:
        """Count more bytes.

        Raises:
            OverloadedError: They would pass the limit.
        """
        self.check_room(size)
        self._metrics.upload_bytes += size


@final
class Upload:
    """One body, in a mapping of its own.

    Many byte arrays that grow at the same time leave holes in the heap, which is not given back to the system: 50 of
    them took twice the bytes that they held.

    Attributes:
        size: The bytes so far, all of them reserved.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.size = 0
        self._uploads = uploads
        self._memory = mmap.mmap(-1, _FIRST_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def add(self, data: bytes) -> None:
        """Add bytes to the body.

        Raises:
            OverloadedError: All bodies together would pass their limit.
        """
        size = self.size + len(data)
        self._uploads.reserve(len(data))
        if size > len(self._memory):  # takes no memory before it is written to
            self._memory.resize(max(size, 2 * len(self._memory)))
        self._memory[self.size : size] = data
        self.size = size

    def parse(self, parse: Callable[[memoryview], T]) -> T:
        """Parse the body. `parse` keeps no reference to it.

        Raises:
            InvalidRequestError: It has more values than the memory of a parsed request may take.
            As `parse`.
        """
        with memoryview(self._memory) as memory, memory[: self.size] as body:
            if _has_too_many_values(body):
                message = f"the body has more than {MAX_VALUES:,} JSON values"
                raise InvalidRequestError(message)
            return parse(body)

    def close(self) -> None:
        """Free the bytes."""
        self._memory.close()


def _has_too_many_values(body: memoryview) -> bool:
    parts = (bytes(body[start : start + _COUNTED_BYTES]) for start in range(0, len(body), _COUNTED_BYTES))
    if sum(part.count(separator) for part in parts for separator in _SEPARATORS) <= MAX_VALUES:
        return False
    # Rare, so it may take longer: the separators may be in strings, such as a table of numbers.
    found = _STRING_OR_SEPARATOR.finditer(body)
    outside = (True for each in found if body[each.start()] != ord('"'))
    return next(islice(outside, MAX_VALUES, None), False)


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
    request.body = _DroppedBody(None, None)


class _DroppedBody(Body):
    def append(self, data: bytes) -> None:
        """Drop the bytes."""
