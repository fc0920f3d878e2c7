"""Coding agents from npm, unmodified: one turn with a call of their shell tool, through `crucible serve`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import pytest

from .agents import QWEN_CODE, Agent
from .upstream import ScriptedUpstream, UpstreamRequest, open_scripted_upstream

pytestmark = pytest.mark.slow

RunAgent: TypeAlias = Callable[..., Awaitable[str]]
CrucibleServe: TypeAlias = Callable[..., AbstractAsyncContextManager[str]]

CALL_ID = "call_scripted"
COMMAND = "echo the tool was here"
PIECE = 7  # characters of the call's arguments in one chunk, so that none of the names in it is whole


class ToolModel:
    """A scripted model: it calls the agent's shell tool once, then it says what the tool printed.

    Attributes:
        agent: The agent that it works for.
        cuts: How many times it resets the connection in the middle of the call's arguments.
    """

    def __init__(self, agent: Agent, *, cuts: int = 0) -> None:
        self.agent = agent
        self.cuts = cuts

    async def answer(self, request: UpstreamRequest) -> None:
        await request.start_stream()
        await request.send(role="assistant", content="")
        if request.body["messages"][-1]["role"] == "tool":
            for piece in ("The tool ", "has ", "spoken."):
                await request.send(content=piece)
            await request.finish()
            return
        function = {"name": self.agent.shell_tool, "arguments": ""}
        await request.send(tool_calls=[{"index": 0, "id": CALL_ID, "type": "function", "function": function}])
        arguments = self.agent.call_arguments(COMMAND)
        if self.cuts:
            self.cuts -= 1
            await request.send(tool_calls=[{"index": 0, "function": {"arguments": arguments[: len(arguments) // 2]}}])
            request.reset()
            return
        for start in range(0, len(arguments), PIECE):
            piece = {"arguments": arguments[start : start + PIECE]}
            await request.send(tool_calls=[{"index": 0, "function": piece}])
        await request.finish("tool_calls")


async def test_qwen_code_calls_its_shell_tool(run_agent: RunAgent, crucible_serve: CrucibleServe) -> None:
    model = ToolModel(QWEN_CODE)
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        printed = await run_agent(QWEN_CODE, "Say something with your shell.", base_url=base_url)
    assert printed == "The tool has spoken.\n"
    check_turn(QWEN_CODE, upstream)


def check_turn(agent: Agent, upstream: ScriptedUpstream) -> None:
    """The upstream was asked with the agent's tools, and again with its own call and what the tool printed."""
    first, second = (request.body for request in upstream.requests)
    tools = {tool["function"]["name"]: tool["function"] for tool in first["tools"]}
    assert set(agent.shell_arguments) <= set(tools[agent.shell_tool]["parameters"]["properties"])
    assert second["tools"] == first["tools"]
    *before, call, result = second["messages"]
    assert before == first["messages"]
    assert call["role"] == "assistant"
    [tool_call] = call["tool_calls"]
    assert (tool_call["id"], tool_call["type"], tool_call["function"]["name"]) == (
        CALL_ID,
        "function",
        agent.shell_tool,
    )
    assert json.loads(tool_call["function"]["arguments"]) == json.loads(agent.call_arguments(COMMAND))
    assert (result["role"], result["tool_call_id"]) == ("tool", CALL_ID)
    assert "the tool was here" in text_of(result["content"]).replace(COMMAND, "")


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)
