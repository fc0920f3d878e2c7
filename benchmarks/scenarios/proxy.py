"""A gateway between a scripted model server and the clients."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.client.wire import Wire
from benchmarks.process import cores, running
from benchmarks.scenarios.pace import Pace
from benchmarks.scenarios.scenario import Figures, Metric
from benchmarks.servers import BenchServer

ADDED_P50 = Metric(name="added_p50_ms", label="added latency p50", unit="ms", is_difference=True)
ADDED_P99 = Metric(name="added_p99_ms", label="added latency p99", unit="ms", is_difference=True)

_SERVERS = Path(__file__).parent.parent / "servers"
_MODEL = BenchServer(
    label="model server", command=(sys.executable, "-m", "benchmarks.servers.model_server"), side="other"
)


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Streams through a gateway. The figures are those of the gateway's process.

    Attributes:
        pace: The streams.
        wire: What the clients of crucible_trio speak, if its server does not say. Other gateways speak `chat`.
        compare_direct: Whether the same streams are read from the model server first, for the added latency.
    """

    pace: Pace
    wire: Wire = "chat"
    compare_direct: bool = True

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round. crucible_trio runs the command of the server's checkout. Every token must arrive."""
        if server.side == "ours":
            server = replace(server, command=(sys.executable, str(_SERVERS / "gateway_crucible.py")))
        direct = self._direct() if self.compare_direct else {}
        with running(_MODEL, core=cores()[1]) as model:
            url = f"http://127.0.0.1:{model.port}/v1"
            with running(replace(server, command=(*server.command, url))) as process:
                process.wait_until_listening()
                figures = self.pace.measure(process, model, server.wire or self.wire)
        added = {f"added_{name}": figures[name] - direct[name] for name in ("p50_ms", "p99_ms") if name in direct}
        return figures | added

    def _direct(self) -> Figures:
        with running(_MODEL) as model:  # on the core of the gateways
            return self.pace.measure(model, model, "chat")
