"""Cuts in streams that are still being generated.

Each cut has its own stream. A model need not write the same text twice, so the client is compared with a second reader
of the same stream, which is not cut. For a quarter of the cuts this reader is attached while the client is. For the
others it reads afterwards, so that the stream has no reader for a while.
"""

from __future__ import annotations

from typing import Final

import trio

from crucible_trio.testing.resume.checking import Checking, CutOutcome, Cuts
from crucible_trio.testing.resume.client_run import ClientRun, run_client, turn_of
from crucible_trio.testing.resume.clients import ClientKind
from crucible_trio.testing.resume.exchange import Exchange
from crucible_trio.testing.resume.judging import DIFFERENT_TEXT, Finding, judge_whole, show_difference
from crucible_trio.testing.resume.wire import HttpRequest, Reading

_BUSY: Final = frozenset({429, 503})


async def run_live(checking: Checking, kind: ClientKind, cuts: Cuts) -> None:
    """Start a new stream for each cut, and read it as this client.

    Cancellation: closes the connections.
    """
    address = checking.new_address(checking.start)
    address.events = checking.events
    first = address.first(kind, from_log=False)
    if first is None:
        checking.report.notes.append(f"{kind.name} cannot read this server: it sends only GET")
        return
    size = checking.whole.size
    if first.target != checking.whole.request.target and first.method == "GET":
        size = (await checking.server.read_whole(first))[0].size

    async def cut(cut_at: int) -> CutOutcome:
        key, start = checking.new_stream()
        try:
            return await _cut(checking, kind, key, start, cut_at)
        finally:
            if checking.stage is not None:
                checking.stage.release(key)

    await checking.run_row("live", kind, size, cuts, cut)


async def _cut(checking: Checking, kind: ClientKind, key: str, start: HttpRequest, cut_at: int) -> CutOutcome:
    address = checking.new_address(start)
    turn = turn_of(cut_at)
    # A quarter of the bytes: even and odd ones (FIN and RST), and spread over three clients that take turns.
    has_second_reader = cut_at // 2 % 4 == 0
    uncut: list[tuple[Exchange, Reading]] = []

    async def read_uncut(request: HttpRequest) -> None:
        uncut.append(await checking.server.read_whole(request, turn=turn + 1))

    async with trio.open_nursery() as nursery:
        started: Exchange | None = None
        if not checking.start_streams or (kind.only_gets and checking.events is not None):
            started = await nursery.start(_start_stream, checking, start, turn, uncut, has_second_reader)
            address.learn(started)
        first = address.first(kind, from_log=False)
        if first is None:
            return CutOutcome(skipped=f"the start got status {started.status if started else None}")

        async def on_head(exchange: Exchange) -> None:
            address.learn(exchange)
            if has_second_reader and started is None and address.events is not None:
                nursery.start_soon(read_uncut, address.events)

        if has_second_reader and not checking.start_streams:
            nursery.start_soon(read_uncut, first)
        first_turn = turn if started is None else turn + 1
        run = await run_client(
            checking.server, kind, address, first, cut_at, turn=first_turn, staged=key, on_head=on_head
        )
    for exchange in run.exchanges:
        if exchange.status in _BUSY and not exchange.asked:
            return CutOutcome(skipped=f"the start got status {exchange.status}")
        address.learn(exchange)
    if not uncut and address.events is not None:
        await read_uncut(address.events)
    elif not uncut and checking.wire.is_repeatable and checking.start_streams:
        await read_uncut(start)
    return _judge(checking, run, uncut[0] if uncut else None)


async def _start_stream(
    checking: Checking,
    start: HttpRequest,
    turn: int,
    uncut: list[tuple[Exchange, Reading]],
    keep_reading: bool,
    *,
    task_status: trio.TaskStatus[Exchange],
) -> None:
    """Start a stream for a client that cannot start it. Then stay and read, or disconnect."""
    with trio.CancelScope() as scope:

        async def on_head(exchange: Exchange) -> None:
            if checking.start_streams:
                task_status.started(exchange)
                if not keep_reading:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()

        exchange, reading = await checking.server.read_whole(start, turn=turn, on_head=on_head)
        if exchange.is_event_stream:
            uncut.append((exchange, reading))
        elif exchange.status is None or not checking.start_streams:
            task_status.started(exchange)


def _judge(checking: Checking, run: ClientRun, uncut: tuple[Exchange, Reading] | None) -> CutOutcome:
    if uncut is None:
        return checking.judge(run, None)
    exchange, reading = uncut
    if (finding := judge_whole(exchange, reading, checking.wire)) is not None:
        return CutOutcome(Finding(name=finding.name, message=f"the uncut reader of this stream: {finding.message}"))
    if checking.stage is not None and reading.texts != checking.expected.texts:
        message = "the uncut reader of this stream received a different text than the first stream's reader"
        difference = show_difference(checking.expected.texts, reading.texts)
        return CutOutcome(Finding(name=DIFFERENT_TEXT, message=message, difference=difference))
    return checking.judge(run, reading)
