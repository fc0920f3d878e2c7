"""Three kinds of clients that reconnect, modelled on real ones.

Sans-IO: a client's state takes the bytes of a body and gives the events and the next `Last-Event-ID`.

| | EventSource of a browser | a user of httpx-sse | @microsoft/fetch-event-source |
|---|---|---|---|
| resumes with | GET of the same URL | GET of the stream's URL if it has one, else the start | the start |
| takes an id | at the blank line | at the blank line | when it has read the line |
| after a clean end | reconnects | stops | stops |
| after 204 | stops | raises | raises |
| after another status or content type | gives up | raises | raises |

The kit does not wait for `retry`. A page usually closes its EventSource after the terminal event. The kit's client does
not, because the server must send nothing new to a page that forgets to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from crucible_trio import sse
from crucible_trio.testing.resume.wire import WireEvent


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKind:
    """One kind of client.

    Attributes:
        name: The name in reports and options.
        only_gets: Whether it sends only GET requests.
        repeats_start: Whether it resumes by sending the start request again, even if the stream has a URL.
        takes_id_early: Whether it takes an id as soon as it has read the id's line.
        reconnects_after_end: Whether it reconnects after a clean end, and stops at 204.
    """

    name: str
    only_gets: bool = False
    repeats_start: bool = False
    takes_id_early: bool = False
    reconnects_after_end: bool = False


EVENT_SOURCE: Final = ClientKind(name="eventsource", only_gets=True, reconnects_after_end=True)
HTTPX_SSE: Final = ClientKind(name="httpx-sse")
FETCH: Final = ClientKind(name="fetch", repeats_start=True, takes_id_early=True)

CLIENTS: Final = {kind.name: kind for kind in (EVENT_SOURCE, HTTPX_SSE, FETCH)}

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK_LINE = re.compile(rb"\r\n\r\n|\r\r|\n\n")


@final
class ClientState:
    """The state that one client keeps across its connections.

    Attributes:
        last_id: The id of the last event, for its next request. Empty for none.
        turn: The number of its next connection, if it takes turns among several servers.
        gap_cuts: Number of cuts between an id on the last line of an event and the blank line. fetch-event-source has
            then taken the id without the event, and loses the event. No server can prevent that, so the kit counts the
            event as received.
    """

    def __init__(self, kind: ClientKind, *, turn: int = 0) -> None:
        self.last_id = ""
        self.turn = turn
        self.gap_cuts = 0
        self._kind = kind
        self._decoder = sse.Decoder()
        self._block = b""  # the bytes of an incomplete event
        self._place = 0
        self._placed: list[WireEvent] = []

    def connect(self) -> None:
        """Start a new connection. The incomplete event of the previous connection is dropped."""
        # Browsers keep the last id across connections, even if the new one begins with an event without id.
        self._decoder = sse.Decoder()
        self._block = b""
        self._place = 0
        self.turn += 1

    def feed(self, chunk: bytes) -> list[sse.ServerSentEvent]:
        """Take the next bytes of the body.

        Returns:
            The complete events, which the client gives to its user.

        Raises:
            EventTooLargeError: An event is larger than the decoder's limit.
        """
        events = self._decoder.feed(chunk)
        self._take_id()
        if self._kind.takes_id_early:
            self._block = _BLANK_LINE.split(self._block + chunk)[-1]
        return events

    def disconnect(self) -> list[sse.ServerSentEvent]:
        """End a connection that was cut.

        Returns:
            The event that counts as received although its blank line is missing. See `gap_cuts`.
        """
        if not self._kind.takes_id_early:
            return []
        *lines, unfinished = _LINE_END.split(self._block)
        ids = [line for line in lines if line.startswith(b"id:")]
        if not ids:
            return []
        if not unfinished and lines[-1] is ids[-1] and any(line.startswith(b"data:") for line in lines):
            self.gap_cuts += 1
            events = self._decoder.feed(b"\n\n")  # the first may complete a CRLF
            self._take_id()
            return events
        self.last_id = ids[-1].removeprefix(b"id:").removeprefix(b" ").decode(errors="replace")
        return []

    def place(self, events: Sequence[WireEvent]) -> list[WireEvent]:
        """The next events of a wire without ids (`replay`): those that are new, with their place as id.

        An event that differs from the one that was at its place before has an id that no other reader has.
        """
        new: list[WireEvent] = []
        for event in events:
            self._place += 1
            if self._place > len(self._placed):
                self._placed.append(event)
                new.append(replace(event, id=str(self._place)))
            elif event != self._placed[self._place - 1]:
                new.append(replace(event, id=f"{self._place} of another replay"))
        return new

    def _take_id(self) -> None:
        if self._decoder.last_event_id is not None:
            self.last_id = self._decoder.last_event_id
