"""Server-Sent Events without I/O: encoding, and an incremental decoder.

The rules that implementations often miss:

* A line ends at CR, LF or CRLF, and at nothing else. `str.splitlines()` also cuts at U+2028 and would tear a piece.
* Two chunks may split a CRLF. The LF that opens the second chunk then ends no further line.
* An event counts only when its blank line has arrived. A cut leaves half an event, which is dropped and sent again.
* `id` is the last line. fetch-event-source takes the id when it reads that line, not at the blank line, and with the id
  first it lost events at cuts.

Source: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import codecs
import re
from typing import Final, final

import msgspec

from crucible_trio.errors import EventTooLargeError

MEDIA_TYPE: Final = "text/event-stream"

# A comment line without a blank line. With one, several clients dispatch an empty event.
HEARTBEAT: Final = b":\n"

# Characters that a decoder holds of an unfinished event. One event can carry a whole reasoning trace. The limit keeps a
# server that never ends an event from filling the client's memory.
MAX_EVENT_LENGTH: Final = 32 * 1024 * 1024

# 31 years. `int` raises for thousands of digits.
_MAX_RETRY_DIGITS: Final = 12

_LINE_END = re.compile(r"\r\n|\r|\n")


@final
class ServerSentEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event.

    Attributes:
        data: The payload, which may span lines. None for an event without data, which is never dispatched.
        event: The type. Empty means `message`.
        id: The client sends it back as `Last-Event-ID`. None keeps the client's last id.
        retry: The reconnection time in milliseconds.
    """

    data: str | None = None
    event: str = ""
    id: str | None = None
    retry: int | None = None


def encode_line(data: bytes, event_id: str | None = None) -> bytes:
    """Frame one event with one line of data, for `text/event-stream`.

    Args:
        data: UTF-8 without CR and LF, such as encoded JSON.
        event_id: An id without CR, LF and NUL.

    Returns:
        Bytes that end in the blank line that makes the client dispatch the event.
    """
    if event_id is None:
        return b"data: %b\n\n" % data
    return b"data: %b\nid: %b\n\n" % (data, event_id.encode())


def retry_line(milliseconds: int) -> bytes:
    """The reconnection time as one line.

    It goes before the first event of a body, without a blank line. With a blank line some clients dispatch an event
    without data.
    """
    return b"retry: %d\n" % milliseconds


@final
class Decoder:
    """Turns the chunks of one response body into events, wherever the bytes are cut.

    Use a new decoder for each connection, and carry `last_event_id` over.

    Attributes:
        last_event_id: The last id in a finished event. None before the first.
        retry: The last reconnection time in milliseconds. None before the first.
    """

    def __init__(self, *, max_event_length: int = MAX_EVENT_LENGTH) -> None:
        self.last_event_id: str | None = None
        self.retry: int | None = None
        self._max_event_length = max_event_length
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._after_cr = False
        self._is_between_events = False  # and no half of a character is held
        self._pieces: list[str] = []  # of the unfinished line
        self._pieces_length = 0
        self._lines_length = 0  # of the unfinished event's finished lines
        self._data: list[str] = []
        self._event = ""
        self._id: str | None = None

    @property
    def unfinished_length(self) -> int:
        """Characters held of the unfinished event."""
        return self._lines_length + self._pieces_length

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take the next bytes of the body, in order.

        Returns:
            The events that these bytes finished, oldest first.

        Raises:
            EventTooLargeError: The unfinished event is larger than `max_event_length`.
        """
        if self._is_between_events and (plain := _read_plain_events(chunk)) is not None:
            return plain
        self._is_between_events = False
        text = self._bytes.decode(chunk)
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if self._after_cr and text:
            self._after_cr = False
            text = text.removeprefix("\n")
        if not text:
            return []
        self._after_cr = text.endswith("\r")
        *ended, rest = _LINE_END.split(text)
        events: list[ServerSentEvent] = []
        for line in ended:
            event = self._take_line("".join([*self._pieces, line]) if self._pieces else line)
            if event is not None:
                events.append(event)
            self._pieces.clear()
            self._pieces_length = 0
        if rest:
            self._pieces.append(rest)
            self._pieces_length += len(rest)
        self._is_between_events = text.endswith("\n") and not self._lines_length
        if self.unfinished_length > self._max_event_length:
            raise EventTooLargeError(self._max_event_length)
        return events

    def finish(self) -> ServerSentEvent | None:
        """End the body, and return the event that lacks only its end.

        By the standard such an event is dropped, because a cut may have torn it. Use it only if its data proves that
        it is whole. Some servers leave out the last blank line.
        """
        line = "".join(self._pieces)
        self._pieces.clear()
        self._pieces_length = 0
        if line:
            self._take_line(line)
        return self._dispatch()

    def _take_line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        self._lines_length += len(line)
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self.retry = int(value)
        return None  # a comment has an empty name, and an unknown field is ignored

    def _dispatch(self) -> ServerSentEvent | None:
        data, event, event_id = self._data, self._event, self._id
        self._data, self._event, self._id, self._lines_length = [], "", None, 0
        if event_id is not None:
            self.last_event_id = event_id
        if not data:
            return None
        return ServerSentEvent(data="\n".join(data), event=event, id=event_id)


def _read_plain_events(chunk: bytes) -> list[ServerSentEvent] | None:
    """The events of a chunk that has nothing but whole events with one line of data each. None: it has something else.

    Nearly every chunk of a model server is such an event. This takes a third of the time of the general way.
    """
    if b"\r" in chunk or not chunk.endswith(b"\n\n"):
        return None
    events = []
    for line in chunk[:-2].split(b"\n\n"):
        if not line.startswith(b"data: ") or b"\n" in line:
            return None
        events.append(ServerSentEvent(data=line[6:].decode("utf-8", "replace")))
    return events
