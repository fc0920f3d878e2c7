"""The two phases of a check: one stream from its log, and fresh streams while they are made.

From the log, one stream is read uncut and then, for every byte of the response and every client, read from the
beginning, cut there, resumed and compared. Live, each cut has a stream of its own and a second reader of the same
stream that is never cut, which is the measure: a model need not say the same twice. For a quarter of the cuts that
reader stands beside the client, for the others it comes after it, so that the stream had nobody for a while.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

import trio

from crucible_trio.testing.resume.clients import ClientKind
from crucible_trio.testing.resume.judging import OTHER_TEXT, Finding, judge, judge_whole, show_difference
from crucible_trio.testing.resume.network import Network
from crucible_trio.testing.resume.report import Failure, Phase, Report, Row
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.trips import Leg, Road, StreamAddress, Trip
from crucible_trio.testing.resume.wire import HttpRequest, Reading, Wire

Progress: TypeAlias = Callable[[Row, int], None]
"""Called after each cut with the row that it belongs to and how many cuts of it are done."""

MIN_EVENTS: Final = 20  # fewer have too few places where an event can get lost

# A fault of a server fails nearly every cut; the first ones say what it is.
_ENOUGH_FAILURES: Final = 16

_GONE: Final = frozenset({404, 410})
_BUSY: Final = frozenset({429, 503})


@final
@dataclass(frozen=True, slots=True)
class Cuts:
    """Where to cut: at these bytes, or at so many, or at every one; of all that, every so manieth."""

    given: Sequence[int] | None
    picked: int | None
    turn: int
    turns: int

    def of(self, size: int, seed: str) -> list[int]:
        """The places in a response of this size."""
        if self.given is not None:
            return list(self.given)
        places = list(range(size + 1))
        if self.picked is not None and self.picked < len(places):
            places = sorted(random.Random(seed).sample(places, self.picked))
        return places[self.turn :: self.turns]


@final
@dataclass(slots=True)
class _Outcome:
    """What became of one cut."""

    finding: Finding | None = None
    skipped: str = ""
    favoured: bool = False
    is_unmeasured: bool = False


@final
class Checking:
    """One check of one server; see `check` for the arguments."""

    def __init__(
        self,
        network: Network,
        wire: Wire,
        stage: Stage | None,
        timeout: float,
        report: Report,
        at_once: int,
        on_progress: Progress | None,
    ) -> None:
        self.report = report
        self._wire = wire
        self._stage = stage
        self._road = Road(network=network, wire=wire, timeout=timeout, stage=stage)
        self._at_once = at_once
        self._on_progress = on_progress
        self._answers_with_events = True
        self._start: HttpRequest
        self._events: HttpRequest | None = None
        self._whole: Leg
        self._truth: Reading

    # The stream that is read from its log

    async def begin(self) -> bool:
        """Start a stream and read it uncut. Returns whether there is something to check."""
        key, self._start = self._new_stream()
        # Piece by piece, as a client that keeps up gets it: the most events and bytes that a live stream can have.
        leg, reading = await self._road.read_whole(self._start, staged=key)
        self._events = self._wire.find_events(self._start, leg.headers, leg.content)
        if leg.end == "no server":
            self.report.problem = "nobody answers there"
        elif leg.status is None:
            self.report.problem = f"the start was not answered ({leg.end})"
        elif leg.is_refused and leg.status >= 300:
            self.report.problem = f"the start was answered {leg.status}: {leg.content[:300].decode(errors='replace')}"
        elif leg.is_refused and self._events is None:
            self.report.problem = f"the start was answered {leg.status}, no event stream, and names none (wire: events)"
        elif leg.is_refused:
            self._answers_with_events = False
            assert self._events is not None
            leg, reading = await self._road.read_whole(self._events, staged=key)
        if self.report.problem is not None:
            return False
        self._whole, self._truth = leg, reading
        self.report.stream = _in_words(reading)
        if reading.events and not reading.texts:
            self.report.problem = "no event has text where the wire says that it is: is it another server's?"
            return False
        if not any(ord(character) > 0x7F for text in reading.texts.values() for character in text):
            self.report.notes.append("all characters are of one byte: no cut fell inside one")
        if (finding := judge_whole(leg, reading, self._wire)) is not None:
            self._fail("uncut", "", None, finding)
            return False
        if reading.events < MIN_EVENTS:
            self.report.problem = (
                f"the stream is too small: {reading.events} events, {MIN_EVENTS} are needed; ask for a longer one"
            )
            return False
        return True

    async def run_log(self, kind: ClientKind, cuts: Cuts) -> None:
        """Cut the one stream as this client."""
        first = self._known_address(kind).first(kind, from_log=True)
        if first is None:
            why = "it can only GET" if kind.only_gets else "no URL of a stream, and no {key} in the start"
            self.report.notes.append(f"{kind.name} cannot read a stream from its log here: {why}")
            return
        leg, reading = await self._road.read_whole(first)
        finding = judge_whole(leg, reading, self._wire)
        if finding is None and (reading.ids, reading.texts) != (self._truth.ids, self._truth.texts):
            message = "a second uncut reader gets other ids or another text than the first"
            difference = show_difference(self._truth.texts, reading.texts)
            finding = Finding(name=OTHER_TEXT, message=message, difference=difference)
        if finding is not None:
            self._fail("log", kind.name, None, finding)
            return

        async def cut(cut_at: int) -> _Outcome:
            trip = await self._road.travel(kind, self._known_address(kind), first, cut_at)
            if trip.legs[0].status in _GONE:
                return _Outcome(skipped="the stream has expired; pick fewer cuts")
            return self._judge(trip, self._truth)

        await self._run_row("log", kind, leg.size, cuts, cut)

    def _known_address(self, kind: ClientKind) -> StreamAddress:
        address = self._new_address(self._start)
        if kind.only_gets or not (self._wire.is_repeatable and self._answers_with_events):
            address.events = self._events
        return address

    # Streams that are being made

    async def run_live(self, kind: ClientKind, cuts: Cuts) -> None:
        """Cut a fresh stream at each byte as this client."""
        address = self._new_address(self._start)
        address.events = self._events
        first = address.first(kind, from_log=False)
        if first is None:
            self.report.notes.append(f"{kind.name} cannot read this server: it can only GET")
            return
        size = self._whole.size
        if first.target != self._whole.request.target and first.method == "GET":
            size = (await self._road.read_whole(first))[0].size

        async def cut(cut_at: int) -> _Outcome:
            key, start = self._new_stream()
            try:
                return await self._cut_live(kind, key, start, cut_at)
            finally:
                if self._stage is not None:
                    self._stage.release(key)

        await self._run_row("live", kind, size, cuts, cut)

    async def _cut_live(self, kind: ClientKind, key: str, start: HttpRequest, cut_at: int) -> _Outcome:
        address = self._new_address(start)
        is_beside = cut_at // 2 % 4 == 0  # with RST and with FIN, and for each of three clients that take turns
        watched: list[tuple[Leg, Reading]] = []

        async def watch(request: HttpRequest) -> None:
            watched.append(await self._road.read_whole(request))

        async with trio.open_nursery() as nursery:
            starter: Leg | None = None
            if not self._answers_with_events or (kind.only_gets and self._events is not None):
                starter = await nursery.start(self._start_for_others, start, watched, is_beside)
                address.learn(starter)
            first = address.first(kind, from_log=False)
            if first is None:
                return _Outcome(skipped=f"the start was answered {starter.status if starter else None}")

            async def on_head(leg: Leg) -> None:
                address.learn(leg)
                if is_beside and starter is None and address.events is not None:
                    nursery.start_soon(watch, address.events)

            if is_beside and not self._answers_with_events:
                nursery.start_soon(watch, first)
            trip = await self._road.travel(kind, address, first, cut_at, staged=key, on_head=on_head)
        for leg in trip.legs:
            if leg.status in _BUSY and not leg.asked:
                return _Outcome(skipped=f"the start was answered {leg.status}")
            address.learn(leg)
        if not watched and address.events is not None:
            await watch(address.events)
        elif not watched and self._wire.is_repeatable and self._answers_with_events:
            await watch(start)
        return self._judge_live(trip, watched[0] if watched else None)

    async def _start_for_others(
        self,
        start: HttpRequest,
        watched: list[tuple[Leg, Reading]],
        reads_on: bool,
        *,
        task_status: trio.TaskStatus[Leg],
    ) -> None:
        """Start a stream that somebody else reads; read on as the uncut reader, or leave."""
        with trio.CancelScope() as scope:

            async def on_head(leg: Leg) -> None:
                if self._answers_with_events:
                    task_status.started(leg)
                    if not reads_on:
                        scope.cancel()
                        await trio.lowlevel.checkpoint()

            leg, reading = await self._road.read_whole(start, on_head=on_head)
            if leg.is_event_stream:
                watched.append((leg, reading))
            elif leg.status is None or not self._answers_with_events:
                task_status.started(leg)

    def _judge_live(self, trip: Trip, watched: tuple[Leg, Reading] | None) -> _Outcome:
        if watched is None:
            outcome = self._judge(trip, None)
            outcome.is_unmeasured = True
            return outcome
        leg, truth = watched
        if (finding := judge_whole(leg, truth, self._wire)) is not None:
            message = f"the uncut reader beside or after the cut: {finding.message}"
            return _Outcome(Finding(name=finding.name, message=message))
        if self._stage is not None and truth.texts != self._truth.texts:
            message = "the uncut reader of a stream that was cut gets another text than that of the first stream"
            difference = show_difference(self._truth.texts, truth.texts)
            return _Outcome(Finding(name=OTHER_TEXT, message=message, difference=difference))
        return self._judge(trip, truth)

    # Both

    def _new_stream(self) -> tuple[str, HttpRequest]:
        key = f"check-{secrets.token_hex(8)}"
        return key, self._wire.start(self._road.network.base, key)

    def _new_address(self, start: HttpRequest) -> StreamAddress:
        return StreamAddress(self._wire, start, answers_with_events=self._answers_with_events)

    def _judge(self, trip: Trip, truth: Reading | None) -> _Outcome:
        if trip.skipped:
            return _Outcome(skipped=trip.skipped)
        return _Outcome(judge(trip, truth, self._wire), favoured=trip.favoured > 0)

    async def _run_row(
        self,
        phase: Phase,
        kind: ClientKind,
        size: int,
        cuts: Cuts,
        cut: Callable[[int], Awaitable[_Outcome]],
    ) -> None:
        places = cuts.of(size, f"{self.report.seed} {phase} {kind.name}")
        row = Row(phase=phase, client=kind.name, size=size, planned=len(places))
        self.report.rows.append(row)
        remaining = iter(places)

        async def work() -> None:
            for cut_at in remaining:
                if row.failed >= _ENOUGH_FAILURES:
                    row.stopped = True
                    return
                self._count(row, cut_at, await cut(cut_at))

        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(work)

    def _count(self, row: Row, cut_at: int, outcome: _Outcome) -> None:
        if outcome.skipped:
            row.skipped[outcome.skipped] += 1
        else:
            row.checked += 1
            row.favoured += outcome.favoured
            row.unmeasured += outcome.is_unmeasured
        if outcome.finding is not None:
            row.failed += 1
            self._fail(row.phase, row.client, cut_at, outcome.finding)
        if self._on_progress is not None:
            self._on_progress(row, row.checked + row.skipped.total())

    def _fail(self, phase: Phase | Literal["uncut"], client: str, cut_at: int | None, finding: Finding) -> None:
        self.report.failures.append(Failure(phase=phase, client=client, cut_at=cut_at, finding=finding))


def _in_words(reading: Reading) -> str:
    text = "".join(reading.texts.values())
    wide = sum(ord(character) > 0x7F for character in text)
    return (
        f"{reading.events} events, {len(reading.texts)} channels of text, {len(text):,} characters "
        f"({wide} of more than one byte)"
    )
