"""Clients from npm as they are: the openai package, and the AI SDK with its provider for compatible servers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from crucible_trio.engine import Finish, Reasoning, Request
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.snapshot import Snapshot
from crucible_trio.testing import CUTS, ScriptedEngine, Treatment, open_chaos_proxy

FOLDER = Path(__file__).parent / "node"
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "openai.md"
INSTALL_SECONDS = 300
SCRIPT_SECONDS = 60  # for failing, never for passing

Run = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="session")
def run_script(run_node: Run) -> Run:
    """`await run_script("chat.mjs", *arguments)` gives the JSON that the script prints."""

    async def run(script: str, *arguments: str) -> Any:
        return json.loads(await run_node(script, *arguments))

    return run


@pytest.fixture(scope="session")
def run_node(need_program: Callable[[str], str]) -> Run:
    """`await run_node(*arguments)` gives what Node prints."""
    node = need_program("node")
    _install(need_program("npm"))

    async def run(*arguments: str) -> str:
        with trio.fail_after(SCRIPT_SECONDS):
            done = await trio.run_process(
                [node, *arguments], cwd=FOLDER, capture_stdout=True, capture_stderr=True, check=False
            )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


def _install(npm: str) -> None:
    """Install what the lock file names, once for each lock file."""
    stamp = FOLDER / "node_modules" / ".installed"
    wanted = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        command,
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        code = re.search(r"npm error code (\S+)", done.stderr)
        message = f"npm cannot install {FOLDER.name}/package-lock.json: {code[1] if code else done.stderr}"
        if os.environ.get("CRUCIBLE_TESTS_SKIP_NOTHING"):
            pytest.fail(message)
        pytest.skip(message)
    stamp.write_text(wanted)


DEEP = [Reasoning("1. Erst ", 0), Reasoning("W\u00e4rme.\n", 0), Reasoning("2. Dann \U0001f375.", 1)]
ANSWER = [f"{number}\u00df " for number in range(30)]


def script(request: Request) -> Any:
    if request.messages[-1].content == "Fail!":
        return ["Hel", EngineError("model_failed", "It broke.")]
    thought = [(piece, 0.002) for piece in DEEP] if request.mode == "deep" else []
    return [*thought, *[(piece, 0.002) for piece in ANSWER], Finish(usage=Usage(3, 40, 9))]


def engine() -> ScriptedEngine:
    return ScriptedEngine(script, models=["small"])


def snapshots(served: Any) -> list[Snapshot]:
    """The native view of all that was generated; the script is the same each time, so the texts must be."""
    found = [stream.snapshot() for stream in served.pipeline.streams()]
    assert {snapshot.output for snapshot in found} == {"".join(ANSWER)}
    assert {"".join(snapshot.trace) for snapshot in found} == {"".join(piece.text for piece in DEEP)}
    return found


async def test_the_openai_package_reads_chat_completions(serving, run_script: Run) -> None:
    async with serving(engine()) as served:
        told = await run_script("chat.mjs", served.base_url)
        native, *_ = snapshots(served)
    trace = "".join(native.trace)
    usage = {"prompt_tokens": 3, "completion_tokens": 40, "total_tokens": 43}
    usage["completion_tokens_details"] = {"reasoning_tokens": 9}
    assert told["streamed"] == {
        "content": native.output,
        "reasoning_content": trace,
        "reasoning": trace,
        "finish_reason": "stop",
        "usage": usage,
    }
    [choice] = told["whole"]["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (native.output, trace)
    assert (
        told["accumulated"]["content"] == native.output
    )  # of a field it does not know this helper keeps the last piece
    assert (choice["finish_reason"], told["whole"]["usage"]) == ("stop", usage)
    assert told["refused"] == {"name": "BadRequestError", "status": 400, "code": "unsupported_parameter", "param": "n"}


def later_and_later(connection: int) -> Treatment:
    return Treatment(cut_after=150 * connection, cut=CUTS[connection % len(CUTS)])


async def test_the_openai_package_reads_responses_and_resumes_one_that_is_cut(serving, run_script: Run) -> None:
    async with serving(engine()) as served, open_chaos_proxy(served.port, later_and_later) as proxy:
        told = await run_script("responses.mjs", served.base_url, f"http://127.0.0.1:{proxy.port}/v1")
        native, *_ = snapshots(served)
        assert told["followed"]["cuts"] > 5, proxy
        assert served.pipeline.engine.calls == 4
    for name in ("streamed", "followed"):
        events = told[name]
        assert events["numbers"] == list(range(len(events["numbers"])))
        assert (events["text"], events["trace"]) == (native.output, "".join(native.trace))
        assert events["last"] == "response.completed"
    for response in (told["whole"], told["accumulated"], told["streamed"]["response"], told["followed"]["response"]):
        reasoning, message = response["output"]
        assert [part["text"] for part in reasoning["summary"]] == native.trace
        assert "".join(part["text"] for part in message["content"]) == native.output
        assert (response["status"], response["usage"]["total_tokens"]) == ("completed", 43)
    assert told["whole"]["output_text"] == told["accumulated"]["output_text"] == native.output
    assert (told["lost"], told["whole"]["id"][:5]) == (404, "resp_")


async def test_the_ai_sdk_tells_reasoning_and_text_apart(serving, run_script: Run) -> None:
    async with serving(engine()) as served:
        told = await run_script("ai.mjs", served.base_url)
        native, *_ = [stream.snapshot() for stream in served.pipeline.streams() if stream.request.mode == "deep"]
    trace = "".join(native.trace)
    assert (told["parts"]["text"], told["parts"]["reasoning"]) == (native.output, trace)
    kinds = [kind for kind in told["parts"]["kinds"] if kind.startswith(("reasoning", "text"))]
    assert kinds == ["reasoning-start", "reasoning-delta", "reasoning-end", "text-start", "text-delta", "text-end"]
    for answer in (told["streamed"], told["whole"]):
        assert (answer["text"], answer["reasoning"], answer["finish"]) == (native.output, trace, "stop")
        assert (answer["usage"]["inputTokens"], answer["usage"]["outputTokens"]) == (3, 40)
    assert told["failed"] == ["It broke."]
    assert told["failedFinish"] != "stop"


async def test_the_programs_of_the_page_print_trace_and_answer(serving, run_node: Run) -> None:
    programs = re.findall("^```js\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        async with serving(engine()) as served:
            source = program.replace("http://127.0.0.1:8000/v1", served.base_url)
            printed = await run_node("--input-type=module", "--eval", source)
            native, *_ = snapshots(served)
        assert printed == "".join(native.trace) + native.output
