"""The stand-in model of the trio servers. `asyncio_model.py` is its counterpart for asyncio."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

from benchmarks.spec import Spec
from benchmarks.tokens import stamp, token

Put: TypeAlias = Callable[[str], Awaitable[None]]
Recorded: TypeAlias = Callable[[int], Awaitable[None]]
"""Waits until a log has this many records."""

# Scheduler passes after which a token has been recorded, so that the next token becomes a separate record. A sleep
# would work too, but takes a whole millisecond.
_FILL_PASSES = 4


class _TrioMember:
    """A stream of the batch, and its next token."""

    def __init__(self, spec: Spec, put: Put) -> None:
        self.put = put
        self.number = spec.fill
        self.end = spec.fill + spec.tokens
        self.done = trio.Event()


class TrioModel:
    """Generates the tokens of all streams.

    Attributes:
        made: Tokens generated so far in all streams, including one that is still being written.
        stopped: By stream name, when the cancellation reached the model, in `time.monotonic_ns()`.
        go: Starts `batch` and `timer` streams, and the tokens after a `fill`.
    """

    def __init__(self) -> None:
        self.made = 0
        self.stopped: dict[str, int] = {}
        self.go = trio.Event()
        self._batch: dict[_TrioMember, None] = {}
        self._period = 0.0
        self._batch_began = trio.Event()

    async def run(self) -> None:
        """Write one token to each stream of the batch at every tick, until cancelled."""
        await self._batch_began.wait()
        due = trio.current_time()
        while True:
            due = max(due + self._period, trio.current_time())  # a delayed model does not catch up
            await trio.sleep_until(due)
            stamped = stamp(time.monotonic_ns())
            for member in tuple(self._batch):
                if member not in self._batch:  # cancelled while another stream's token was written
                    continue
                self.made += 1
                try:
                    await member.put(token(stamped, member.number))
                except trio.ClosedResourceError:  # cancelled while its own was written
                    self._batch.pop(member, None)
                    continue
                member.number += 1
                if member.number == member.end:
                    self._batch.pop(member, None)
                    member.done.set()

    def add_control(self, app: Any) -> None:
        """Add `GET /bench` and `GET /bench/go` to a Quart application."""

        async def report() -> dict[str, object]:
            return {"made": self.made, "stopped": self.stopped}

        async def go() -> dict[str, object]:
            self.go.set()
            return {}

        app.add_url_rule("/bench", "bench", report)
        app.add_url_rule("/bench/go", "bench_go", go)

    async def generate(self, spec: Spec, put: Put, recorded: Recorded | None = None) -> None:
        """Generate the tokens of one stream.

        Args:
            spec: What it generates.
            put: Writes a token.
            recorded: Makes each token of the `fill` a separate record, however long the log takes to record it.
        """
        try:
            for number in range(spec.fill):
                await self._make(put, stamp(time.monotonic_ns()), number)
                if recorded is not None:
                    await recorded(number + 2)  # record 1 has no token
                    continue
                for _ in range(_FILL_PASSES):
                    await trio.lowlevel.checkpoint()
            if spec.kind == "flood":
                await self._flood(spec, put)
                return
            await self.go.wait()
            if spec.kind == "batch":
                await self._wait_for_batch(spec, put)
            elif spec.kind == "timer":
                await self._follow_timer(spec, put)
            else:
                await trio.sleep_forever()
        except trio.Cancelled:
            self.stopped[spec.name] = time.monotonic_ns()
            raise

    async def _make(self, put: Put, stamped: str, number: int) -> None:
        self.made += 1
        await put(token(stamped, number))

    async def _flood(self, spec: Spec, put: Put) -> None:
        end = time.monotonic_ns() + int(spec.seconds * 1e9)
        number = spec.fill
        while number < spec.fill + spec.tokens and (now := time.monotonic_ns()) < end:
            self.made += 1
            await put(token(stamp(now), number))
            number += 1

    async def _follow_timer(self, spec: Spec, put: Put) -> None:
        period = 1 / spec.rate
        due = trio.current_time() + spec.offset * period
        for number in range(spec.fill, spec.fill + spec.tokens):
            await trio.sleep_until(due)
            await self._make(put, stamp(time.monotonic_ns()), number)
            due = max(due + period, trio.current_time())

    async def _wait_for_batch(self, spec: Spec, put: Put) -> None:
        member = _TrioMember(spec, put)
        self._batch[member] = None
        self._period = 1 / spec.rate
        self._batch_began.set()
        try:
            await member.done.wait()
        finally:
            self._batch.pop(member, None)
