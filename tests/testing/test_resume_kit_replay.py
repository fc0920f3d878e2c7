"""The resume kit on a wire without ids, whose every connection begins with the first event: the UI message stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crucible_trio import Finish, Output, Request, open_pipeline
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.testing import ScriptedEngine
from crucible_trio.testing.resume import WIRES, Report, Stage, WireFormat, check, find_wire
from crucible_trio.web import create_app

pytestmark = pytest.mark.slow

BODY = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "{key}"}]}], "tools": {"weather": {}}}
UI = msgspec.structs.replace(WIRES["ui"], body=json.dumps(BODY))
PIECES = ["Nimm ", "weiches ", "Wasser,\nk\u00fchl ", "\U0001f375 ", "auf. "]


class StagedEngine:
    """Writes every kind of content, and waits for its turn before most pieces."""

    info = ScriptedEngine(models=["small"], capabilities=UPSTREAM_CAPABILITIES).info

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def generate(self, request: Request, output: Output) -> Finish:
        async def turn() -> None:
            await self._stage.turn(request.messages[-1].text)

        for segment in (0, 1):
            for piece in PIECES[:3]:
                await turn()
                await output.reasoning(piece, segment)
        for piece in PIECES:
            await turn()
            await output.delta(piece)
        async with output.tool_call("c1", "weather") as call:
            for piece in ('{"city":', ' "Z\u00fcrich"', "}"):
                await turn()
                await call.arguments(piece)
        return Finish("tool_calls")


async def check_app(wrap: Callable[[Any], Any] = lambda app: app, **options: Any) -> Report:
    stage = Stage()
    async with open_pipeline(StagedEngine(stage)) as pipeline:
        return await check(wrap(create_app(pipeline)), UI, stage=stage, take_turns=True, **options)


async def test_the_ui_message_stream_is_whole_after_a_cut_at_every_byte() -> None:
    report = await check_app(live_cuts=300)  # a live cut waits for every piece
    assert report.ok, str(report)
    assert {row.phase for row in report.rows} == {"log", "live"}
    assert all(row.checked >= row.size // 3 for row in report.rows if row.phase == "log")  # three clients take turns
    assert sum(row.skipped.total() for row in report.rows) == 0
    assert "channels of text" in str(report)


def faulty(change: Callable[[bytes], bytes]) -> Callable[[Any], Any]:
    """Change the bodies of the answers to GET."""

    def wrap(app: Any) -> Any:
        async def changed(scope: Any, receive: Any, send: Any) -> None:
            async def send_changed(message: Any) -> None:
                if message.get("body"):
                    message = message | {"body": change(message["body"])}
                await send(message)

            is_get = scope["type"] == "http" and scope["method"] == "GET"
            await app(scope, receive, send_changed if is_get else send)

        return changed

    return wrap


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        pytest.param(b'"delta":"auf. "', b'"delta":"zu. "', "different text", id="text"),
        pytest.param(b'"type":"text-start","id":"3"', b'"type":"text-start","id":"4"', "different stream", id="event"),
        pytest.param(b"data: [DONE]\n\n", b"", "clean end without terminal", id="end"),
    ],
)
async def test_a_replay_that_is_not_the_same_is_found(old: bytes, new: bytes, finding: str) -> None:
    change = faulty(lambda body: body.replace(old, new))
    report = await check_app(change, clients=["httpx-sse"], phases=["live"], live_cuts=60)
    assert finding in {failure.finding.name for failure in report.failures}, str(report)


def test_a_wire_can_be_named() -> None:
    assert find_wire(Path("ui")) is WIRES["ui"]
    assert isinstance(WIRES["ui"], WireFormat)
