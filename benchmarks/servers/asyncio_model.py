"""What stands for the model in the asyncio servers; `trio_model.py` is the same for trio.

This is the benchmark's, not a rival's: what a rival does with a token is in its own file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from benchmarks.spec import Spec
from benchmarks.tokens import stamp, token

Put: TypeAlias = Callable[[str], Awaitable[None]]


class _Member:
    """A stream that the batch gives tokens to."""

    def __init__(self, spec: Spec, put: Put) -> None:
        self.put = put
        self.number = spec.fill
        self.end = spec.fill + spec.tokens
        self.done = asyncio.Event()


class Model:
    """Makes the tokens of all streams.

    Attributes:
        made: Tokens made so far, all streams together; the one in hand counts.
        stopped: By name, when a stream's model saw that it was stopped, in `time.monotonic_ns()`.
        go: What `batch`, `timer` and what follows a `fill` wait for.
    """

    def __init__(self) -> None:
        self.made = 0
        self.stopped: dict[str, int] = {}
        self.go = asyncio.Event()
        self._batch: dict[_Member, None] = {}
        self._ticking: asyncio.Task[None] | None = None

    def report(self) -> dict[str, object]:
        """What `GET /bench` says."""
        return {"made": self.made, "stopped": self.stopped}

    async def generate(self, spec: Spec, put: Put) -> None:
        """Make one stream's tokens."""
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
        member = _Member(spec, put)
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
            due = max(due + period, time.monotonic())  # a model that was held up does not hurry afterwards
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            stamped = stamp(time.monotonic_ns())
            for member in tuple(self._batch):
                if member not in self._batch:  # stopped while another one's token was put
                    continue
                self.made += 1
                await member.put(token(stamped, member.number))
                member.number += 1
                if member.number == member.end:
                    self._batch.pop(member, None)
                    member.done.set()
