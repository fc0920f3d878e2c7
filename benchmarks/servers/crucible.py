"""crucible_trio: its public API on its own server.

`--plain` turns direct writes off. `--log URL` puts the logs into Redis.
"""

from __future__ import annotations

import argparse
from functools import partial

import trio
from msgspec.structs import replace

from benchmarks.servers.trio_model import Recorded, TrioModel
from benchmarks.spec import Spec
from crucible_trio import EngineInfo, Finish, Output, Pipeline, Request, Settings, open_pipeline
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
    """The stand-in model as an engine.

    Attributes:
        pipeline: The pipeline that calls it.
    """

    info = EngineInfo(name="benchmark", models=("benchmark",))
    pipeline: Pipeline

    def __init__(self, model: TrioModel) -> None:
        self._model = model

    async def generate(self, request: Request, output: Output) -> Finish:
        assert isinstance(request.input, str)
        spec = Spec.from_json(request.input)
        # A log in memory records a token within the model's passes. Redis takes longer.
        is_slow = spec.fill and self.pipeline.settings.log_url is not None
        await self._model.generate(spec, output.delta, await self._recorded(request) if is_slow else None)
        return Finish()

    async def _recorded(self, request: Request) -> Recorded:
        [stream] = [each for each in await self.pipeline.list() if each.request.input == request.input]

        async def recorded(records: int) -> None:
            while stream.log.head < records:
                await trio.lowlevel.checkpoint()

        return recorded


async def main(*, direct_writes: bool, log_url: str | None) -> None:
    model = TrioModel()
    engine = ModelEngine(model)
    config = Config.from_settings(ServerSettings(bind=("127.0.0.1:0",)))
    config.direct_writes = direct_writes
    async with (
        open_pipeline(engine, replace(SETTINGS, log_url=log_url)) as pipeline,
        trio.open_nursery() as nursery,
    ):
        engine.pipeline = pipeline
        app = create_app(pipeline)
        model.add_control(app)
        nursery.start_soon(model.run)
        [url] = await nursery.start(partial(serve, app, config))
        print(url.rpartition(":")[2], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--log", metavar="URL")
    arguments = parser.parse_args()
    trio.run(partial(main, direct_writes=not arguments.plain, log_url=arguments.log))
