"""The demo page in a browser. The driver of the browser is in tests/browser.py."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import trio

from crucible_trio import open_pipeline
from crucible_trio.settings import load_settings
from crucible_trio.web import create_app

# Wall-clock seconds. The machine may be shared and slow, so this limit makes a test fail and never makes it pass.
_TEST_SECONDS = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_ours = Path(__file__).parent in item.path.parents and isinstance(item, pytest.Function)
        if is_ours and inspect.iscoroutinefunction(item.obj):
            item.obj = _with_time_limit(item.obj)


def _with_time_limit(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @wraps(test)
    async def guarded(**fixtures: object) -> None:
        with trio.fail_after(_TEST_SECONDS):
            await test(**fixtures)

    return guarded


@pytest.fixture
def serving(relayed: Callable[..., Any]) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """`async with serving(engine, name_of_a_setting=...) as served`."""

    @asynccontextmanager
    async def open_server(engine: Any, **settings: Any) -> AsyncIterator[Any]:
        values = load_settings({}, **{"retry_milliseconds": 100} | settings)
        async with (
            open_pipeline(engine, values.pipeline) as pipeline,
            relayed(pipeline, create_app(pipeline, values.apis), values.server) as served,
        ):
            yield served

    return open_server
