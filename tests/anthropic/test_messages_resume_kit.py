"""The resume kit on the Messages API: a cut at any byte loses nothing and repeats nothing, in tool calls too."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from crucible_trio import Finish, Output, Request, open_pipeline
from crucible_trio.testing.resume import WIRES, Stage, WireFormat, check
from crucible_trio.web import create_app

pytestmark = pytest.mark.slow

MESSAGES = WIRES["messages"]
ASK = {"max_tokens": 100, "stream": True, "thinking": {"type": "adaptive"}}
STAGED = msgspec.structs.replace(
    MESSAGES, body=json.dumps(ASK | {"messages": [{"role": "user", "content": "{key}"}]}, separators=(",", ":"))
)
THOUGHTS = ["Zehn Grad ", "zu heiß ", "verbrüht ", "茶."]
WORDS = ["Nimm", "weiches", "Wasser,\nkühl", "\U0001f375", "auf."]
ARGUMENTS = ['{"cit', 'y": "Zü', 'rich"}']


async def let_readers_run() -> None:
    """Let a reader take the last record, so that the next piece becomes another record. The kit needs many records."""
    for _ in range(8):
        await trio.lowlevel.checkpoint()


def staged_engine(stage: Stage) -> Callable[[Request, Output], Any]:
    """Thinks, answers, calls two tools and answers again, and waits for its turn before each piece."""

    async def engine(request: Request, output: Output) -> Finish:
        key = request.messages[-1].text

        async def turn() -> None:
            await let_readers_run()
            await stage.turn(key)

        for piece in THOUGHTS:
            await turn()
            await output.reasoning(piece, 0)
        for piece in WORDS:
            await turn()
            await output.delta(piece)
        for number in range(2):
            async with output.tool_call(f"call_{number}", "weather") as call:
                for piece in ARGUMENTS:
                    await turn()
                    await call.arguments(piece)
        for piece in WORDS:
            await turn()
            await output.delta(piece)
        return Finish("tool_calls")

    return engine


@pytest.mark.parametrize(("resumes_by", "log_cuts"), [("get", None), ("post", 800)])
async def test_a_cut_at_any_byte_from_the_log(resumes_by: str, log_cuts: int | None) -> None:
    stage = Stage()
    wire = STAGED if resumes_by == "get" else msgspec.structs.replace(STAGED, events=None)
    with trio.fail_after(300):
        async with open_pipeline(staged_engine(stage)) as pipeline:
            report = await check(
                create_app(pipeline), wire, phases=["log"], log_cuts=log_cuts, take_turns=True, stage=stage
            )
            assert len(await pipeline.list()) == 1
    assert report.ok, report
    assert sum(row.checked for row in report.rows) > (3500 if log_cuts is None else 500)
    # A trace and its signature, two texts and two calls.
    assert "6 channels of text" in report.stream
    assert bool(report.notes) == (resumes_by == "post")  # an EventSource sends only GET


async def test_cuts_of_live_streams() -> None:
    stage = Stage()
    with trio.fail_after(300):
        async with open_pipeline(staged_engine(stage)) as pipeline:
            report = await check(
                create_app(pipeline), STAGED, phases=["live"], live_cuts=400, take_turns=True, stage=stage, seed=1
            )
    assert report.ok, report
    assert sum(row.checked for row in report.rows) > 350


async def test_the_wire_by_its_name_needs_no_model_and_no_file(serving: Callable) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        assert request.mode == "deep"
        for number in range(30):
            await output.delta(f"{number} thé ")
            await let_readers_run()
        return Finish()

    async with serving(engine) as served:
        url = served.url
        report = await check(url, MESSAGES, log_cuts=20, live_cuts=5)
    assert report.ok, report
    assert isinstance(MESSAGES, WireFormat)


async def test_the_command_checks_the_wire_by_its_name(serving: Callable) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        for number in range(30):
            await output.delta(f"{number} ")
            await let_readers_run()
        return Finish()

    async with serving(engine) as served:
        url = served.url
        words = ["check", url, "--wire", "messages", "--log-cuts", "5", "--live-cuts", "2", "--client", "fetch"]
        program = "from crucible_trio.cli import main; main()"
        done = await trio.run_process([sys.executable, "-c", program, *words], capture_stdout=True, check=False)
    assert done.stdout.decode().rstrip().endswith("passed: no event was lost or repeated")
    assert done.returncode == 0
