"""An SDK against a running server: synchronous in another thread, on trio, and on asyncio in another thread."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

import trio

T = TypeVar("T")

REAL_SECONDS = 30
"""How long a test on sockets may take. It makes a test fail and never makes it pass."""

_OPTIONS = {"api_key": "none", "max_retries": 0, "timeout": REAL_SECONDS}


def sync_runner(make_client: Callable[..., Any], base_url_of: Callable[[Any], str]) -> Callable[..., Awaitable[Any]]:
    """`await run(served, use, **options)` calls `use(client)` in another thread.

    Args:
        make_client: The SDK's synchronous class.
        base_url_of: The value for its `base_url`, from the served application.
    """

    async def run(served: Any, use: Callable[[Any], T], **options: Any) -> T:
        def in_thread() -> T:
            with make_client(**{"base_url": base_url_of(served)} | _OPTIONS | options) as client:
                return use(client)

        return await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)

    return run


def async_runner(
    make_client: Callable[..., Any], base_url_of: Callable[[Any], str], loop: Literal["trio", "asyncio"]
) -> Callable[..., Awaitable[Any]]:
    """`await run(served, use, **options)` awaits `use(client)`.

    Args:
        make_client: The SDK's asynchronous class.
        base_url_of: The value for its `base_url`, from the served application.
        loop: On `trio`, the client shares the event loop of the server. On `asyncio` it runs in another thread.
    """

    async def run(served: Any, use: Callable[[Any], Awaitable[T]], **options: Any) -> T:
        async def call() -> T:
            async with make_client(**{"base_url": base_url_of(served)} | _OPTIONS | options) as client:
                return await use(client)

        if loop == "trio":
            return await call()
        return await trio.to_thread.run_sync(partial(asyncio.run, call()), abandon_on_cancel=True)

    return run


@contextmanager
def left_generators(package: str) -> Iterator[None]:
    """Allow what an SDK does after the last event or an error: leave its generators to the garbage collector."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"Async generator '({package}|httpx|httpcore)", ResourceWarning)
        yield
        gc.collect()
