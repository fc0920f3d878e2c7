from __future__ import annotations

import json
import logging
import math
from importlib import resources

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Piece
from crucible_trio.engines.replay import ReplayEngine
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Request

RECORDINGS = resources.files("crucible_trio.engines") / "recordings"


def lines(mode: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (RECORDINGS / f"{mode}.jsonl").read_text("utf-8").splitlines()]


def text(mode: str, kind: str) -> str:
    return "".join(str(line["text"]) for line in lines(mode) if line["kind"] == kind)


@pytest.mark.parametrize("mode", ["standard", "deep"])
async def test_the_whole_recording_is_played_at_its_pace(drive, mode, autojump_clock: MockClock) -> None:
    begin = trio.current_time()
    pieces, finish = await drive(ReplayEngine(), Request("anything", mode=mode))
    assert trio.current_time() - begin == pytest.approx(float(str(lines(mode)[-1]["t_ms"])) / 1000)
    assert "".join(text for segment, text in pieces if segment is not None) == text(mode, "trace")
    assert "".join(text for segment, text in pieces if segment is None) == text(mode, "delta")
    assert finish.reason == "stop"
    assert finish.usage == Usage()


async def test_the_trace_comes_first_with_one_segment_per_numbered_step(drive, autojump_clock: MockClock) -> None:
    pieces, _ = await drive(ReplayEngine(), Request("anything", mode="deep"))
    segments = [segment for segment, _ in pieces]
    answer_at = segments.index(None)
    assert answer_at > 0
    assert all(segment is None for segment in segments[answer_at:])
    steps: dict[int, str] = {}
    for segment, piece in pieces[:answer_at]:
        steps[segment] = steps.get(segment, "") + piece
    assert list(steps) == list(range(len(steps)))
    assert len(steps) > 1
    for number, step in steps.items():
        assert step.startswith(f"{number + 1}. ")


async def test_the_first_piece_has_its_recorded_delay_divided_by_the_speed(drive, autojump_clock: MockClock) -> None:
    for speed in (1.0, 4.0):
        begin = trio.current_time()
        await drive(ReplayEngine(speed=speed), Request("anything"), stop_after=1)
        assert trio.current_time() - begin == pytest.approx(0.1367 / speed)


async def test_at_infinite_speed_no_time_passes_and_other_tasks_run(drive, mock_clock: MockClock) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            pieces, _ = await drive(ReplayEngine(speed=math.inf), Request("anything"), buffer=1000)
            nursery.cancel_scope.cancel()
    assert len(pieces) == len(lines("standard"))
    assert turns >= len(pieces)


async def test_a_delayed_recording_continues_at_its_pace(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Piece](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ReplayEngine().generate, Request("anything"), Output(send))
        await trio.sleep(1000)
        await receive.receive()  # the engine has waited for this
        resumed = trio.current_time()
        await receive.receive()
        recorded = lines("standard")
        gap = (float(str(recorded[1]["t_ms"])) - float(str(recorded[0]["t_ms"]))) / 1000
        assert trio.current_time() - resumed == pytest.approx(gap)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mode", ["standard", "deep"])
async def test_max_output_tokens_ends_the_recording_with_length(drive, mode, autojump_clock: MockClock) -> None:
    total = len(lines(mode))
    for limit, reason in ((1, "length"), (total - 1, "length"), (total, "stop"), (total + 1, "stop")):
        pieces, finish = await drive(ReplayEngine(speed=math.inf), Request("x", mode=mode, max_output_tokens=limit))
        assert finish.reason == reason
        assert len(pieces) <= limit


async def test_fail_at_fails_at_that_line(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Piece](math.inf)
    with pytest.raises(EngineError) as caught:
        await ReplayEngine(fail_at=3).generate(Request("x"), Output(send))
    assert (caught.value.code, caught.value.retryable) == ("recording_failed", True)
    assert receive.statistics().current_buffer_used == 3


async def test_stall_at_stalls_at_that_line_and_can_be_cancelled(mock_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Piece](math.inf)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ReplayEngine(speed=math.inf, stall_at=3).generate, Request("x"), Output(send))
        await wait_all_tasks_blocked()
        assert receive.statistics().current_buffer_used == 3
        nursery.cancel_scope.cancel()


def test_a_warning_says_that_replay_is_not_a_model(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ReplayEngine()
    assert "not a model" in caplog.text


@pytest.mark.parametrize(
    "arguments", [{"speed": 0}, {"speed": -1}, {"speed": math.nan}, {"fail_at": -1}, {"stall_at": -1}]
)
def test_bad_arguments_raise_at_construction(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"speed|count lines"):
        ReplayEngine(**arguments)
