"""Clients of Anthropic's Messages API, unmodified: Anthropic's and the AI SDK's packages, Pydantic AI, Claude Code."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias
from urllib.parse import urlsplit

import pytest

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.request import Request
from crucible_trio.testing import CallTool, ScriptedEngine, Treatment, open_chaos_proxy

from .npm import FOLDER, PACKAGES, ClientError, InstallError, Sandbox, install_packages
from .pypi import PYTHON, make_environment
from .upstream import MODEL, Json, UpstreamRequest, open_scripted_upstream

pytestmark = [pytest.mark.slow, pytest.mark.npm]

Run: TypeAlias = Callable[..., Awaitable[str]]
CrucibleServe: TypeAlias = Callable[..., AbstractAsyncContextManager[str]]

PROMPT = "Say something with your shell."
COMMAND = "echo the tool was here | tee -a ~/lines"
CALL_ID = "call_scripted"
BUSY = EngineError("upstream_refused", "Busy.", retryable=True, status=503)


def weather(request: Request) -> Any:
    """A model that calls a tool once, and then answers. It fails if the user says so."""
    last = request.messages[-1]
    if last.text == "Fail":
        return "So", BUSY
    if last.role == "tool":
        assert json.loads(request.messages[-2].tool_calls[0].arguments) == {"city": "Rome"}
        return Reasoning("Hm. "), f"It is {last.text}.", Finish(usage=Usage(3, 5, 1))
    return Reasoning("Look. "), "Let me see. ", CallTool("weather", ('{"city": ', '"Rome"}'), "c1")


@pytest.fixture
def run_messages_node(npm: str, node: Path, sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_messages_node("messages.mjs", *arguments)` returns the output of a program."""
    try:
        install_packages(npm, PACKAGES / "anthropic")
    except InstallError as error:
        skip_missing(str(error))
    return partial(sandbox.run, node, folder=PACKAGES / "anthropic")


@pytest.fixture
def run_messages_python(sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_messages_python("messages.py", *arguments)` returns the output of a program with Pydantic AI."""
    try:
        python = make_environment(FOLDER / ".venv" / "messages", PYTHON / "messages.txt")
    except InstallError as error:
        skip_missing(str(error))
    return partial(sandbox.run, python, folder=PYTHON)


@pytest.fixture
def run_claude(npm: str, sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_claude(prompt, base_url=...)` returns the output of Claude Code, told to use no other server."""
    try:
        packages = install_packages(npm, PACKAGES / "claude")
    except InstallError as error:
        skip_missing(str(error))
    # The package's own program is a stub, which an install script replaces by the one for this system.
    programs = sorted(packages.glob("@anthropic-ai/claude-code-linux-*/claude"))
    if not programs:
        skip_missing("Claude Code has no program for this system")
    work = sandbox.home / "work"

    async def run(prompt: str, *, base_url: str) -> str:
        work.mkdir(exist_ok=True)
        environment = {
            "ANTHROPIC_BASE_URL": base_url.removesuffix("/v1"),
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_MODEL": MODEL,
            "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        own = Sandbox(sandbox.home, environment=environment)
        return await own.run(programs[0], "-p", "--allowedTools", "Bash", "--", prompt, folder=work)

    return run


async def test_packages_from_npm_read_every_kind_of_block(serving: Callable, run_messages_node: Run) -> None:
    engine = ScriptedEngine(weather, models=["small"], capabilities=UPSTREAM_CAPABILITIES)
    async with serving(engine, token_secret="secret") as served:
        got = json.loads(await run_messages_node("messages.mjs", served.base_url.removesuffix("/v1")))
        assert served.pipeline.metrics.unverified_traces == 0
    assert got["types"][:2] == ["message_start", "content_block_start"]
    assert got["types"][-2:] == ["message_delta", "message_stop"]
    assert got["first"] == ["thinking", "text", "tool_use"]
    assert [got["helped"], got["whole"], got["streamed"], got["generated"]] == ["It is 31 in Rome."] * 4
    assert got["raised"] == [
        ["APIError", "overloaded_error"],
        ["APIError", "overloaded_error"],
        ["OverloadedError", "overloaded_error"],
    ]
    assert got["models"] == ["small"]
    assert got["asked"] == [{"city": "Rome"}] * 2
    assert {"reasoning-delta", "text-delta", "tool-call", "tool-result", "finish"} <= set(got["kinds"])
    assert "error" not in got["kinds"]


async def test_pydantic_ai_calls_its_tool_and_reads_the_answer(serving: Callable, run_messages_python: Run) -> None:
    engine = ScriptedEngine(weather, models=["small"], capabilities=UPSTREAM_CAPABILITIES)
    async with serving(engine, token_secret="secret") as served:
        got = json.loads(await run_messages_python("messages.py", served.base_url.removesuffix("/v1")))
        assert served.pipeline.metrics.unverified_traces == 0
    assert [got["whole"], got["streamed"]] == ["It is 31 in Rome."] * 2
    assert got["kinds"] == ["user-prompt", "thinking", "text", "tool-call", "tool-return", "thinking", "text"]
    assert {"part_start", "part_delta", "function_tool_call", "function_tool_result"} <= set(got["seen"])
    assert got["tokens"] == 5


# Claude Code


def lines(sandbox: Sandbox) -> list[str]:
    """The lines that the tool left behind."""
    file = sandbox.home / "lines"
    return file.read_text().splitlines() if file.exists() else []


class ShellModel:
    """A scripted model: it calls Claude Code's shell once, then it ends the turn with a text.

    Args:
        cut: Whether it resets its connection in the middle of the call's arguments.
    """

    def __init__(self, *, cut: bool = False) -> None:
        self.cut = cut
        self.bodies: list[Json] = []

    async def answer(self, request: UpstreamRequest) -> None:
        self.bodies.append(request.body)
        await request.start_stream()
        if any(message["role"] == "tool" for message in request.body["messages"]):
            for piece in ("The tool ", "has ", "spoken."):
                await request.send(content=piece)
            await request.finish()
            return
        await request.send(reasoning_content="I use the shell.")
        function = {"name": "Bash", "arguments": ""}
        await request.send(tool_calls=[{"index": 0, "id": CALL_ID, "type": "function", "function": function}])
        arguments = json.dumps({"command": COMMAND, "description": "Say something"})
        pieces = [arguments[start : start + 7] for start in range(0, len(arguments), 7)]
        for piece in pieces[: len(pieces) // 2] if self.cut else pieces:
            await request.send(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
        if self.cut:
            request.reset()
        else:
            await request.finish("tool_calls")


def check_turn(first: Json, second: Json) -> None:
    """The upstream was asked with the agent's tools, and again with its own call and the tool's output."""
    tools = {tool["function"]["name"] for tool in first["tools"]}
    assert "Bash" in tools
    assert "web_search" not in tools
    [call] = [message for message in second["messages"] if message["role"] == "assistant"]
    [result] = [message for message in second["messages"] if message["role"] == "tool"]
    [tool_call] = call["tool_calls"]
    assert (tool_call["id"], tool_call["function"]["name"]) == (CALL_ID, "Bash")
    assert json.loads(tool_call["function"]["arguments"])["command"] == COMMAND
    assert result["tool_call_id"] == CALL_ID
    assert "the tool was here" in str(result["content"]).replace(COMMAND, "")


async def test_claude_code_calls_its_shell_tool(
    run_claude: Run, crucible_serve: CrucibleServe, sandbox: Sandbox
) -> None:
    model = ShellModel()
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        assert await run_claude(PROMPT, base_url=base_url) == "The tool has spoken.\n"
    check_turn(*model.bodies)
    assert lines(sandbox) == ["the tool was here"]
    assert not any("thinking" in body or "context_management" in body for body in model.bodies)


async def test_claude_code_runs_no_tool_whose_call_the_upstream_cut(
    run_claude: Run, crucible_serve: CrucibleServe, sandbox: Sandbox
) -> None:
    model = ShellModel(cut=True)
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
    ):
        try:
            printed = await run_claude(PROMPT, base_url=base_url)
        except ClientError as error:
            printed = error.output
    assert "The tool has spoken" not in printed
    assert lines(sandbox) == []
    assert model.bodies  # it has asked


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_claude_code_repeats_a_request_whose_connection_was_cut(
    run_claude: Run, crucible_serve: CrucibleServe, sandbox: Sandbox, cut: Any
) -> None:
    model = ShellModel()
    async with (
        open_scripted_upstream(model.answer) as upstream,
        crucible_serve("--base-url", upstream.base_url) as base_url,
        open_chaos_proxy(urlsplit(base_url).port or 0, [Treatment(cut_after=1200, cut=cut)]) as proxy,
    ):
        printed = await run_claude(PROMPT, base_url=f"http://127.0.0.1:{proxy.port}")
    assert printed == "The tool has spoken.\n"
    assert lines(sandbox) == ["the tool was here"]
    assert "cut" in [connection.outcome for connection in proxy.connections], proxy.report()
    cut_short, first, second = model.bodies
    assert cut_short["messages"] == first["messages"]
    check_turn(first, second)
