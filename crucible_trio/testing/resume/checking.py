"""State and steps that both phases of a check share: the first stream, judging and counting cuts, the report."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

import trio

from crucible_trio.testing.resume.client_run import ClientRun, StreamAddress
from crucible_trio.testing.resume.clients import ClientKind
from crucible_trio.testing.resume.exchange import Exchange, ServerUnderTest
from crucible_trio.testing.resume.judging import Finding, judge, judge_whole
from crucible_trio.testing.resume.network import Network
from crucible_trio.testing.resume.report import Failure, Phase, Report, Row
from crucible_trio.testing.resume.stage import Stage
from crucible_trio.testing.resume.wire import HttpRequest, Reading, WireFormat

CheckProgress: TypeAlias = Callable[[Row, int], None]
"""Called after each cut with its row and the number of cuts in the row so far."""

MIN_EVENTS: Final = 20  # a shorter stream has too few places where an event can get lost

# One bug in a server fails nearly every cut. The first failures are enough to find it.
_MAX_FAILURES: Final = 16

_FIRST_NOT_OK: Final = 300


@final
@dataclass(frozen=True, slots=True)
class Cuts:
    """Selects the bytes to cut at.

    Attributes:
        given: These bytes. None selects from all bytes of the response.
        picked: Number of bytes to pick at random. None picks all.
        turn: The client's turn, from 0. It gets every `turns`-th of the selected bytes.
        turns: Number of clients that take turns. 1 gives each client all selected bytes.
    """

    given: Sequence[int] | None
    picked: int | None
    turn: int
    turns: int

    def select(self, size: int, seed: str) -> list[int]:
        """Return the bytes to cut at in a response of `size` bytes."""
        if self.given is not None:
            return list(self.given)
        places = list(range(size + 1))
        if self.picked is not None and self.picked < len(places):
            places = sorted(random.Random(seed).sample(places, self.picked))
        return places[self.turn :: self.turns]


@final
@dataclass(slots=True)
class CutOutcome:
    """The outcome of one cut.

    Attributes:
        finding: The fault, if there is one.
        skipped: Why the cut was not judged. Empty if it was.
        is_in_gap: Whether the cut was in the client's own gap, see `ClientState`.
        by_ids_only: Whether only ids were checked, for lack of an uncut reader.
        servers: The servers that the client's connections reached, in order.
    """

    finding: Finding | None = None
    skipped: str = ""
    is_in_gap: bool = False
    by_ids_only: bool = False
    servers: tuple[str, ...] = ()


@final
class Checking:
    """One check of one server. The parameters are those of `check`.

    Attributes:
        report: The report, which grows during the check.
        server: The server under test.
        wire: How its streams are started and read.
        stage: The stage that its engine waits at, if any.
        start_streams: Whether the response to a start is the event stream.
        start: The start of the first stream.
        events: The GET for the first stream's events, if the stream has a URL.
        whole: The exchange in which the first stream was read uncut.
        expected: The events of the first stream.
    """

    def __init__(
        self,
        networks: tuple[Network, ...],
        wire: WireFormat,
        stage: Stage | None,
        timeout: float,
        report: Report,
        at_once: int,
        on_progress: CheckProgress | None,
    ) -> None:
        self.report = report
        self.server = ServerUnderTest(networks=networks, wire=wire, timeout=timeout, stage=stage)
        self.wire = wire
        self.stage = stage
        self.start_streams = True
        self.start: HttpRequest
        self.events: HttpRequest | None = None
        self.whole: Exchange
        self.expected: Reading
        self._at_once = at_once
        self._on_progress = on_progress

    async def begin(self) -> bool:
        """Start the first stream and read it uncut. Returns whether the check can continue."""
        key, self.start = self.new_stream()
        # Staged, as a client that keeps up receives it. No live stream can have more events or bytes.
        exchange, reading = await self.server.read_whole(self.start, staged=key)
        self.events = self.wire.find_events(self.start, exchange.headers, exchange.content)
        status = exchange.status
        if exchange.end == "no server":
            self.report.problem = "no server answers at this address"
        elif status is None:
            self.report.problem = f"the start got no response ({exchange.end})"
        elif exchange.is_refused and status >= _FIRST_NOT_OK:
            content = exchange.content[:300].decode(errors="replace")
            self.report.problem = f"the start got status {status}: {content}"
        elif exchange.is_refused and self.events is None:
            self.report.problem = (
                f"the start got status {status} without an event stream or its URL (`events` in the wire)"
            )
        elif exchange.is_refused:
            self.start_streams = False
            assert self.events is not None
            exchange, reading = await self.server.read_whole(self.events, turn=1, staged=key)
        if self.report.problem is not None:
            return False
        self.whole, self.expected = exchange, reading
        self.report.stream = _describe(reading)
        if reading.events and not reading.has_text:
            self.report.problem = "no event has text where the wire expects it. Does the wire describe this server?"
            return False
        if not any(ord(character) > 0x7F for text in reading.texts.values() for character in text):
            self.report.notes.append("the text is ASCII only, so no cut was inside a character")
        if (finding := judge_whole(exchange, reading, self.wire)) is not None:
            self.fail("uncut", "", None, finding)
            return False
        if reading.events < MIN_EVENTS:
            self.report.problem = (
                f"the stream is too short: {reading.events} events, at least {MIN_EVENTS} are needed. Use an engine "
                "that writes more slowly, because a server may merge text that it gets at the same time into one event "
                "(crucible serve --engine replay: --replay-speed 1). Or use a wire file whose `body` asks for a longer "
                "answer"
            )
            return False
        return True

    def new_stream(self) -> tuple[str, HttpRequest]:
        """Return a key and the start of a new stream with this key."""
        key = f"check-{secrets.token_hex(8)}"
        return key, self.wire.start(self.server.networks[0].base, key)

    def new_address(self, start: HttpRequest) -> StreamAddress:
        """Return the address of a new stream, of which the client knows only the start."""
        return StreamAddress(self.wire, start, start_streams=self.start_streams)

    def judge(self, run: ClientRun, expected: Reading | None) -> CutOutcome:
        """Judge a client's run. Without `expected`, by ids only."""
        if run.skipped:
            return CutOutcome(skipped=run.skipped)
        return CutOutcome(
            judge(run, expected, self.wire),
            is_in_gap=run.gap_cuts > 0,
            by_ids_only=expected is None,
            servers=tuple(exchange.server for exchange in run.exchanges),
        )

    async def run_row(
        self,
        phase: Phase,
        kind: ClientKind,
        size: int,
        cuts: Cuts,
        cut: Callable[[int], Awaitable[CutOutcome]],
    ) -> None:
        """Make all cuts of one client in one phase and count their outcomes.

        Args:
            phase: The phase.
            kind: The client.
            size: Bytes of the uncut response.
            cuts: Selects the bytes.
            cut: Makes one cut.
        """
        places = cuts.select(size, f"{self.report.seed} {phase} {kind.name}")
        row = Row(phase=phase, client=kind.name, size=size, planned=len(places))
        self.report.rows.append(row)
        remaining = iter(places)

        async def work() -> None:
            for cut_at in remaining:
                if row.failed >= _MAX_FAILURES:
                    row.stopped = True
                    return
                self._count(row, cut_at, await cut(cut_at))

        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(work)

    def _count(self, row: Row, cut_at: int, outcome: CutOutcome) -> None:
        if outcome.skipped:
            row.skipped[outcome.skipped] += 1
        else:
            row.checked += 1
            row.in_gap += outcome.is_in_gap
            row.by_ids_only += outcome.by_ids_only
            row.connections.update(outcome.servers)
        if outcome.finding is not None:
            row.failed += 1
            self.fail(row.phase, row.client, cut_at, outcome.finding, outcome.servers)
        if self._on_progress is not None:
            self._on_progress(row, row.checked + row.skipped.total())

    def fail(
        self,
        phase: Phase | Literal["uncut"],
        client: str,
        cut_at: int | None,
        finding: Finding,
        servers: tuple[str, ...] = (),
    ) -> None:
        """Add a failure to the report."""
        failure = Failure(phase=phase, client=client, cut_at=cut_at, finding=finding, servers=servers)
        self.report.failures.append(failure)


def _describe(reading: Reading) -> str:
    text = "".join(reading.texts.values())
    wide = sum(ord(character) > 0x7F for character in text)
    return (
        f"{reading.events} events, {len(reading.texts)} channels of text, {len(text):,} characters "
        f"({wide} of more than one byte)"
    )
