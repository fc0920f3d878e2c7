"""Judges a client's run: names the first fault in it. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from crucible_trio.testing.resume.client_run import ClientRun
from crucible_trio.testing.resume.clients import ClientKind
from crucible_trio.testing.resume.exchange import Exchange
from crucible_trio.testing.resume.wire import Reading, WireEvent, WireFormat

# The names of the faults, as in reports.
NO_IDS: Final = "no ids"
IDS_IGNORED: Final = "ids ignored"
OFF_BY_ONE: Final = "off by one on resume"
DROPPED: Final = "dropped event"
REPEATED: Final = "repeated event"
ID_TOO_EARLY: Final = "id before its data"
LOST_TAIL: Final = "lost tail"
NO_TERMINAL: Final = "clean end without terminal"
AFTER_TERMINAL: Final = "event after the terminal"
DIFFERENT_STREAM: Final = "different stream"
REFUSED: Final = "reconnect refused"
STUCK: Final = "stuck"
NEVER_ENDED: Final = "never ends"
DIFFERENT_TEXT: Final = "different text"

_OK: Final = 200
_NO_CONTENT: Final = 204
_AROUND: Final = 24  # characters shown on each side of a difference


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault.

    Attributes:
        name: The kind of fault.
        message: A description in one line.
        difference: The two texts around their first difference. Empty if the texts are equal or unknown.
    """

    name: str
    message: str
    difference: str = ""


def judge(run: ClientRun, expected: Reading | None, wire: WireFormat) -> Finding | None:
    """Compare the events that a client received with those of the uncut reader of the same stream.

    Args:
        run: The client's exchanges.
        expected: The uncut reader's events. None checks only the ids.
        wire: How the ids are read.

    Returns:
        The first fault, or None.
    """
    judged = _Judge(run, expected, wire)
    finding = judged.judge()
    if finding is None or expected is None or finding.difference:
        return finding
    return Finding(
        name=finding.name,
        message=finding.message,
        difference=show_difference(expected.compared, judged.received.compared),
    )


def judge_whole(exchange: Exchange, reading: Reading, wire: WireFormat) -> Finding | None:
    """Check the uncut reader itself, because the other clients are compared with it."""
    if (finding := _Judge(ClientRun(ClientKind(name="uncut"), [exchange]), None, wire).judge()) is not None:
        return finding
    if not reading.ids:
        return Finding(name=NO_IDS, message="no event has an id, so no client can resume")
    return None


def show_difference(expected: Mapping[str, str], got: Mapping[str, str]) -> str:
    """Show two readers' texts around their first difference. Empty if they are equal."""
    for channel in [*expected, *(channel for channel in got if channel not in expected)]:
        ours, theirs = expected.get(channel, ""), got.get(channel, "")
        if ours != theirs:
            break
    else:
        return ""
    at = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    begin = max(0, at - _AROUND)
    lines = [
        f"{name} {'...' * (begin > 0)}{ascii_controls(text[begin:at])}[{ascii_controls(text[at : at + _AROUND])}]"
        f"{'...' * (at + _AROUND < len(text))}"
        for name, text in (("uncut:", ours), ("cut:  ", theirs))
    ]
    return "\n".join([f"{channel or 'text'}, from character {at} on:", *lines])


def ascii_controls(text: str) -> str:
    """Escape line ends and terminal control characters."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


@final
class _Judge:
    def __init__(self, run: ClientRun, expected: Reading | None, wire: WireFormat) -> None:
        self.received = Reading()
        self._run = run
        self._expected = expected
        self._wire = wire
        self._places = {event_id: place for place, event_id in enumerate(expected.ids)} if expected else None
        self._seen: set[str] = set()
        self._last: str | None = None  # id
        self._terminal_id: str | None = None

    def judge(self) -> Finding | None:
        for number, exchange in enumerate(self._run.exchanges):
            if (finding := self._judge_exchange(exchange, is_resumed=number > 0)) is not None:
                return finding
        if not self.received.ended:
            return Finding(name=NEVER_ENDED, message=f"no terminal event after {len(self._run.exchanges)} connections")
        if self._expected is not None and self.received.compared != self._expected.compared:
            message = "all ids arrived, but the text differs from the uncut reader's"
            return Finding(name=DIFFERENT_TEXT, message=message)
        return None

    def _judge_exchange(self, exchange: Exchange, *, is_resumed: bool) -> Finding | None:
        if exchange.is_refused or exchange.end == "no server":
            return self._judge_refusal(exchange)
        had_ended = self.received.ended
        is_first = is_resumed
        for event in exchange.events:
            if had_ended and (event.id == self._terminal_id or (event.id is None and not event.text)):
                continue  # a client that reconnects after the end may get the terminal event again
            if (finding := self._judge_event(event, exchange, is_first=is_first)) is not None:
                return finding
            self.received.add(event)
            if event.id:
                self._seen.add(event.id)
                self._last = event.id
                is_first = False
            if event.is_terminal:
                self._terminal_id = event.id
        if exchange.end == "silent":
            message = f"{_after(exchange)}, no event arrived within the timeout ({len(exchange.events)} had arrived)"
            return Finding(name=STUCK, message=message)
        may_end = self.received.ended or (exchange.events and exchange.events[-1].is_control)
        if exchange.end == "clean" and not may_end:
            if exchange.asked and exchange.asked not in self._seen:
                return self._id_too_early(exchange)
            last = self._last or "no event"
            message = f"{_after(exchange)}, the body ends cleanly after {last}. Clients treat the text as complete"
            return Finding(name=NO_TERMINAL, message=message)
        return None

    def _judge_refusal(self, exchange: Exchange) -> Finding | None:
        if self.received.ended:
            return None  # the client has everything
        if exchange.status == _NO_CONTENT:
            if exchange.asked and exchange.asked not in self._seen:
                return self._id_too_early(exchange)
            message = f"{_after(exchange)}, the server answers 204 although the terminal event has not arrived"
            return Finding(name=LOST_TAIL, message=message)
        answer = f"got status {exchange.status}" if exchange.status is not None else "got no response"
        if exchange.status == _OK:
            answer += f" with {exchange.headers.get('content-type', 'no content type')!r}"
        content = ascii_controls(exchange.content[:200].decode(errors="replace"))
        message = f"{exchange.request.method} {exchange.request.target} {_after(exchange)} {answer} {content}".strip()
        return Finding(name=REFUSED, message=message)

    def _judge_event(self, event: WireEvent, exchange: Exchange, *, is_first: bool) -> Finding | None:
        is_repeated = event.id in self._seen
        if self.received.ended and not is_repeated and (event.id or event.text or event.is_terminal):
            return Finding(name=AFTER_TERMINAL, message=f"{_name(event)} arrives after the terminal event")
        if not event.id:
            return None
        if self._places is not None and event.id not in self._places:
            message = f"{_after(exchange)}, {_name(event)} arrives, whose id is not in the stream that was cut"
            return Finding(name=DIFFERENT_STREAM, message=message)
        missed, finding = self._missed_before(event.id)
        if finding is not None:
            return finding
        if is_first and exchange.asked and exchange.asked not in self._seen and missed:
            return self._id_too_early(exchange)
        if event.id in self._seen or missed < 0:
            return self._repeated(event, exchange, is_first=is_first)
        if missed == 0:
            return None
        lost = f"{missed} event{'s are' if missed > 1 else ' is'} missing"
        message = f"{_after(exchange)}, {self._last or 'the beginning'} is followed by {_name(event)}: {lost}"
        if event.is_terminal:
            return Finding(name=LOST_TAIL, message=message)
        return Finding(name=OFF_BY_ONE if is_first and exchange.asked and missed == 1 else DROPPED, message=message)

    def _missed_before(self, event_id: str) -> tuple[int, Finding | None]:
        """Count the events between the last one and this one. Negative if this one is earlier."""
        if self._places is not None:
            return self._places[event_id] - (self._places[self._last] if self._last else -1) - 1, None
        if self._wire.ids == "opaque":
            return 0, None
        number = self._wire.number(event_id)
        if number is None:
            message = f"id {event_id!r} does not end in a number. If that is intended, set ids = 'opaque' in the wire"
            return 0, Finding(name=NO_IDS, message=message)
        last = self._wire.number(self._last) if self._last else None
        if last is None:
            return 0, None
        if number <= last:
            return -1, None
        return (number[0] - last[0] - 1 if self._wire.ids in {"consecutive", "replay"} else 0), None

    def _repeated(self, event: WireEvent, exchange: Exchange, *, is_first: bool) -> Finding:
        message = f"{_after(exchange)}, {_name(event)} arrives again"
        # After one event only, a server that starts again and a server that is off by one look alike.
        if is_first and exchange.asked and len(self._seen) > 1:
            if event.id == exchange.asked:
                return Finding(name=OFF_BY_ONE, message=message)
            if self._is_first_event(event.id):
                return Finding(name=IDS_IGNORED, message=f"{message}: the stream starts again from the beginning")
        return Finding(name=REPEATED, message=message)

    def _is_first_event(self, event_id: str | None) -> bool:
        return bool(event_id) and self._places is not None and self._places[event_id or ""] == 0

    def _id_too_early(self, exchange: Exchange) -> Finding:
        message = (
            f"{self._run.kind.name} takes an id as soon as it has read the line. It took {exchange.asked} before the "
            "rest of that event arrived, so the event is lost. Send the id on the last line of an event"
        )
        return Finding(name=ID_TOO_EARLY, message=message)


def _after(exchange: Exchange) -> str:
    return f"after Last-Event-ID {exchange.asked}" if exchange.asked else "without Last-Event-ID"


def _name(event: WireEvent) -> str:
    return f"{event.id or 'an event without id'}{f' ({event.kind})' if event.kind else ''}"
