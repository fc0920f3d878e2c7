"""What stands for the model in the trio servers; `asyncio_model.py` is the same for asyncio."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

from benchmarks.spec import Spec
from benchmarks.tokens import stamp, token

Put: TypeAlias = Callable[[str], Awaitable[None]]

# Turns of the scheduler after which whoever records a token has done so: the next becomes a record of its own. A sleep
# would do as well, but takes a whole millisecond.
_FILL_TURNS = 4


class _Member:
    """A stream that the batch gives tokens to."""

    def __init__(self, spec: Spec, put: Put) -> None:
        self.put = put
        self.number = spec.fill
        self.end = spec.fill + spec.tokens
        self.done = trio.Event()


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
        self.go = trio.Event()
        self._batch: dict[_Member, None] = {}
        self._period = 0.0
        self._batch_began = trio.Event()

    async def run(self) -> None:
        """Give the batch its tokens, until cancelled."""
        await self._batch_began.wait()
        due = trio.current_time()
        while True:
            due = max(due + self._period, trio.current_time())  # a model that was held up does not hurry afterwards
            await trio.sleep_until(due)
            stamped = stamp(time.monotonic_ns())
            for member in tuple(self._batch):
                if member not in self._batch:  # stopped while another one's token was put
                    continue
                self.made += 1
                try:
                    await member.put(token(stamped, member.number))
                except trio.ClosedResourceError:  # stopped while its own was
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

    async def generate(self, spec: Spec, put: Put) -> None:
        """Make one stream's tokens."""
        try:
            for number in range(spec.fill):
                await self._make(put, stamp(time.monotonic_ns()), number)
                for _ in range(_FILL_TURNS):
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
        member = _Member(spec, put)
        self._batch[member] = None
        self._period = 1 / spec.rate
        self._batch_began.set()
        try:
            await member.done.wait()
        finally:
            self._batch.pop(member, None)
