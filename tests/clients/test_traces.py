"""Which clients find the trace of a chat completion, under each name that `openai_trace_field` can give it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from crucible_trio.content import Reasoning
from crucible_trio.testing import ScriptedEngine

pytestmark = pytest.mark.slow

Run = Callable[..., Awaitable[Any]]

TRACE = "Warm. Tea."
# The pauses are longer than the heartbeat interval, so that keep-alives come between the pieces.
STEPS = (Reasoning("Warm. ", 0), 0.05, Reasoning("Tea.", 1), 0.05, "So", 0.05, " it is.")

every_name = pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "both"])


def settings(name: str) -> dict[str, Any]:
    return {"openai_trace_field": name, "heartbeat_seconds": 0.01}


@every_name
@pytest.mark.parametrize(
    "packages",
    [
        pytest.param(("ai", "@ai-sdk/openai-compatible"), id="AI SDK 7"),
        pytest.param(("ai-6", "ai-6-openai-compatible"), id="AI SDK 6"),
    ],
)
async def test_the_ai_sdk_finds_the_trace_once(serving, run_node: Run, packages, name) -> None:
    async with serving(ScriptedEngine(*STEPS, models=["small"]), **settings(name)) as served:
        result = json.loads(await run_node("ai.mjs", *packages, served.base_url))
    assert result["parts"]["kinds"].count("reasoning-start") == 1
    for answer in (result["parts"], result["streamed"], result["whole"]):
        assert (answer["reasoning"], answer["text"]) == (TRACE, "So it is.")


@every_name
async def test_litellm_finds_the_trace_and_sends_it_back(serving, run_litellm: Run, name) -> None:
    engine = ScriptedEngine(*STEPS, models=["small"])
    async with serving(engine, **settings(name)) as served:
        result = json.loads(await run_litellm("litellm_traces.py", served.base_url))
    for message in result.values():
        assert (message["reasoning_content"], message["content"]) == (TRACE, "So it is.")
    # With `reasoning`, LiteLLM puts the trace into a second field, which it sends back.
    assert ("provider_specific_fields" in result["whole"]) == (name != "reasoning_content")
    assert engine.runs[2].request.messages[1].content == "So it is."
