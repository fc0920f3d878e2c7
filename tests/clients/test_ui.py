"""The AI SDK's page libraries, unmodified and in both major versions, on the UI message stream."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.request import ImagePart, Request, TextPart
from crucible_trio.testing import CUTS, CallTool, ScriptedEngine, Treatment, open_chaos_proxy

from .npm import PACKAGES, InstallError, Sandbox, install_packages

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "react.md"

Run = Callable[..., Awaitable[Any]]

TRACE = [Reasoning("1. Erst ", 0), Reasoning("W\u00e4rme.\n", 0), Reasoning("2. Dann \U0001f375.", 1)]
ANSWER = [f"{number}\u00df\u2028 " for number in range(30)]


@pytest.fixture
def run_node(npm: str, node: Path, sandbox: Sandbox, skip_missing: Callable[[str], NoReturn]) -> Run:
    """`await run_node("chat.mjs", *arguments)` returns the output of a program with the page libraries."""
    try:
        install_packages(npm, PACKAGES / "ui")
    except InstallError as error:
        skip_missing(str(error))
    run = partial(sandbox.run, node, folder=PACKAGES / "ui")

    return run


@pytest.fixture
def run_script(run_node: Run) -> Run:
    """`await run_script("chat.mjs", *arguments)` returns the JSON that the script prints."""

    async def run_script(*arguments: str) -> Any:
        return json.loads(await run_node(*arguments))

    return run_script


def script(request: Request) -> Any:
    last = request.messages[-1]
    if last.role == "tool":
        assert json.loads(last.text) == {"sky": "clear"}
        assert json.loads(request.messages[-2].tool_calls[0].arguments) == {"city": "Rome"}
        return ["The sky is ", *[("clear ", 0.02) for _ in range(30)]]
    match last.content:
        case (ImagePart(url=url), TextPart(text="Image?")):
            return url
        case "Fail!":
            return ["Hel", EngineError("model_failed", "It broke.")]
        case "Slow?":
            return [(piece, 0.02) for piece in ANSWER]
        case "Everything?":
            named = ("weather", "{}"), ("other", "[1]"), ("weather", "no")
            calls = [CallTool(name, (text,), text) for name, text in named]
            return [Reasoning("Hm. "), "A", *calls, Reasoning("So. "), "B"]
        case "Weather?":
            return Reasoning("Hm. "), "Let me see. ", CallTool("weather", ('{"city": ', '"Rome"}'), "c1")
    thought = [(piece, 0.002) for piece in TRACE] if request.mode == "deep" else []
    return [*thought, *[(piece, 0.002) for piece in ANSWER], Finish(usage=Usage(3, 40, 9))]


def engine() -> ScriptedEngine:
    return ScriptedEngine(script, models=["small"], capabilities=UPSTREAM_CAPABILITIES)


def cut_later_each_time(connection: int) -> Treatment:
    return Treatment(cut_after=700 * connection, cut=CUTS[connection % len(CUTS)])


def texts(message: Any, kind: str) -> list[str]:
    return [part["text"] for part in message["parts"] if part["type"] == kind]


def check_answer(message: Any) -> None:
    assert texts(message, "reasoning") == ["1. Erst W\u00e4rme.\n", "2. Dann \U0001f375."]
    assert texts(message, "text") == ["".join(ANSWER)]
    assert all(part.get("state", "done") == "done" for part in message["parts"])


@pytest.mark.parametrize(
    "packages",
    [pytest.param(("ai", "@ai-sdk/react"), id="AI SDK 7"), pytest.param(("ai-6", "ai-6-react"), id="AI SDK 6")],
)
async def test_the_chat_of_the_ai_sdk_asks_resumes_stops_and_runs_tools(serving, run_script: Run, packages) -> None:
    async with serving(engine()) as served, open_chaos_proxy(served.port, cut_later_each_time) as proxy:
        cut_api = f"http://127.0.0.1:{proxy.port}/v1/ui/chat"
        got = await run_script("chat.mjs", *packages, f"{served.base_url}/ui/chat", cut_api)
        streams = {stream.facts.label: stream for stream in await served.pipeline.list()}

    asked = got["asked"]
    [question, answer] = asked["messages"]
    check_answer(answer)
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert answer["id"] == "msg_" + streams["asked"].id.removeprefix("str_")
    assert answer["metadata"] == {
        "model": "small",
        "streamId": streams["asked"].id,
        "createdAt": int(streams["asked"].created_at * 1000),
        "usage": {"inputTokens": 3, "outputTokens": 40, "totalTokens": 43, "reasoningTokens": 9},
    }
    assert (asked["status"], asked["errors"], asked["finished"]) == ("ready", [], [["stop", False, False]] * 2)

    pictured = got["pictured"]
    assert (len(pictured["messages"]), pictured["isNew"]) == (2, True)
    assert texts(pictured["messages"][1], "text") == ["data:image/png;base64,AA=="]

    failed = got["failed"]
    assert (failed["status"], failed["errors"]) == ("error", ["It broke."])
    assert failed["messages"][-1]["parts"][-1] == {"type": "text", "text": "Hel", "state": "streaming"}
    assert got["refused"]["errors"] == ["there is no model 'none'; there is small"]

    assert got["cut"]["cuts"] > 3
    assert got["cut"]["status"] == "ready"
    assert len(got["cut"]["messages"]) == 2
    check_answer(got["cut"]["messages"][1])
    assert texts(got["cut"]["messages"][1], "text") == [streams["cut"].snapshot().output]

    assert got["lengthWhenLeft"] < len("".join(ANSWER))
    assert texts(got["back"]["messages"][1], "text") == ["".join(ANSWER)]
    assert got["back"]["status"] == "ready"

    assert got["stopStatus"] == 204
    for page in ("stopped", "watching"):
        assert (got[page]["status"], got[page]["finished"]) == ("ready", [["other", False, False]])
        assert texts(got[page]["messages"][-1], "text") == [streams["stopped"].snapshot().output]
    assert streams["stopped"].status == "cancelled"

    assert (got["full"]["status"], got["full"]["errors"]) == ("ready", [])
    assert [(part["type"], part.get("state")) for part in got["full"]["messages"][1]["parts"]] == [
        ("step-start", None),
        ("reasoning", "done"),
        ("text", "done"),
        ("tool-weather", "input-available"),
        ("dynamic-tool", "input-available"),
        ("tool-weather", "output-error"),
        ("reasoning", "done"),
        ("text", "done"),
    ]

    tooled = got["tooled"]
    assert tooled["ran"] == [{"city": "Rome"}]  # once, although the answer was replayed
    [message] = [message for message in tooled["messages"] if message["role"] == "assistant"]
    assert message["id"] == tooled["kept"][-1]["id"]
    [tool] = [part for part in message["parts"] if part["type"] == "tool-weather"]
    assert (tool["state"], tool["input"], tool["output"]) == ("output-available", {"city": "Rome"}, {"sky": "clear"})
    assert texts(message, "reasoning") == ["Hm. "]
    assert texts(message, "text") == ["Let me see. ", "The sky is " + "clear " * 30]
    assert (tooled["status"], tooled["errors"]) == ("ready", [])


def cut_in_the_body(connection: int) -> Treatment:
    # This transport gives up when a request has no response.
    return Treatment(cut_after=1200, cut=CUTS[connection % len(CUTS)])


async def test_the_workflow_transport_resumes_in_the_middle(serving, run_script: Run) -> None:
    async with serving(engine()) as served, open_chaos_proxy(served.port, cut_in_the_body) as proxy:
        got = await run_script("workflow.mjs", f"http://127.0.0.1:{proxy.port}/v1/ui/chat")
        [stream] = await served.pipeline.list()
    assert got["requests"] > 3
    assert (got["status"], got["errors"]) == ("ready", [])
    check_answer(got["messages"][1])
    assert texts(got["messages"][1], "text") == [stream.snapshot().output]
    assert got["tail"] == ["finish-step", "finish"]


async def test_the_program_in_the_docs_prints_trace_and_answer(serving, run_node: Run) -> None:
    [program] = re.findall("^```js\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    async with serving(engine()) as served:
        source = program.replace("http://127.0.0.1:8000/v1", served.base_url)
        printed = await run_node("--input-type=module", "--eval", source)
        [stream] = await served.pipeline.list()
    snapshot = stream.snapshot()
    assert printed == "".join(f"reasoning: {text}\n" for text in snapshot.trace) + f"text: {snapshot.output}\n"
