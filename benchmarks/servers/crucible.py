"""crucible_trio: its public API on its own server. `--plain` turns direct writes off."""

from __future__ import annotations

import os
import sys
from functools import partial

import trio

from benchmarks.servers.trio_model import TrioModel
from benchmarks.spec import Spec
from crucible_trio import EngineInfo, Finish, Output, Request, Settings, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.server.collector import collect_rarely
from crucible_trio.settings import ServerSettings
from crucible_trio.web import create_app

# Only limits are raised. Settings that cost time or memory keep their defaults.
SETTINGS = Settings(
    max_streams=20_000,
    max_readers_per_stream=1_000,
    max_output_tokens=1_000_000_000,
    stream_log_bytes=1 << 30,
    total_log_bytes=1 << 34,
    log_url=os.environ.get("BENCH_LOG_URL"),  # docs/performance.md: with the log in Redis
)


class ModelEngine:
    """The stand-in model as an engine."""

    info = EngineInfo(name="benchmark", models=("benchmark",))

    def __init__(self, model: TrioModel) -> None:
        self._model = model

    async def generate(self, request: Request, output: Output) -> Finish:
        assert isinstance(request.input, str)
        await self._model.generate(Spec.from_json(request.input), output.delta)
        return Finish()


async def main(*, direct_writes: bool) -> None:
    model = TrioModel()
    config = Config.from_settings(ServerSettings(bind=("127.0.0.1:0",)))
    config.direct_writes = direct_writes
    async with open_pipeline(ModelEngine(model), SETTINGS) as pipeline, trio.open_nursery() as nursery:
        app = create_app(pipeline)
        model.add_control(app)
        nursery.start_soon(model.run)
        [url] = await nursery.start(partial(serve, app, config))
        print(url.rpartition(":")[2], flush=True)


if __name__ == "__main__":
    collect_rarely()  # as `crucible serve` does
    trio.run(partial(main, direct_writes="--plain" not in sys.argv))
