"""A stretch of time over which a server is measured while its readers read."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.client.load import Load, Reader
from benchmarks.process import Cpu, Process, cpu
from benchmarks.stats import percentile
from benchmarks.tokens import TOKEN_LENGTH, latencies_ns


@dataclass(frozen=True)
class Window:
    """Times are `time.monotonic_ns()`.

    Attributes:
        began: Its first moment.
        ended: Its last.
        server: What the server's process used in it.
        client: What this process used in it.
    """

    began: int
    ended: int
    server: Cpu
    client: Cpu

    @property
    def seconds(self) -> float:
        """How long it was."""
        return (self.ended - self.began) / 1e9

    def conditions(self) -> dict[str, float]:
        """How much of it server and client ran, and waited for their core.

        The first says whether the client was the limit, the second whether somebody else's work was.
        """
        return {
            "server_ran": self.server.used / self.seconds,
            "client_ran": self.client.used / self.seconds,
            "server_waited": self.server.waited / self.seconds,
            "client_waited": self.client.waited / self.seconds,
        }


def measure(load: Load, process: Process, seconds: float) -> Window:
    """Read for this long, and see what that cost."""
    gc.collect()
    gc.disable()  # a collection of the client's would be a latency of the server's
    try:
        server, client, began = process.cpu(), cpu(os.getpid()), time.monotonic_ns()
        load.run_for(seconds)
        return Window(began, time.monotonic_ns(), process.cpu() - server, cpu(os.getpid()) - client)
    finally:
        gc.enable()


def tokens_in(readers: Iterable[Reader], window: Window) -> int:
    """How many tokens arrived in it, at all readers together."""
    return sum(
        len(delta) // TOKEN_LENGTH
        for reader in readers
        for arrived, deltas in reader.batches
        if window.began <= arrived < window.ended
        for delta in deltas
    )


def latencies_ms(readers: Iterable[Reader], window: Window) -> tuple[float, float]:
    """The median and the 99th percentile over the tokens that arrived in it."""
    under_way = [
        latency
        for reader in readers
        for arrived, deltas in reader.batches
        if window.began <= arrived < window.ended
        for delta in deltas
        for latency in latencies_ns(delta, arrived)
    ]
    return percentile(under_way, 0.5) / 1e6, percentile(under_way, 0.99) / 1e6
