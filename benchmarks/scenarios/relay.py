"""`crucible serve --base-url` between a scripted model server and the clients."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.process import cores, running
from benchmarks.scenarios.pace import Pace
from benchmarks.scenarios.scenario import Figures
from benchmarks.servers import BenchServer

_SERVERS = Path(__file__).parent.parent / "servers"
_MODEL = BenchServer(
    label="model server", command=(sys.executable, "-m", "benchmarks.servers.model_server"), side="other"
)


@dataclass(frozen=True, kw_only=True)
class Relay:
    """Streams through the upstream engine. The figures are those of the gateway's process.

    Attributes:
        pace: The streams.
    """

    pace: Pace

    def __call__(self, server: BenchServer) -> Figures:
        """Run one round, with the command of the server's checkout. Every token must arrive."""
        with running(_MODEL, core=cores()[1]) as model:
            url = f"http://127.0.0.1:{model.port}/v1"
            gateway = replace(server, command=(sys.executable, str(_SERVERS / "relay.py"), url))
            with running(gateway) as process:
                process.wait_until_listening()
                return self.pace.measure(process, model)
