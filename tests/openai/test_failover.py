"""Several upstreams of one model behind OpenAI's APIs: a client sees the end of the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trio.testing import MockClock

from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.engines.router import RouterEngine
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.request import Request

DOWN = EngineError("upstream_unreachable", "The upstream server is unreachable.", retryable=True)
BUSY = EngineError("upstream_refused", "The upstream server is overloaded.", retryable=True, status=429, retry_after=7)
WRONG = EngineError("upstream_rejected", "The upstream server rejected the request.", status=400)


class Upstream:
    """An engine whose server refuses, or accepts and says its name."""

    def __init__(self, name: str, error: EngineError | None = None) -> None:
        self.info = EngineInfo(name=name, models=("m",), waits_for_upstream=True)
        self.error = error
        self.calls = 0

    async def generate(self, request: Request, output: Output) -> Finish:
        self.calls += 1
        if self.error is not None:
            raise self.error
        output.accepted()
        await output.delta(self.info.name)
        return Finish()


def body(*, stream: bool) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Why?"}], "stream": stream}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", [DOWN, BUSY], ids=str)
async def test_a_held_request_is_answered_by_the_next_upstream(
    stream: bool, error: EngineError, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(engine=RouterEngine([Upstream("first", error), Upstream("second")])) as api:
        answer = await api.post("/v1/chat/completions", body(stream=stream))
        assert answer.status == 200
        assert b'"second"' in answer.body


@pytest.mark.parametrize("stream", [True, False])
async def test_the_refusal_of_the_last_upstream_is_the_status(
    stream: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    engines = [Upstream("first", DOWN), Upstream("second", BUSY)]
    async with open_api(engine=RouterEngine(engines)) as api:
        answer = await api.post("/v1/chat/completions", body(stream=stream))
        assert (answer.status, answer.headers["retry-after"]) == (429, "7")
        assert [engine.calls for engine in engines] == [1, 1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_is_wrong_reaches_one_upstream(
    stream: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    engines = [Upstream("first", WRONG), Upstream("second")]
    async with open_api(engine=RouterEngine(engines)) as api:
        answer = await api.post("/v1/chat/completions", body(stream=stream))
        assert answer.status == 400
        assert [engine.calls for engine in engines] == [1, 0]
