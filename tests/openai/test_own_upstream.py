"""Our upstream engine with our own chat completions behind it: one server in front of another."""

from __future__ import annotations

import pytest

from crucible_trio import Request, open_pipeline
from crucible_trio.engine import Finish, Reasoning
from crucible_trio.engines.upstream import open_upstream
from crucible_trio.errors import EngineError
from crucible_trio.records import ErrorInfo, Usage
from crucible_trio.testing import ScriptedEngine


@pytest.mark.parametrize("mode", ["standard", "deep"])
async def test_a_stream_comes_through_whole(serving, mode) -> None:
    inner = ScriptedEngine(Reasoning("1. First. "), "Hel", "lo.", Finish(usage=Usage(3, 9, 4)), models=["small"])
    async with (
        serving(inner) as served,
        open_upstream(served.base_url) as engine,
        open_pipeline(engine) as pipeline,
    ):
        stream = await pipeline.start(Request("Why?", mode=mode))
        async with stream.attach() as reader:
            async for _ in reader:
                pass
        snapshot = stream.snapshot()
        assert (snapshot.status, snapshot.output, snapshot.usage) == ("completed", "Hello.", Usage(3, 9, 4))
        assert "".join(snapshot.trace) == "1. First. "
        assert snapshot.model == "small"
        assert inner.runs[0].request.mode == mode


async def test_a_failure_comes_through_as_one(serving) -> None:
    inner = ScriptedEngine("Hel", EngineError("model_failed", "It broke."))
    async with (
        serving(inner) as served,
        open_upstream(served.base_url) as engine,
        open_pipeline(engine) as pipeline,
    ):
        stream = await pipeline.start(Request("Why?"))
        async with stream.attach() as reader:
            async for _ in reader:
                pass
        snapshot = stream.snapshot()
        assert (snapshot.status, snapshot.output) == ("failed", "Hel")
        assert isinstance(snapshot.error, ErrorInfo)
        assert snapshot.error.code == "upstream_error"
