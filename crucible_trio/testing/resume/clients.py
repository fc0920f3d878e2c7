"""Three clients that reconnect, each as its original does. Sans-IO: bytes go in, the next id to ask for comes out.

| | EventSource of a browser | a user of httpx-sse | @microsoft/fetch-event-source |
|---|---|---|---|
| asks with | GET, the same URL again | the start; then GET, where the stream has a URL | the start again |
| takes an id | at the blank line | at the blank line | when it reads the line |
| clean end | comes back | has ended | has ended |
| 204 | has ended | raises | raises |
| any other status, another type of content | gives up | raises | raises |

The kit does not wait for `retry`. A page whose EventSource has got the terminal event usually closes it; the kit's does
not, because a page that forgets must not get anything more either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

from crucible_trio import sse


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKind:
    """One kind of client.

    Attributes:
        name: As in reports and options.
        only_gets: Whether it can send nothing but GET.
        repeats_start: Whether it resumes by sending the start again, also where the stream has a URL of its own.
        takes_id_early: Whether it takes an id as soon as it has read its line.
        outlives_the_end: Whether it reconnects after a clean end, and takes 204 for the end.
    """

    name: str
    only_gets: bool = False
    repeats_start: bool = False
    takes_id_early: bool = False
    outlives_the_end: bool = False


EVENT_SOURCE: Final = ClientKind(name="eventsource", only_gets=True, outlives_the_end=True)
HTTPX_SSE: Final = ClientKind(name="httpx-sse")
FETCH: Final = ClientKind(name="fetch", repeats_start=True, takes_id_early=True)

CLIENTS: Final = {kind.name: kind for kind in (EVENT_SOURCE, HTTPX_SSE, FETCH)}

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BLANK_LINE = re.compile(rb"\r\n\r\n|\r\r|\n\n")


@final
class Follower:
    """One client's memory, over all its connections.

    Attributes:
        last_id: What it sends as `Last-Event-ID`; empty: nothing.
        favoured: How often a cut fell between an id's line, the last one of its event, and the blank line. There
            fetch-event-source has taken the id and not the event, and loses it whatever a server does. No server can
            help that, so the event counts as taken.
    """

    def __init__(self, kind: ClientKind) -> None:
        self.last_id = ""
        self.favoured = 0
        self._kind = kind
        self._decoder = sse.Decoder()
        self._block = b""  # of the event that is not finished

    def connect(self) -> None:
        """A new connection; what was left of the last one's unfinished event is gone."""
        # Browsers keep the last id over connections, also when the new one begins with an event that has none.
        self._decoder = sse.Decoder()
        self._block = b""

    def feed(self, chunk: bytes) -> list[sse.ServerSentEvent]:
        """Take the next bytes of the body.

        Returns:
            The events that it hands to its user.

        Raises:
            EventTooLargeError: An event does not end.
        """
        events = self._decoder.feed(chunk)
        self._take_id()
        if self._kind.takes_id_early:
            self._block = _BLANK_LINE.split(self._block + chunk)[-1]
        return events

    def lose(self) -> list[sse.ServerSentEvent]:
        """The connection is gone.

        Returns:
            The event that counts as taken; see `favoured`.
        """
        if not self._kind.takes_id_early:
            return []
        *lines, unfinished = _LINE_END.split(self._block)
        ids = [line for line in lines if line.startswith(b"id:")]
        if not ids:
            return []
        if not unfinished and lines[-1] is ids[-1] and any(line.startswith(b"data:") for line in lines):
            self.favoured += 1
            events = self._decoder.feed(b"\n\n")  # the first may belong to a CR
            self._take_id()
            return events
        self.last_id = ids[-1].removeprefix(b"id:").removeprefix(b" ").decode(errors="replace")
        return []

    def _take_id(self) -> None:
        if self._decoder.last_event_id is not None:
            self.last_id = self._decoder.last_event_id
