"""The scripted engine runs its steps in order and in time, and records its calls."""

from __future__ import annotations

import math
import traceback

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio import (
    EngineError,
    Finish,
    OutputDelta,
    Reasoning,
    Request,
    Settings,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    Usage,
    open_pipeline,
)
from crucible_trio.testing import CallTool, Gate, Queued, Repeat, ScriptedEngine, interrupted, split_text

FOX = "Boxkämpfer 🦊 naïve 🏳️\u200d🌈 end"


async def _read(engine: ScriptedEngine, request: Request | None = None, settings: Settings | None = None):
    """Read all records of one stream. Returns them with the snapshot."""
    with trio.fail_after(100_000):
        async with open_pipeline(engine, settings) as pipeline:
            stream = await pipeline.start(request or Request("x"))
            async with stream.attach() as reader:
                return [record async for record in reader], stream.snapshot()


async def test_pieces_pauses_and_the_finish_come_in_order(autojump_clock: MockClock) -> None:
    usage = Usage(input_tokens=1, output_tokens=2, reasoning_tokens=3)
    engine = ScriptedEngine(
        Reasoning("First, "), 2, Reasoning("then. ", 1), ["Hel", ("lo", 40.5)], Finish("because", usage), "never"
    )
    records, snapshot = await _read(engine)
    assert snapshot.trace == ["First, ", "then. "]
    assert snapshot.output == "Hello"
    assert isinstance(records[-1], StreamCompleted)
    assert (records[-1].finish_reason, records[-1].usage) == ("because", usage)
    assert records[-1].timings.total_ms == 42_500
    assert engine.made == engine.written == ["First, ", "then. ", "Hel", "lo"]
    [run] = engine.runs
    assert (run.end, run.request.input, engine.calls, engine.live) == ("finished", "x", 1, 0)


async def test_a_tool_call_runs_its_steps_and_is_whole_unless_one_of_them_ends_the_script(
    autojump_clock: MockClock,
) -> None:
    whole = CallTool("weather", ['{"city": ', 2, Repeat("x", 2), lambda request: f"{request.input}"], "c1")
    engine = ScriptedEngine("a", whole, CallTool("now"), CallTool("then", ("{", Finish("length")), "c3"), "never")
    records, snapshot = await _read(engine)
    assert [(call.id, call.name, call.arguments, call.complete) for call in snapshot.tool_calls] == [
        ("c1", "weather", '{"city": xxx', True),
        ("call_1", "now", "{}", True),
        ("c3", "then", "{", False),
    ]
    assert isinstance(records[-1], StreamIncomplete)
    assert records[-1].timings.total_ms == 2000
    assert engine.made == engine.written == ["a", '{"city": ', "x", "x", "x", "{}", "{"]
    failing = ScriptedEngine(CallTool("weather", ("{", EngineError("code", "Message."))))
    _, snapshot = await _read(failing)
    assert [(call.arguments, call.complete) for call in snapshot.tool_calls] == [("{", False)]
    with pytest.raises(TypeError, match="not a step"):
        ScriptedEngine(CallTool("weather", [True]))


async def test_an_empty_script_is_a_completed_stream(autojump_clock: MockClock) -> None:
    records, _ = await _read(ScriptedEngine())
    assert [type(record).__name__ for record in records] == ["StreamCreated", "StreamCompleted"]


async def test_an_hour_of_stalling_takes_no_time_and_reaches_the_deadline(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine("x", math.inf)
    records, _ = await _read(engine, settings=Settings(idle_seconds=3600))
    assert isinstance(records[-1], StreamIncomplete)
    assert records[-1].timings.total_ms == 3_600_000
    assert engine.runs[0].end == "cancelled"
    assert engine.live == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("no_luck", "Not today.", retryable=True), "no_luck"), (RuntimeError("secret"), "engine_error")],
)
async def test_a_failure_comes_at_its_step_in_every_stream(autojump_clock: MockClock, error, code) -> None:
    engine = ScriptedEngine(interrupted(["a", "b", "c"], {2: error}))
    depths = []
    for _ in range(3):
        records, snapshot = await _read(engine)
        assert isinstance(records[-1], StreamFailed)
        assert records[-1].error.code == code
        assert snapshot.output == "ab"
        depths.append(len(traceback.extract_tb(error.__traceback__)))
    assert [run.end for run in engine.runs] == ["failed"] * 3
    assert depths[0] == depths[2]  # the frames of one raise, not of all of them


async def test_a_burst_waits_when_the_buffer_is_full(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(Repeat(Repeat("ab", 10), 10))
    with trio.fail_after(10):
        async with open_pipeline(engine, Settings(buffer_tokens=4)) as pipeline:
            stream = await pipeline.start(Request("x"))  # without a reader the recorder takes nothing
            await wait_all_tasks_blocked()
            assert (len(engine.made), len(engine.written)) == (5, 4)
            async with stream.attach() as reader:
                text = "".join([record.delta async for record in reader if isinstance(record, OutputDelta)])
            assert text == "ab" * 100


async def test_an_endless_script_can_be_cancelled(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(Repeat(["x", 1]), keep_runs=1)
    with trio.fail_after(1000):
        async with open_pipeline(engine) as pipeline:
            stream = await pipeline.start(Request("x", on_disconnect="continue"))
            await trio.sleep(20.5)
            stream.cancel()
            await engine.runs[0].ended.wait()
            await wait_all_tasks_blocked()
            assert isinstance(stream.terminal, StreamCancelled)
            assert stream.snapshot().output == "x" * 21
    assert engine.runs[0].end == "cancelled"


async def test_a_gate_holds_every_stream_until_it_is_opened(autojump_clock: MockClock) -> None:
    gate, event = Gate(), trio.Event()
    engine = ScriptedEngine("before ", gate, "between ", event, "after")
    with trio.fail_after(10):
        async with open_pipeline(engine) as pipeline:
            streams = [await pipeline.start(Request("x", on_disconnect="continue")) for _ in range(3)]
            await gate.wait_reached()
            await wait_all_tasks_blocked()
            assert gate.waiting == 3
            assert {stream.snapshot().output for stream in streams} == {"before "}
            gate.open()
            await wait_all_tasks_blocked()
            assert gate.waiting == 0
            assert {stream.snapshot().output for stream in streams} == {"before between "}
            event.set()
            await wait_all_tasks_blocked()
            assert {stream.snapshot().output for stream in streams} == {"before between after"}
            late = await pipeline.start(Request("x", on_disconnect="continue"))
            await wait_all_tasks_blocked()
            assert late.status == "completed"


async def test_queued_time_does_not_count_towards_the_first_token_deadline(autojump_clock: MockClock) -> None:
    settings = Settings(first_token_seconds=5)
    records, _ = await _read(ScriptedEngine(Queued(100.0), "x"), settings=settings)
    assert isinstance(records[-1], StreamCompleted)
    records, _ = await _read(ScriptedEngine(100, "x"), settings=settings)
    assert isinstance(records[-1], StreamIncomplete)


async def test_a_script_can_depend_on_the_request(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(lambda request: {"a": "A", "b": ["B", 5, Finish("length")]}[request.input], "!")
    assert (await _read(engine, Request("a")))[1].output == "A!"
    records, snapshot = await _read(engine, Request("b"))
    assert snapshot.output == "B"
    assert isinstance(records[-1], StreamIncomplete)
    assert [run.request.input for run in engine.runs] == ["a", "b"]


async def test_a_giant_piece_arrives_whole(autojump_clock: MockClock) -> None:
    piece = "\N{FOX FACE}x" * 100_000
    records, snapshot = await _read(ScriptedEngine(piece))
    assert snapshot.output == piece
    assert len(records) > 10


async def test_only_the_newest_runs_are_kept(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(lambda request: request.input, keep_runs=2)
    for letter in "abc":
        await _read(engine, Request(letter))
    assert engine.written == ["b", "c"]
    assert engine.calls == 3


async def test_its_info_comes_from_its_arguments(autojump_clock: MockClock) -> None:
    engine = ScriptedEngine(name="n", models=["m1", "m2"], sampling=["seed"])
    assert (engine.info.name, engine.info.models, engine.info.capabilities.sampling) == (
        "n",
        ("m1", "m2"),
        frozenset({"seed"}),
    )
    assert ScriptedEngine().info.models == ("scripted",)


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (None, TypeError),
        (True, TypeError),
        (b"bytes", TypeError),
        (RuntimeError, TypeError),
        (["x", {}], TypeError),
        (-1, ValueError),
        (math.nan, ValueError),
        (Repeat(Queued(-0.5), 2), ValueError),
    ],
)
async def test_an_invalid_step_is_refused_at_construction(autojump_clock: MockClock, step, error) -> None:
    with pytest.raises(error):
        ScriptedEngine("x", step)
    records, _ = await _read(ScriptedEngine(lambda _: step))  # known only when the function is called
    assert isinstance(records[-1], StreamFailed)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("pieces", [1, 2, 7, 1000])
async def test_a_text_split_inside_characters_arrives_whole(autojump_clock: MockClock, pieces, seed) -> None:
    parts = split_text(FOX, pieces, seed=seed)
    assert len(parts) == min(pieces, len(FOX.encode("utf-16-le")) // 2)
    assert all(parts)
    _, snapshot = await _read(ScriptedEngine(parts))
    assert snapshot.output == FOX


def test_a_text_is_also_split_inside_a_surrogate_pair() -> None:
    assert split_text("🦊", 2) == ["\ud83e", "\udd8a"]
    assert split_text("", 3) == []
    assert split_text("🦊", 2, seed=3) == split_text("🦊", 2, seed=3)
    with pytest.raises(ValueError, match="at least 1"):
        split_text("x", 0)


@given(st.text(), st.integers(1, 50), st.none() | st.integers())
def test_no_split_loses_a_unit(text: str, pieces: int, seed: int | None) -> None:
    parts = split_text(text, pieces, seed=seed)
    units = "".join(parts).encode("utf-16-le", "surrogatepass")
    assert units == text.encode("utf-16-le", "surrogatepass")
    assert len(parts) == min(pieces, len(units) // 2)
    assert all(parts)


def test_a_step_can_be_inserted_before_any_other_and_at_the_end() -> None:
    assert interrupted(["a", "b"], {0: 1.0, 1: 2.0, 2: 3.0}) == [1.0, "a", 2.0, "b", 3.0]
    assert interrupted(["a"], {}) == ["a"]
    for number in (-1, 3):
        with pytest.raises(IndexError):
            interrupted(["a", "b"], {number: 1.0})
