"""Counts the bodies of requests against one limit for all bodies that are being received or parsed."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final, TypeVar, final

from crucible_trio.errors import InvalidRequestError, OverloadedError
from crucible_trio.metrics import Metrics

T = TypeVar("T")

# JSON values take up to 100 times their text when they are parsed: `{},` takes 64 bytes and more. They also take time:
# a tool took about 25 us on a busy machine. Real requests with thousands of tools and messages stay below this number.
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
    """One body. If it does not come in one piece, it is in a mapping of its own.

    Many byte arrays that grow at the same time leave holes in the heap, which is not given back to the system: 50 of
    them took twice the bytes that they held. A mapping takes two system calls and page faults, 20 to 40 us.

    Attributes:
        size: The bytes so far, all of them reserved.
    """

    def __init__(self, uploads: Uploads) -> None:
        self.size = 0
        self._uploads = uploads
        self._memory: mmap.mmap | bytes | None = b""  # None: closed

    def add(self, data: bytes) -> None:
        """Add bytes to the body.

        Raises:
            OverloadedError: All bodies together would pass their limit.
        """
        size = self.size + len(data)
        self._uploads.reserve(len(data))
        if not self.size:
            self._memory = data
        else:
            self._mapping(size)[self.size : size] = data
        self.size = size

    def _mapping(self, size: int) -> mmap.mmap:
        """The memory, made large enough. Takes no memory before it is written to."""
        memory = self._memory
        if not isinstance(memory, mmap.mmap):
            first = memory or b""
            memory = mmap.mmap(-1, max(size, _FIRST_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory[: len(first)] = first
            self._memory = memory
        elif size > len(memory):
            memory.resize(max(size, 2 * len(memory)))
        return memory

    def parse(self, parse: Callable[[memoryview], T]) -> T:
        """Parse the body. `parse` keeps no reference to it.

        Raises:
            InvalidRequestError: It has more values than the memory of a parsed request may take.
            As `parse`.
        """
        if self._memory is None:
            message = "the body is closed"
            raise ValueError(message)
        with memoryview(self._memory) as memory, memory[: self.size] as body:
            if _has_too_many_values(body):
                message = f"the body has more than {MAX_VALUES:,} JSON values"
                raise InvalidRequestError(message)
            return parse(body)

    def close(self) -> None:
        """Free the bytes."""
        memory, self._memory = self._memory, None
        if isinstance(memory, mmap.mmap):
            memory.close()


def _has_too_many_values(body: memoryview) -> bool:
    parts = (bytes(body[start : start + _COUNTED_BYTES]) for start in range(0, len(body), _COUNTED_BYTES))
    if sum(part.count(separator) for part in parts for separator in _SEPARATORS) <= MAX_VALUES:
        return False
    # Rare, so it may take longer: the separators may be in strings, such as a table of numbers.
    found = _STRING_OR_SEPARATOR.finditer(body)
    outside = (True for each in found if body[each.start()] != ord('"'))
    return next(islice(outside, MAX_VALUES, None), False)
