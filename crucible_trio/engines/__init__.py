"""The engines of this package, and how to open the one that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from crucible_trio.engine import Engine
from crucible_trio.engines.progress import DownloadProgress
from crucible_trio.settings.engines import EngineSettings


@asynccontextmanager
async def open_engine(settings: EngineSettings, *, progress: DownloadProgress | None = None) -> AsyncIterator[Engine]:
    """Open the engine that the settings name. Its resources are freed with the context.

    Args:
        settings: The engine and its settings.
        progress: Called now and then while a model is downloaded.

    Raises:
        ConfigError: The engine cannot run with these settings on this machine. No other engine takes its place: a
            recording must not pass for a model.
    """
    # Imported when needed: a recording needs no HTTP client, and an upstream needs no model in this process.
    if settings.engine == "replay":
        from crucible_trio.engines.replay import ReplayEngine

        yield ReplayEngine(speed=settings.replay_speed)
    elif settings.engine == "upstream":
        from crucible_trio.engines.upstreams import open_upstreams

        async with open_upstreams(settings) as upstreams:
            yield upstreams
    else:
        from crucible_trio.engines.local import open_local

        async with open_local(
            settings.model,
            slots=settings.local_slots,
            threads=settings.local_threads,
            context_tokens=settings.local_context_tokens,
            progress=progress,
        ) as local:
            yield local
