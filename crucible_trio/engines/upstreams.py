"""Opens the upstream servers that the settings name, as one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager

from crucible_trio.background import background_tasks
from crucible_trio.engine import Engine
from crucible_trio.engines.router import RouterEngine
from crucible_trio.engines.watching import DiscoversModels, watch_all
from crucible_trio.errors import ConfigError
from crucible_trio.settings.engines import EngineSettings
from crucible_trio.settings.upstreams import UpstreamSettings


@asynccontextmanager
async def open_upstreams(settings: EngineSettings) -> AsyncIterator[Engine]:
    """Open all upstream servers. Their connections close with the context.

    A server in a table may be down: its models appear when it is up. The only server, without a table, must say which
    models it has, or the settings must name one.

    Raises:
        ConfigError: A setting is wrong, or the only server does not say which models it has.
    """
    has_tables = bool(settings.upstreams)
    async with AsyncExitStack() as stack:
        engines: list[DiscoversModels] = []
        for name, table in settings.all_upstreams.items():
            with _errors_name_table(name if has_tables else None):
                engines.append(await stack.enter_async_context(_open(name, table, must_be_up=not has_tables)))
        nursery = await stack.enter_async_context(background_tasks())
        # With `model` the only server has never been asked for its models, and some servers have no list.
        await watch_all([engine for engine in engines if has_tables or settings.model is None], nursery)
        yield engines[0] if len(engines) == 1 else RouterEngine(engines, name=", ".join(settings.upstreams))


def _open(name: str, table: UpstreamSettings, *, must_be_up: bool) -> AbstractAsyncContextManager[DiscoversModels]:
    """Open one server by its kind."""
    if table.kind == "crucible":
        from crucible_trio.engines.crucible import open_crucible_upstream

        return open_crucible_upstream(
            table.base_url,
            name=name,
            models=table.models or (),
            must_be_up=must_be_up,
            key=table.key,
            capabilities=table.capabilities.declared,
        )
    from crucible_trio.engines.upstream import THINKING, open_upstream

    return open_upstream(
        table.base_url,
        name=name,
        models=table.models or (),
        must_be_up=must_be_up,
        key=table.key,
        headers=table.headers,
        capabilities=table.capabilities.declared,
        thinking=THINKING if table.thinking is None else table.thinking,
        extra_body=table.extra_body,
        limit_field=table.limit_field,
        think_tags=table.think_tags,
        starts_in_trace=table.starts_in_trace,
        reasoning_field=None if table.reasoning_input == "none" else table.reasoning_input,
        prefill=table.prefill,
    )


@contextmanager
def _errors_name_table(name: str | None) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        if name is None:
            raise
        message = f"upstreams.{name}: {error}"
        raise ConfigError(message, "upstreams") from error
