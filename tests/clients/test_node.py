"""Unmodified clients from npm: the openai package, and the AI SDK with its provider for compatible servers."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.request import Request
from crucible_trio.snapshot import Snapshot
from crucible_trio.testing import CUTS, CallTool, ScriptedEngine, Treatment, open_chaos_proxy

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "openai.md"

Run = Callable[..., Awaitable[Any]]


@pytest.fixture
def run_script(run_node: Run) -> Run:
    """`await run_script("chat.mjs", *arguments)` returns the JSON that the script prints."""

    async def run(script: str, *arguments: str) -> Any:
        return json.loads(await run_node(script, *arguments))

    return run


DEEP = [Reasoning("1. Erst ", 0), Reasoning("W\u00e4rme.\n", 0), Reasoning("2. Dann \U0001f375.", 1)]
ANSWER = [f"{number}\u00df " for number in range(30)]


def script(request: Request) -> Any:
    if request.messages[-1].content == "Fail!":
        return ["Hel", EngineError("model_failed", "It broke.")]
    thought = [(piece, 0.002) for piece in DEEP] if request.mode == "deep" else []
    return [*thought, *[(piece, 0.002) for piece in ANSWER], Finish(usage=Usage(3, 40, 9))]


def engine() -> ScriptedEngine:
    return ScriptedEngine(script, models=["small"])


async def snapshots(served: Any) -> list[Snapshot]:
    """The native snapshots of all streams. Checks that they are equal, because the script is always the same."""
    found = [stream.snapshot() for stream in await served.pipeline.list()]
    assert {snapshot.output for snapshot in found} == {"".join(ANSWER)}
    assert {"".join(snapshot.trace) for snapshot in found} == {"".join(piece.text for piece in DEEP)}
    return found


async def test_the_openai_package_reads_chat_completions(serving, run_script: Run) -> None:
    async with serving(engine()) as served:
        result = await run_script("chat.mjs", served.base_url)
        native, *_ = await snapshots(served)
    trace = "".join(native.trace)
    usage = {"prompt_tokens": 3, "completion_tokens": 40, "total_tokens": 43}
    usage["completion_tokens_details"] = {"reasoning_tokens": 9}
    assert result["streamed"] == {
        "content": native.output,
        "reasoning_content": trace,
        "finish_reason": "stop",
        "usage": usage,
    }
    [choice] = result["whole"]["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (native.output, trace)
    # This helper accumulates only the fields that it knows. Of `reasoning_content` it keeps the last piece.
    assert result["accumulated"]["content"] == native.output
    assert (choice["finish_reason"], result["whole"]["usage"]) == ("stop", usage)
    assert result["refused"] == {
        "name": "BadRequestError",
        "status": 400,
        "code": "unsupported_parameter",
        "param": "n",
    }


def cut_later_each_time(connection: int) -> Treatment:
    return Treatment(cut_after=150 * connection, cut=CUTS[connection % len(CUTS)])


async def test_the_openai_package_reads_responses_and_resumes_after_cuts(serving, run_script: Run) -> None:
    async with serving(engine()) as served, open_chaos_proxy(served.port, cut_later_each_time) as proxy:
        result = await run_script("responses.mjs", served.base_url, f"http://127.0.0.1:{proxy.port}/v1")
        native, *_ = await snapshots(served)
        assert result["followed"]["cuts"] > 5, proxy
        assert served.pipeline.engine.calls == 4
    for name in ("streamed", "followed"):
        events = result[name]
        assert events["numbers"] == list(range(len(events["numbers"])))
        assert (events["text"], events["trace"]) == (native.output, "".join(native.trace))
        assert events["last"] == "response.completed"
    for response in (
        result["whole"],
        result["accumulated"],
        result["streamed"]["response"],
        result["followed"]["response"],
    ):
        reasoning, message = response["output"]
        assert [part["text"] for part in reasoning["summary"]] == native.trace
        assert "".join(part["text"] for part in message["content"]) == native.output
        assert (response["status"], response["usage"]["total_tokens"]) == ("completed", 43)
    assert result["whole"]["output_text"] == result["accumulated"]["output_text"] == native.output
    assert (result["lost"], result["whole"]["id"][:5]) == (404, "resp_")


both_ai_sdks = pytest.mark.parametrize(
    "packages",
    [
        pytest.param(("ai", "@ai-sdk/openai-compatible"), id="AI SDK 7"),
        pytest.param(("ai-6", "ai-6-openai-compatible"), id="AI SDK 6"),
    ],
)


@both_ai_sdks
async def test_the_ai_sdk_separates_reasoning_and_text(serving, run_script: Run, packages) -> None:
    async with serving(engine()) as served:
        result = await run_script("ai.mjs", *packages, served.base_url)
        native, *_ = [stream.snapshot() for stream in await served.pipeline.list() if stream.request.mode == "deep"]
    trace = "".join(native.trace)
    assert (result["parts"]["text"], result["parts"]["reasoning"]) == (native.output, trace)
    kinds = [kind for kind in result["parts"]["kinds"] if kind.startswith(("reasoning", "text"))]
    assert kinds == ["reasoning-start", "reasoning-delta", "reasoning-end", "text-start", "text-delta", "text-end"]
    for answer in (result["streamed"], result["whole"]):
        assert (answer["text"], answer["reasoning"], answer["finish"]) == (native.output, trace, "stop")
        assert (answer["usage"]["inputTokens"], answer["usage"]["outputTokens"]) == (3, 40)
    assert result["failed"] == ["It broke."]
    assert result["failedFinish"] != "stop"


async def test_the_programs_in_the_docs_print_trace_and_answer(serving, run_node: Run) -> None:
    programs = re.findall("^```js\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        async with serving(engine()) as served:
            source = program.replace("http://127.0.0.1:8000/v1", served.base_url)
            printed = await run_node("--input-type=module", "--eval", source)
            native, *_ = await snapshots(served)
        assert printed == "".join(native.trace) + "\n-- answer:\n" + native.output


@both_ai_sdks
async def test_tools_of_the_ai_sdk_and_the_openai_package_run_and_their_results_go_back(
    serving, run_script: Run, packages
) -> None:
    def answer(request: Request) -> Any:
        last = request.messages[-1]
        if last.role == "tool":
            assert json.loads(request.messages[-2].tool_calls[0].arguments) == {"city": "Rome"}
            return f"It is {last.text}."
        return Reasoning("Hm. "), "Let me see. ", CallTool("weather", ('{"city": ', '"Rome"}'), "c1")

    engine = ScriptedEngine(answer, models=["small"], capabilities=UPSTREAM_CAPABILITIES)
    async with serving(engine) as served:
        got = await run_script("tools.mjs", *packages, served.base_url)
    assert got["asked"] == [{"city": "Rome"}] * 3
    assert [got["streamed"], got["whole"]] == ["It is 31 in Rome."] * 2
    assert got["runner"] == "It is 31 in Rome."
    assert "tool-call" in got["kinds"]
    assert "tool-result" in got["kinds"]
    assert "error" not in got["kinds"]
    assert all(run.request.parameters.tools[0].name == "weather" for run in engine.runs)
    assert len(engine.runs) == 6
