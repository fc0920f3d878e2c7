"""Coding agents from npm, unmodified: one turn with a call of their shell tool, through `crucible serve`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pytest
import trio

from crucible_trio.testing import Treatment, open_chaos_proxy

from .agents import CODEX, QWEN_CODE, Agent
from .npm import ClientError, Sandbox
from .retries import CASE, CASES, Case
from .upstream import Json, UpstreamRequest, open_scripted_upstream

pytestmark = pytest.mark.slow

RunAgent: TypeAlias = Callable[..., Awaitable[str]]
CrucibleServe: TypeAlias = Callable[..., AbstractAsyncContextManager[str]]

PROMPT = "Say something with your shell."
FINAL = ("The tool ", "has ", "spoken.")
CALL_ID = "call_scripted"
PIECE = 7  # characters of the call's arguments in one chunk, so that none of the names in it is whole

# The tool leaves a line behind each time it runs. It does not end immediately, because Qwen Code on a busy machine
# sometimes misses the output of a command that does.
COMMAND = "echo the tool was here | tee -a ~/lines; sleep 1"
# A long comment makes the arguments longer than all that the server sends before them. Codex gets its tools back twice.
LONG_COMMAND = f"{COMMAND} # {'x' * 80_000}"
IN_THE_ARGUMENTS = 65_000  # bytes of the response, and fewer than the model writes before it pauses
PAUSE = 9 / 10  # of the arguments

Interruption: TypeAlias = Callable[[UpstreamRequest], Awaitable[None]]


async def reset(request: UpstreamRequest) -> None:
    """The upstream server crashes."""
    request.reset()


async def pause(request: UpstreamRequest) -> None:
    """The model writes no more until this server cancels it."""
    await request.wait_for_close()


class ToolModel:
    """A scripted model: it calls the agent's shell tool once, then it ends the turn with a text.

    Attributes:
        agent: The agent that it works for.
        command: For the tool to run.
        interruptions: In the first calls, one each, they take the place of the last tenth of the arguments.
        introduction: A text before the call.
        ended_calls: For each call, in order of its end: whether it was whole.
    """

    def __init__(
        self,
        agent: Agent,
        command: str = COMMAND,
        *,
        interruptions: Sequence[Interruption] = (),
        introduction: str = "",
    ) -> None:
        self.agent = agent
        self.command = command
        self.interruptions = list(interruptions)
        self.introduction = introduction
        self.ended_calls: list[bool] = []

    @property
    def arguments(self) -> str:
        return self.agent.call_arguments(self.command)

    async def answer(self, request: UpstreamRequest) -> None:
        await request.start_stream()
        await request.send(role="assistant", content="")
        if request.body["messages"][-1]["role"] == "tool":
            for piece in FINAL:
                await request.send(content=piece)
            await request.finish()
            return
        if self.introduction:
            await request.send(content=self.introduction)
        function = {"name": self.agent.shell_tool, "arguments": ""}
        await request.send(tool_calls=[{"index": 0, "id": CALL_ID, "type": "function", "function": function}])
        arguments = self.arguments
        size = max(PIECE, len(arguments) // 20)
        pieces = [arguments[start : start + size] for start in range(0, len(arguments), size)]
        interruption = self.interruptions.pop(0) if self.interruptions else None
        for piece in pieces[: int(PAUSE * len(pieces))] if interruption else pieces:
            await request.send(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
        if interruption:
            await interruption(request)
        else:
            await request.finish("tool_calls")
        self.ended_calls.append(interruption is None)


def check_turn(model: ToolModel, first: Json, second: Json) -> None:
    """The upstream was asked with the agent's tools, and again with its own call and the tool's output."""
    tools = {tool["function"]["name"]: tool["function"] for tool in first["tools"]}
    assert set(model.agent.shell_arguments) <= set(tools[model.agent.shell_tool]["parameters"]["properties"])
    assert second["tools"] == first["tools"]
    *before, call, result = second["messages"]
    assert before == first["messages"]
    [tool_call] = call["tool_calls"]
    assert (call["role"], tool_call["id"], tool_call["type"]) == ("assistant", CALL_ID, "function")
    assert tool_call["function"]["name"] == model.agent.shell_tool
    assert json.loads(tool_call["function"]["arguments"]) == json.loads(model.arguments)
    assert (result["role"], result["tool_call_id"]) == ("tool", CALL_ID)
    content = result["content"] if isinstance(result["content"], str) else result["content"][0]["text"]
    assert "the tool was here" in content.replace(model.command, "")


def lines(sandbox: Sandbox) -> list[str]:
    """The lines that the tool left behind."""
    file = sandbox.home / "lines"
    return file.read_text().splitlines() if file.exists() else []


async def test_qwen_code_calls_its_shell_tool(
    run_agent: RunAgent, crucible_serve: CrucibleServe, sandbox: Sandbox
) -> None:
    model = ToolModel(QWEN_CODE)
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        assert await run_agent(QWEN_CODE, PROMPT, base_url=base_url) == "".join(FINAL) + "\n"
    first, second = (request.body for request in upstream.requests)
    check_turn(model, first, second)
    assert lines(sandbox) == ["the tool was here"]


async def test_qwen_code_runs_nothing_and_says_why_after_a_call_that_the_upstream_cut(
    run_agent: RunAgent, crucible_serve: CrucibleServe, sandbox: Sandbox
) -> None:
    model = ToolModel(QWEN_CODE, interruptions=[reset])
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        with pytest.raises(ClientError) as caught:
            await run_agent(QWEN_CODE, PROMPT, base_url=base_url)
    assert "[API Error: The connection to the upstream server was lost" in caught.value.errors
    assert (caught.value.code, len(upstream.requests), lines(sandbox)) == (1, 1, [])


@pytest.mark.parametrize("cut", ["fin", "rst"])
@pytest.mark.parametrize("agent", [pytest.param(QWEN_CODE, id="qwen"), pytest.param(CODEX, id="codex")])
async def test_an_agent_repeats_a_request_whose_connection_was_cut_in_a_call(
    run_agent: RunAgent, crucible_serve: CrucibleServe, sandbox: Sandbox, agent: Agent, cut: Any
) -> None:
    model = ToolModel(agent, LONG_COMMAND, interruptions=[pause])
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
        open_chaos_proxy(port_of(base_url), [Treatment(cut_after=IN_THE_ARGUMENTS, cut=cut)]) as proxy,
    ):
        printed = await run_agent(agent, PROMPT, base_url=f"http://127.0.0.1:{proxy.port}/v1")
    assert printed == "".join(FINAL) + "\n"
    # Two generations of the call. The server cancelled the first one.
    assert sorted(model.ended_calls) == [False, True]
    cut_short, first, second = (request.body for request in upstream.requests)
    assert cut_short == first
    check_turn(model, first, second)
    assert lines(sandbox) == ["the tool was here"]
    if agent is CODEX:  # it opens a connection for each request
        # The cut was in the arguments: the last answer, which begins like the first, is shorter as a whole.
        assert proxy.connections[2].answer_bytes < IN_THE_ARGUMENTS, proxy.report()


async def test_codex_repeats_a_request_whose_call_the_upstream_cut_up_to_five_times(
    run_agent: RunAgent, crucible_serve: CrucibleServe, sandbox: Sandbox
) -> None:
    model = ToolModel(CODEX, interruptions=[reset] * 10)
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        with pytest.raises(ClientError) as caught:
            await run_agent(CODEX, PROMPT, base_url=base_url)
    assert "The connection to the upstream server was lost" in caught.value.errors
    assert (len(upstream.requests), lines(sandbox)) == (6, [])
    assert all(request.body == upstream.requests[0].body for request in upstream.requests)


@pytest.mark.parametrize(
    "error",
    [
        {"code": 400, "message": "This model's maximum context length is 8 tokens.", "type": "BadRequestError"},  # vLLM
        {"code": 400, "message": "Too long.", "type": "exceed_context_size_error"},  # llama.cpp
        {"code": "insufficient_quota", "message": "Pay.", "type": "insufficient_quota"},
    ],
    ids=["vllm", "llama.cpp", "quota"],
)
async def test_codex_does_not_repeat_a_late_failure_that_a_repetition_cannot_mend(
    run_agent: RunAgent, crucible_serve: CrucibleServe, error: Json
) -> None:
    async def answer(request: UpstreamRequest) -> None:
        await request.start_stream()
        await request.send(role="assistant", content="")
        await request.send_data(json.dumps({"error": error}))
        await request.end()

    async with (
        open_scripted_upstream(answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        with pytest.raises(ClientError):
            await run_agent(CODEX, PROMPT, base_url=base_url)
    assert len(upstream.requests) == 1


async def test_codex_repeats_a_request_with_the_text_that_was_whole_before_the_cut(
    run_agent: RunAgent, crucible_serve: CrucibleServe, sandbox: Sandbox
) -> None:
    model = ToolModel(CODEX, interruptions=[reset], introduction="I shall speak.")
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        assert await run_agent(CODEX, PROMPT, base_url=base_url) == "".join(FINAL) + "\n"
    cut_short, first, _ = (request.body for request in upstream.requests)
    assert first["messages"] == [*cut_short["messages"], {"role": "assistant", "content": "I shall speak."}]
    assert lines(sandbox) == ["the tool was here"]


async def test_qwen_code_does_not_repeat_a_request_that_a_repetition_cannot_mend(
    run_agent: RunAgent, crucible_serve: CrucibleServe, tmp_path: Path
) -> None:
    cases = [case for case in CASES if case.repeats == "nobody" and case.name.isdecimal()]
    assert len(cases) == 6
    failures: dict[str, str] = {}
    asked: Counter[str] = Counter()

    async def answer(request: UpstreamRequest) -> None:
        case = CASE[request.text.split()[-1]]  # Qwen Code puts a list of its skills before the prompt
        asked[case.name] += 1
        assert case.answer is not None
        await case.answer(request, never)

    async def ask(case: Case, base_url: str) -> None:
        with pytest.raises(ClientError) as caught:
            await run_agent(QWEN_CODE, case.name, base_url=base_url, home=tmp_path / case.name)
        failures[case.name] = caught.value.errors

    async with (
        open_scripted_upstream(answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
        trio.open_nursery() as nursery,
    ):
        for case in cases:
            nursery.start_soon(ask, case, base_url)
    assert asked == {case.name: 1 for case in cases}
    for case in cases:
        assert re.search(rf"\[API Error: .*\b{case.status} ", failures[case.name])


async def never() -> None:
    raise AssertionError("nothing is cancelled here")


async def test_codex_calls_its_shell_tool(run_agent: RunAgent, crucible_serve: CrucibleServe, sandbox: Sandbox) -> None:
    model = ToolModel(CODEX)
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        assert await run_agent(CODEX, PROMPT, base_url=base_url) == "".join(FINAL) + "\n"
    first, second = (request.body for request in upstream.requests)
    check_turn(model, first, second)
    assert lines(sandbox) == ["the tool was here"]


def port_of(base_url: str) -> int:
    port = urlsplit(base_url).port
    assert port is not None
    return port
