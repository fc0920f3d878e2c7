"""Shared fixtures of the Messages API's tests. The application and the server are those of the OpenAI tests."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import pytest
import trio

from tests.openai.conftest import REAL_SECONDS, ServedApp, open_api, scripted, serving

__all__ = ["open_api", "scripted", "serving"]

T = TypeVar("T")


def _options(served: ServedApp, options: dict[str, Any]) -> dict[str, Any]:
    url = served.base_url.removesuffix("/v1")
    return {"base_url": url, "api_key": "none", "max_retries": 0, "timeout": REAL_SECONDS} | options


@pytest.fixture(scope="session")
def with_sync_client() -> Callable[..., Awaitable[Any]]:
    """`await with_sync_client(served, use, **options)` calls `use(client)` with an `Anthropic` in another thread."""
    anthropic = pytest.importorskip("anthropic")

    async def run(served: ServedApp, use: Callable[[Any], T], **options: Any) -> T:
        def in_thread() -> T:
            with anthropic.Anthropic(**_options(served, options)) as client:
                return use(client)

        return await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)

    return run


@pytest.fixture(params=["trio", "asyncio"])
def with_async_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Awaitable[Any]]]:
    """`await with_async_client(served, use, **options)` awaits `use(client)` with an `AsyncAnthropic`.

    On trio the client shares the event loop of the server. On asyncio it runs in another thread.
    """
    anthropic = pytest.importorskip("anthropic")

    async def run(served: ServedApp, use: Callable[[Any], Awaitable[T]], **options: Any) -> T:
        async def call() -> T:
            async with anthropic.AsyncAnthropic(**_options(served, options)) as client:
                return await use(client)

        if request.param == "trio":
            return await call()
        return await trio.to_thread.run_sync(partial(asyncio.run, call()), abandon_on_cancel=True)

    with warnings.catch_warnings():
        # After an error the SDK leaves its generators to the garbage collector, and trio warns about it.
        warnings.filterwarnings("ignore", "Async generator '(anthropic|httpx|httpcore)", ResourceWarning)
        yield run
        gc.collect()
