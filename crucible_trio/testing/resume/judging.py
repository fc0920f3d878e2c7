"""What is wrong with a trip: the first thing that goes wrong on it, by name. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from crucible_trio.testing.resume.clients import ClientKind
from crucible_trio.testing.resume.trips import Leg, Trip
from crucible_trio.testing.resume.wire import Piece, Reading, Wire

# The names of what can be wrong, as in reports.
NO_IDS: Final = "no ids"
IDS_IGNORED: Final = "ids ignored"
OFF_BY_ONE: Final = "off by one on resume"
DROPPED: Final = "dropped event"
REPEATED: Final = "repeated event"
ID_TOO_EARLY: Final = "id before its data"
LOST_TAIL: Final = "lost tail"
NO_TERMINAL: Final = "clean end without terminal"
AFTER_THE_END: Final = "goes on after the terminal"
OTHER_STREAM: Final = "another stream"
REFUSED: Final = "reconnect refused"
STUCK: Final = "stuck"
NO_END: Final = "no end"
OTHER_TEXT: Final = "other text"

_OK: Final = 200
_NO_CONTENT: Final = 204
_AROUND: Final = 24  # characters shown on each side of a deviation


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: Of the kind of fault.
        message: What was seen, in one line.
        difference: The texts around their first deviation; empty where none was seen.
    """

    name: str
    message: str
    difference: str = ""


def judge(trip: Trip, truth: Reading | None, wire: Wire) -> Finding | None:
    """Compare what a client got with what the uncut reader of the same stream got.

    Args:
        trip: The client's connections.
        truth: What the uncut reader got; None where there can be none: then the ids alone are looked at.
        wire: How events are to be read.

    Returns:
        The first thing that is wrong, or None.
    """
    judging = _Judging(trip, truth, wire)
    finding = judging.run()
    if finding is None or truth is None or finding.difference:
        return finding
    return Finding(
        name=finding.name, message=finding.message, difference=show_difference(truth.texts, judging.got.texts)
    )


def judge_whole(leg: Leg, reading: Reading, wire: Wire) -> Finding | None:
    """Look at what an uncut reader got, which the others are measured by."""
    if (finding := _Judging(Trip(ClientKind(name="uncut"), [leg]), None, wire).run()) is not None:
        return finding
    if not reading.ids:
        return Finding(name=NO_IDS, message="no event carries an id: a client cannot say where it was")
    return None


def show_difference(expected: Mapping[str, str], got: Mapping[str, str]) -> str:
    """Two readers' texts around their first deviation, on two lines; empty where they are equal."""
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
    """The text on one line and without what steers a terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


@final
class _Judging:
    def __init__(self, trip: Trip, truth: Reading | None, wire: Wire) -> None:
        self.got = Reading()
        self._trip = trip
        self._truth = truth
        self._wire = wire
        self._places = {event_id: place for place, event_id in enumerate(truth.ids)} if truth else None
        self._seen: set[str] = set()
        self._last: str | None = None  # id
        self._ending_id: str | None = None

    def run(self) -> Finding | None:
        for number, leg in enumerate(self._trip.legs):
            if (finding := self._judge_leg(leg, is_resumed=number > 0)) is not None:
                return finding
        if not self.got.ended:
            return Finding(name=NO_END, message=f"no terminal event after {len(self._trip.legs)} connections")
        if self._truth is not None and self.got.texts != self._truth.texts:
            message = "no id is missing, and the text is another than the uncut reader's"
            return Finding(name=OTHER_TEXT, message=message)
        return None

    def _judge_leg(self, leg: Leg, *, is_resumed: bool) -> Finding | None:
        if leg.is_refused or leg.end == "no server":
            return self._judge_refusal(leg)
        had_ended = self.got.ended
        is_first = is_resumed
        for piece in leg.pieces:
            if had_ended and (piece.id == self._ending_id or (piece.id is None and not piece.text)):
                continue  # the terminal once more, for who asks once more
            if (finding := self._judge_piece(piece, leg, is_first=is_first)) is not None:
                return finding
            self.got.add(piece)
            if piece.id:
                self._seen.add(piece.id)
                self._last = piece.id
                is_first = False
            if piece.is_terminal:
                self._ending_id = piece.id
        if leg.end == "silent":
            return Finding(name=STUCK, message=f"{_after(leg)}, no event came for too long; {len(leg.pieces)} had come")
        if leg.end == "clean" and not self.got.ended and not (leg.pieces and leg.pieces[-1].is_control):
            if leg.asked and leg.asked not in self._seen:
                return self._too_early(leg)
            message = (
                f"{_after(leg)}, the body ends cleanly after {self._last or 'no event'}: clients take it for whole"
            )
            return Finding(name=NO_TERMINAL, message=message)
        return None

    def _judge_refusal(self, leg: Leg) -> Finding | None:
        if self.got.ended:
            return None  # whoever asks once more needs nothing more
        if leg.status == _NO_CONTENT:
            if leg.asked and leg.asked not in self._seen:
                return self._too_early(leg)
            message = f"{_after(leg)}, 204 says that there is nothing more; the terminal event has not come"
            return Finding(name=LOST_TAIL, message=message)
        answer = f"was answered {leg.status}" if leg.status is not None else "was not answered"
        if leg.status == _OK:
            answer += f" with {leg.headers.get('content-type', 'no content type')!r}"
        content = ascii_controls(leg.content[:200].decode(errors="replace"))
        message = f"{leg.request.method} {leg.request.target} {_after(leg)} {answer} {content}".strip()
        return Finding(name=REFUSED, message=message)

    def _judge_piece(self, piece: Piece, leg: Leg, *, is_first: bool) -> Finding | None:
        is_repeated = piece.id in self._seen
        if self.got.ended and not is_repeated and (piece.id or piece.text or piece.is_terminal):
            return Finding(name=AFTER_THE_END, message=f"{_what(piece)} comes after the terminal event")
        if not piece.id:
            return None
        if self._places is not None and piece.id not in self._places:
            message = f"{_after(leg)}, {_what(piece)} comes, which is no id of the stream that was cut"
            return Finding(name=OTHER_STREAM, message=message)
        missed, finding = self._missed_before(piece.id)
        if finding is not None:
            return finding
        if is_first and leg.asked and leg.asked not in self._seen and missed:
            return self._too_early(leg)
        if piece.id in self._seen or missed < 0:
            return self._repeated(piece, leg, is_first=is_first)
        if missed == 0:
            return None
        lost = f"{missed} event{'s are' if missed > 1 else ' is'} missing"
        message = f"{_after(leg)}, {self._last or 'the beginning'} is followed by {_what(piece)}: {lost}"
        if piece.is_terminal:
            return Finding(name=LOST_TAIL, message=message)
        return Finding(name=OFF_BY_ONE if is_first and leg.asked and missed == 1 else DROPPED, message=message)

    def _missed_before(self, event_id: str) -> tuple[int, Finding | None]:
        """How many events lie between the last one and this one; below 0 when it goes back."""
        if self._places is not None:
            return self._places[event_id] - (self._places[self._last] if self._last else -1) - 1, None
        if self._wire.ids == "opaque":
            return 0, None
        number = self._wire.number(event_id)
        if number is None:
            message = f"id {event_id!r} has no number at its end; if that is meant, the wire says ids = 'opaque'"
            return 0, Finding(name=NO_IDS, message=message)
        last = self._wire.number(self._last) if self._last else None
        if last is None:
            return 0, None
        if number <= last:
            return -1, None
        return (number[0] - last[0] - 1 if self._wire.ids == "consecutive" else 0), None

    def _repeated(self, piece: Piece, leg: Leg, *, is_first: bool) -> Finding:
        message = f"{_after(leg)}, {_what(piece)} comes again"
        # After the first event alone, a server that begins again and one that is off by one look alike.
        if is_first and leg.asked and len(self._seen) > 1:
            if piece.id == leg.asked:
                return Finding(name=OFF_BY_ONE, message=message)
            if self._is_beginning(piece.id):
                return Finding(name=IDS_IGNORED, message=f"{message}: the stream begins again")
        return Finding(name=REPEATED, message=message)

    def _is_beginning(self, event_id: str | None) -> bool:
        return bool(event_id) and self._places is not None and self._places[event_id or ""] == 0

    def _too_early(self, leg: Leg) -> Finding:
        message = (
            f"{self._trip.kind.name} takes an id when it reads its line: it had {leg.asked} before the rest of that "
            "event, which is lost; an id belongs on the last line of its event"
        )
        return Finding(name=ID_TOO_EARLY, message=message)


def _after(leg: Leg) -> str:
    return f"after Last-Event-ID {leg.asked}" if leg.asked else "without Last-Event-ID"


def _what(piece: Piece) -> str:
    return f"{piece.id or 'an event without id'}{f' ({piece.kind})' if piece.kind else ''}"
