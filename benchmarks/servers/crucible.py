"""crucible_trio: its public API on its own server.

`--plain` turns direct writes off. `--log URL` puts the logs into Redis.
"""

from __future__ import annotations

import argparse
from functools import partial

import trio
from msgspec.structs import replace

from benchmarks.servers.trio_model import TrioModel
from benchmarks.spec import Spec
from crucible_trio import EngineInfo, Finish, Output, Request, Settings, open_pipeline
from crucible_trio.cli.serve import keep_out_of_collections
from crucible_trio.server import Config, serve
from crucible_trio.settings import ServerSettings
from crucible_trio.web import create_app

# Only limits are raised. Settings that cost time or memory keep their defaults.
SETTINGS = Settings(
    max_streams=20_000,
    max_readers_per_stream=1_000,
    max_output_tokens=1_000_000_000,
    stream_log_bytes=1 << 30,
    total_log_bytes=1 << 34,
)


class ModelEngine:
    """The stand-in model as an engine."""

    info = EngineInfo(name="benchmark", models=("benchmark",))

    def __init__(self, model: TrioModel, *, waits_for_log: bool) -> None:
        self._model = model
        self._waits_for_log = waits_for_log

    async def generate(self, request: Request, output: Output) -> Finish:
        assert isinstance(request.input, str)
        recorded = partial(_recorded, output) if self._waits_for_log else None
        await self._model.generate(Spec.from_json(request.input), output.delta, recorded)
        return Finish()


async def _recorded(output: Output, records: int) -> None:
    log = output._sink.log  # private: an engine needs no log, and only the benchmark needs one record for each token
    while log.head < records:
        await trio.lowlevel.checkpoint()
        await log.flushed()


async def main(*, direct_writes: bool, log_url: str | None) -> None:
    # A log in memory records a token within the passes that the model waits for. Redis takes longer.
    model = TrioModel()
    engine = ModelEngine(model, waits_for_log=log_url is not None)
    config = Config.from_settings(ServerSettings(bind=("127.0.0.1:0",)))
    config.direct_writes = direct_writes
    settings = replace(SETTINGS, log_url=log_url)
    async with open_pipeline(engine, settings) as pipeline, trio.open_nursery() as nursery:
        app = create_app(pipeline)
        model.add_control(app)
        nursery.start_soon(model.run)
        [url] = await nursery.start(partial(serve, app, config))
        keep_out_of_collections()  # as `crucible serve` does
        print(url.rpartition(":")[2], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--log", metavar="URL")
    arguments = parser.parse_args()
    trio.run(partial(main, direct_writes=not arguments.plain, log_url=arguments.log))
