"""The time for which a server is measured while its readers read."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.client.load import Load, LoadReader
from benchmarks.process import Cpu, ServerProcess, cpu
from benchmarks.scenarios.scenario import Figures
from benchmarks.stats import percentile
from benchmarks.tokens import TOKEN_LENGTH, latencies_ns


@dataclass(frozen=True)
class Window:
    """A measured time. `began` and `ended` are `time.monotonic_ns()`.

    Attributes:
        began: The start.
        ended: The end.
        server: CPU time of the server's process.
        client: CPU time of this process.
        beside: CPU time of the other processes of the server's deployment, by name.
    """

    began: int
    ended: int
    server: Cpu
    client: Cpu
    beside: dict[str, Cpu]

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.ended - self.began) / 1e9

    def cpu_us(self, tokens: int) -> Figures:
        """The CPU time per token in µs: of the server, of each process beside it, and of all of them."""
        beside = {f"{name}_us": cpu.used * 1e6 / tokens for name, cpu in self.beside.items()}
        own = self.server.used * 1e6 / tokens
        return {"cpu_us": own, **beside, "total_us": own + sum(beside.values())}

    def conditions(self) -> dict[str, float]:
        """The shares of the window for which server and client ran, and waited for their core.

        A client that always ran was the limit. A process that waited was disturbed by other processes.
        """
        return {
            "server_ran": self.server.used / self.seconds,
            "client_ran": self.client.used / self.seconds,
            "server_waited": self.server.waited / self.seconds,
            "client_waited": self.client.waited / self.seconds,
        }


def measure(load: Load, process: ServerProcess, seconds: float) -> Window:
    """Read for this many seconds, and measure server and client."""
    return measure_while(process, lambda: load.run_for(seconds))


def measure_while(process: ServerProcess, run: Callable[[], None]) -> Window:
    """Measure server and client during a call that reads."""
    gc.collect()
    gc.disable()  # a garbage collection in the client would count as latency of the server
    try:
        beside = {name: each.cpu() for name, each in process.beside.items()}
        server, client, began = process.cpu(), cpu(os.getpid()), time.monotonic_ns()
        run()
        ended, server, client = time.monotonic_ns(), process.cpu() - server, cpu(os.getpid()) - client
        return Window(
            began, ended, server, client, {name: process.beside[name].cpu() - was for name, was in beside.items()}
        )
    finally:
        gc.enable()


def tokens_in(readers: Iterable[LoadReader], window: Window) -> int:
    """The number of tokens that arrived in the window, at all readers together."""
    return sum(
        len(delta) // TOKEN_LENGTH
        for reader in readers
        for arrived, deltas in reader.batches
        if window.began <= arrived < window.ended
        for delta in deltas
    )


def latencies_ms(readers: Iterable[LoadReader], window: Window) -> tuple[float, float]:
    """The median and the 99th percentile of the latency, over the tokens that arrived in the window."""
    latencies = [
        latency
        for reader in readers
        for arrived, deltas in reader.batches
        if window.began <= arrived < window.ended
        for delta in deltas
        for latency in latencies_ns(delta, arrived)
    ]
    return percentile(latencies, 0.5) / 1e6, percentile(latencies, 0.99) / 1e6
