"""Engines this package brings along, and the one that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from crucible_trio.engine import Engine
from crucible_trio.settings.engines import EngineSettings

Progress: TypeAlias = Callable[[int, int | None], None]


@asynccontextmanager
async def open_engine(settings: EngineSettings, *, progress: Progress | None = None) -> AsyncIterator[Engine]:
    """Open the engine that the settings name; what it holds is freed with the context.

    Args:
        settings: The engine and its settings.
        progress: Called with bytes done and bytes in all (None: unknown) while a model is fetched.

    Raises:
        ConfigError: The engine cannot run here as it is set. There is no falling back to another one: a recording in
            place of a model would be a lie.
    """
    # Imported when needed: a recording needs no HTTP client, an upstream no model in this process.
    if settings.engine == "replay":
        from crucible_trio.engines.replay import ReplayEngine

        yield ReplayEngine(speed=settings.replay_speed)
    elif settings.engine == "upstream":
        from crucible_trio.engines.upstream import THINKING, open_upstream

        assert settings.upstream_base_url is not None  # settings without it cannot be made
        async with open_upstream(
            settings.upstream_base_url,
            model=settings.model,
            key=settings.upstream_key,
            thinking=settings.upstream_thinking or THINKING,
            extra_body=settings.upstream_extra_body,
            limit_field=settings.upstream_limit_field,
        ) as upstream:
            yield upstream
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
