"""Cuts in a finished stream: the client reads it from the log, is cut, and resumes from the log."""

from __future__ import annotations

from typing import Final

from crucible_trio.testing.resume.checking import Checking, CutOutcome, Cuts
from crucible_trio.testing.resume.client_run import StreamAddress, run_client, turn_of
from crucible_trio.testing.resume.clients import ClientKind
from crucible_trio.testing.resume.judging import DIFFERENT_TEXT, Finding, judge_whole, show_difference

_GONE: Final = frozenset({404, 410})


async def run_log(checking: Checking, kind: ClientKind, cuts: Cuts) -> None:
    """Read the first stream again as this client, once for each cut, and compare with the first reading.

    Cancellation: closes the connections.
    """
    first = _address(checking, kind).first(kind, from_log=True)
    if first is None:
        why = "it sends only GET" if kind.only_gets else "the stream has no URL, and the start has no {key}"
        checking.report.notes.append(f"{kind.name} cannot read a stream from the log of this server: {why}")
        return
    exchange, reading = await checking.server.read_whole(first, turn=1)
    finding = judge_whole(exchange, reading, checking.wire)
    expected = checking.expected
    if finding is None and (reading.ids, reading.compared) != (expected.ids, expected.compared):
        message = "a second uncut reader received different ids or a different text"
        difference = show_difference(expected.compared, reading.compared)
        finding = Finding(name=DIFFERENT_TEXT, message=message, difference=difference)
    if finding is not None:
        checking.fail("log", kind.name, None, finding)
        return

    async def cut(cut_at: int) -> CutOutcome:
        run = await run_client(checking.server, kind, _address(checking, kind), first, cut_at, turn=turn_of(cut_at))
        if run.exchanges[0].status in _GONE:
            return CutOutcome(skipped="the stream has expired, so use fewer cuts")
        return checking.judge(run, expected)

    await checking.run_row("log", kind, exchange.size, cuts, cut)


def _address(checking: Checking, kind: ClientKind) -> StreamAddress:
    address = checking.new_address(checking.start)
    if kind.only_gets or not (checking.wire.is_repeatable and checking.start_streams):
        address.events = checking.events
    return address
