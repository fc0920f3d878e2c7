"""Shared fixtures of the Messages API's tests. The application and the server are those of the OpenAI tests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from operator import attrgetter
from typing import Any

import pytest

from tests.openai.conftest import open_api, scripted, serving
from tests.sdks import async_runner, left_generators, sync_runner

__all__ = ["open_api", "scripted", "serving"]


@pytest.fixture(scope="session")
def with_sync_client() -> Callable[..., Awaitable[Any]]:
    """`await with_sync_client(served, use, **options)` calls `use(client)` with an `Anthropic` in another thread."""
    return sync_runner(pytest.importorskip("anthropic").Anthropic, attrgetter("url"))


@pytest.fixture(params=["trio", "asyncio"])
def with_async_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Awaitable[Any]]]:
    """`await with_async_client(served, use, **options)` awaits `use(client)` with an `AsyncAnthropic`.

    On trio the client shares the event loop of the server. On asyncio it runs in another thread.
    """
    with left_generators("anthropic"):
        yield async_runner(pytest.importorskip("anthropic").AsyncAnthropic, attrgetter("url"), request.param)
