"""How a pipeline gets a store that several processes share. The store itself is tested in tests/redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from trio.testing import MockClock

from crucible_trio.config import Settings
from crucible_trio.errors import ConfigError, LogUnavailableError
from crucible_trio.metrics import Metrics
from crucible_trio.pipeline import open_pipeline
from crucible_trio.request import Request
from crucible_trio.store.memory import MemoryStore
from crucible_trio.testing import ScriptedEngine
from crucible_trio.timers import Timers

SHARED = Settings(log_url="redis://127.0.0.1:1/0")


async def test_the_store_is_opened_before_the_pipeline_and_closed_after_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[MemoryStore] = []
    metrics: list[Metrics] = []
    running: list[int] = []

    @asynccontextmanager
    async def open_redis_store(settings: Settings, timers: Timers, its_metrics: Metrics) -> AsyncIterator[MemoryStore]:
        stores.append(MemoryStore(settings, timers))
        metrics.append(its_metrics)
        yield stores[0]
        running.append(stores[0].running)

    module = SimpleNamespace(open_redis_store=open_redis_store)
    monkeypatch.setitem(sys.modules, "crucible_trio.store.redis.store", module)
    async with open_pipeline(ScriptedEngine("a", 1000.0), SHARED) as pipeline:
        assert pipeline.store is stores[0]
        assert pipeline.metrics is metrics[0]
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        assert stores[0].running == 1
        assert stores[0].keeps(stream)
    assert running == [0]  # the pipeline had ended its streams
    assert stores[0].failures == 0


async def test_without_the_client_of_redis_the_error_says_what_to_install(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "crucible_trio.store.redis.store", None)
    with pytest.raises(ConfigError, match=r"pip install 'crucible_trio\[redis\]'") as refusal:
        async with open_pipeline(ScriptedEngine("a"), SHARED):
            pass
    assert refusal.value.settings == ("log_url",)
    assert "127.0.0.1" not in str(refusal.value)


def test_the_client_of_redis_is_not_imported_without_log_url() -> None:
    program = """
import sys, trio
from crucible_trio import open_pipeline, Request
from crucible_trio.testing import ScriptedEngine
from crucible_trio.web import create_app
from crucible_trio.cli import main
async def run():
    async with open_pipeline(ScriptedEngine("a")) as pipeline:
        await pipeline.start(Request("q"))
trio.run(run)
assert not {"hiredis"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_unavailable_log_says_why() -> None:
    assert str(LogUnavailableError()) == "the event log cannot be reached"
    assert str(LogUnavailableError("because")) == "because"
