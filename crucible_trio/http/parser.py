"""Parses the bytes of one response. No trio: nothing here waits.

llhttp, Node's parser, does the work, through httptools. It is strict by default. It gets a few leniencies here, because
responses come from many kinds of servers. Easy to get wrong:

* llhttp goes on with the next response in the same bytes. Nothing of it may get into this one.
* llhttp has no limits. Headers, trailers and chunk extensions may go on forever.
* A body without a length ends with the connection. Only the end of the connection is then the end of the body.
"""

from __future__ import annotations

from typing import Final, NoReturn, final

import httptools

from crucible_trio.http.errors import ConnectionLostError, InvalidResponseError
from crucible_trio.http.headers import Headers

# Names and values together, also those of interim responses. Servers commonly limit them to 8 to 16 KiB.
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 200
# Bytes in a row that add nothing to the body, such as an unfinished header or the extension of a chunk.
MAX_FRAMING_BYTES: Final = 128 * 1024


class _TooLargeError(Exception):
    """A limit is exceeded."""


class _ExtraDataError(Exception):
    """Bytes follow the end of the response."""


@final
class ResponseParser:
    """One response, after any number of interim responses (1xx).

    Attributes:
        status: The HTTP status. 0 until the head is complete.
        reason: The reason phrase.
        headers: The headers, once the head is complete.
        has_head: Whether status and headers are complete.
        is_complete: Whether the response has ended.
        has_promised_end: Whether the response says where its body ends. Otherwise it ends with the connection, and a
            cut looks like an end.
        is_reusable: Whether the connection can carry another request after the end.
        has_received: Whether any byte has come.
    """

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers = Headers()
        self.has_head = False
        self.is_complete = False
        self.has_promised_end = False
        self.is_reusable = False
        self.has_received = False
        self._fault: InvalidResponseError | None = None
        self._pairs: list[tuple[str, str]] = []
        self._header_bytes = 0
        self._framing_bytes = 0
        self._body: list[bytes] = []
        self.on_body = self._body.append  # called by the parser, as the methods below
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_chunked_length=True,  # both lengths: RFC 9112, 6.3 says which one counts
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )

    def feed(self, data: bytes | bytearray) -> None:
        """Take the next bytes, at least one. A fault is raised by `take_body` when the bytes before it are taken."""
        self.has_received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the server switched to another protocol")
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooLargeError):
                self._fail("the headers are too large")
            else:  # fixed texts of llhttp, which quote nothing
                self._fail(str(error))
        if self._body:
            self._framing_bytes = 0
            return
        self._framing_bytes += len(data)
        if self._framing_bytes > MAX_FRAMING_BYTES and not self.is_complete:
            self._fail("too many bytes that are neither a complete header nor body")

    def feed_eof(self) -> None:
        """The connection has ended.

        Raises:
            ConnectionLostError: The response had not.
        """
        if self.has_head and not self.has_promised_end:
            self.is_complete = True
        if not self.is_complete:
            self.lose()

    def lose(self) -> NoReturn:
        """The connection is lost.

        Raises:
            ConnectionLostError: Always.
        """
        if self.has_head:
            message = "the connection ended before the response"
        elif self.has_received:
            message = "the connection ended inside the headers"
        else:
            message = "the connection ended without a response"
        raise ConnectionLostError(message, received_nothing=not self.has_received)

    def check(self) -> None:
        """Raise the fault that has been found.

        Raises:
            InvalidResponseError: The response breaks HTTP.
        """
        if self._fault is not None:
            raise self._fault

    def take_body(self) -> bytes:
        """The part of the body that has come since the last call. Empty if there is none.

        Raises:
            InvalidResponseError: The response breaks HTTP. All of the body before has been taken.
        """
        body = self._body
        if not body:
            self.check()
            return b""
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return data

    def _fail(self, message: str) -> None:
        self.is_reusable = False
        if not self.is_complete:
            self._fault = InvalidResponseError(message, has_status=self._parser.get_status_code() >= 100)

    # Called by the parser

    def on_message_begin(self) -> None:  # noqa: D102
        if self.is_complete:
            raise _ExtraDataError

    def on_status(self, reason: bytes) -> None:  # noqa: D102
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        self._header_bytes += len(name) + len(value)
        if len(self._pairs) >= MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            raise _TooLargeError
        if not self.has_head:  # afterwards come the trailers of a chunked body, which nobody needs
            self._pairs.append((name.decode("latin-1"), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:  # noqa: D102
        status = self._parser.get_status_code()
        if status < 200:
            self._pairs.clear()
            self.reason = ""
            return
        self.status = status
        self.headers = headers = Headers(self._pairs)
        self.has_head = True
        codings = headers.get("Transfer-Encoding", "").lower()
        is_chunked = codings.rpartition(",")[2].strip() == "chunked"
        has_length = "Content-Length" in headers
        self.has_promised_end = is_chunked or (has_length and not codings)
        # With both lengths a proxy may have read the response differently.
        self.is_reusable = self._parser.should_keep_alive() and not (has_length and codings)

    def on_message_complete(self) -> None:  # noqa: D102
        if self.has_head:
            self.is_complete = True
