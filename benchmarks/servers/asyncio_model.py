"""The stand-in model of the asyncio servers. `trio_model.py` is its counterpart for trio.

It is part of the benchmark, not of a rival: each rival's file decides how a token is delivered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from benchmarks.spec import Spec
from benchmarks.tokens import stamp, token

Put: TypeAlias = Callable[[str], Awaitable[None]]


class _AsyncioMember:
    """A stream of the batch, and its next token."""

    def __init__(self, spec: Spec, put: Put) -> None:
        self.put = put
        self.number = spec.fill
        self.end = spec.fill + spec.tokens
        self.done = asyncio.Event()


class AsyncioModel:
    """Generates the tokens of all streams.

    Attributes:
        made: Tokens generated so far in all streams, including one that is still being written.
        stopped: By stream name, when the cancellation reached the model, in `time.monotonic_ns()`.
        go: Starts `batch` and `timer` streams, and the tokens after a `fill`.
    """

    def __init__(self) -> None:
        self.made = 0
        self.stopped: dict[str, int] = {}
        self.go = asyncio.Event()
        self._batch: dict[_AsyncioMember, None] = {}
        self._ticking: asyncio.Task[None] | None = None

    def report(self) -> dict[str, object]:
        """The answer to `GET /bench`."""
        return {"made": self.made, "stopped": self.stopped}

    async def generate(self, spec: Spec, put: Put) -> None:
        """Generate the tokens of one stream."""
        try:
            for number in range(spec.fill):
                await self._make(put, stamp(time.monotonic_ns()), number)
                await asyncio.sleep(0)
            if spec.kind == "flood":
                await self._flood(spec, put)
                return
            await self.go.wait()
            if spec.kind == "batch":
                await self._wait_for_batch(spec, put)
            elif spec.kind == "timer":
                await self._follow_timer(spec, put)
            else:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
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
        due = time.monotonic() + spec.offset * period
        for number in range(spec.fill, spec.fill + spec.tokens):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._make(put, stamp(time.monotonic_ns()), number)
            due = max(due + period, time.monotonic())

    async def _wait_for_batch(self, spec: Spec, put: Put) -> None:
        member = _AsyncioMember(spec, put)
        self._batch[member] = None
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick(1 / spec.rate))
        try:
            await member.done.wait()
        finally:
            self._batch.pop(member, None)

    async def _tick(self, period: float) -> None:
        due = time.monotonic()
        while True:
            due = max(due + period, time.monotonic())  # a delayed model does not catch up
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            stamped = stamp(time.monotonic_ns())
            for member in tuple(self._batch):
                if member not in self._batch:  # cancelled while another stream's token was written
                    continue
                self.made += 1
                await member.put(token(stamped, member.number))
                member.number += 1
                if member.number == member.end:
                    self._batch.pop(member, None)
                    member.done.set()
