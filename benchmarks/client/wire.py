"""Parses the bytes of one response, in chunks of any size, into the deltas of its records.

This is not a general HTTP or SSE client. It is enough for the servers here, with as few steps per record as possible.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias

Wire: TypeAlias = Literal["native", "chat"]

_DELTA: Final = re.compile(rb'"delta": ?"([^"]*)"')
_CONTENT: Final = re.compile(rb'"content": ?"([^"]+)"')  # the first chunk has an empty one
_ID: Final = re.compile(rb"^id: ?([^\r\n]*)", re.MULTILINE)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})")


class ResponseParser:
    """One response.

    Attributes:
        status: The HTTP status. None before the head has arrived.
        records: Number of records so far, including those without a delta.
        stream: The stream's id. Empty before the first record.
        completed: Whether the terminal record has arrived.
        ended: Whether the last chunk of a chunked body has arrived.
        event_bytes: Bytes of the whole events so far.
    """

    __slots__ = (
        "_blank",
        "_chunked",
        "_frames",
        "_head",
        "_text",
        "completed",
        "ended",
        "event_bytes",
        "records",
        "status",
        "stream",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.records = 0
        self.stream = ""
        self.completed = False
        self.ended = False
        self.event_bytes = 0
        self._head = b""
        self._frames = b""  # starts with the size of a chunk
        self._text = b""  # starts with an event
        self._blank = b""
        self._chunked = False

    def feed(self, data: bytes) -> list[bytes]:
        """Parse the next bytes.

        Returns:
            The deltas of the records that these bytes complete, oldest first.
        """
        if self.status is None:
            self._head += data
            head, blank, data = self._head.partition(b"\r\n\r\n")
            if not blank:
                return []
            self._take_head(head)
        if self._chunked:
            data = self._join_chunks(self._frames + data if self._frames else data)
        if self._text:
            data = self._text + data
        if not self._blank:
            self._blank = _blank_line(data)
            if not self._blank:
                self._text = data
                return []
        cut = data.rfind(self._blank)
        if cut < 0:
            self._text = data
            return []
        cut += len(self._blank)
        self.event_bytes += cut
        self._text = data[cut:]
        events = data[:cut] if self._text else data
        return self._take_events(events)

    def _take_events(self, events: bytes) -> list[bytes]:
        deltas = _DELTA.findall(events)
        self.records += len(deltas)
        if b'"stream.' in events:
            self._take_first_or_last(events)
        return deltas

    def _take_head(self, head: bytes) -> None:
        match = _STATUS.match(head)
        self.status = int(match[1]) if match else 0
        self._chunked = b"transfer-encoding: chunked" in head.lower()

    def _join_chunks(self, data: bytes) -> bytes:
        chunks = []
        at = 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            begin = line_end + 2
            end = begin + int(data[at:line_end], 16)
            if end + 2 > len(data):
                break
            at = end + 2
            if begin == end:
                self.ended = True
                break
            chunks.append(data[begin:end])
        self._frames = data[at:]
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _take_first_or_last(self, events: bytes) -> None:
        self.records += events.count(b'"stream.')
        self.completed = b'"stream.completed"' in events
        if not self.stream and (match := _ID.search(events)):
            self.stream = match[1].rpartition(b".")[0].decode()


class ChatParser(ResponseParser):
    """One streamed chat completion. `records` counts its chunks, and `stream` stays empty."""

    __slots__ = ()

    def _take_events(self, events: bytes) -> list[bytes]:
        self.records += events.count(b"data:")
        if b"[DONE]" in events:
            self.completed = True
        return _CONTENT.findall(events)


def make_parser(wire: Wire) -> ResponseParser:
    """A parser for a response on this wire."""
    return ChatParser() if wire == "chat" else ResponseParser()


def _blank_line(text: bytes) -> bytes:
    for blank in (b"\r\n\r\n", b"\n\n"):
        if blank in text:
            return blank
    return b""
