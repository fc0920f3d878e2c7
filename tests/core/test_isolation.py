"""Promise 5: an exception ends only its own stream, and its text reaches neither the client nor the server's log."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.content import Piece, Text
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.generation import Generation
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.recorder import Recorder
from crucible_trio.records import ErrorInfo, StreamCompleted, StreamFailed
from crucible_trio.request import Message, OnDisconnect, Request

PROMPT = "my secret diary"


async def quotes_the_prompt(request: Request, output: Output) -> Finish:
    prompt = request.messages[0].content
    await output.delta("a")
    await trio.sleep(1)
    if prompt == PROMPT:
        error = ValueError(f"cannot answer {prompt}")
        error.add_note(f"the prompt was {prompt}")
        raise error from KeyError(prompt)
    await trio.sleep(1)
    await output.delta("b")
    return Finish()


async def quotes_in_a_group(request: Request) -> AsyncIterator[str]:
    yield "a"
    try:
        await quotes_the_prompt(request, None)  # type: ignore[arg-type]
    except AttributeError as error:
        raise ExceptionGroup(PROMPT, [error, ValueError(PROMPT), ExceptionGroup(PROMPT, [KeyError(PROMPT)])]) from None


async def test_a_failing_engine_leaves_its_neighbours_alone(
    read_to_end: Callable, text_of: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(quotes_the_prompt) as pipeline:
        failing = await pipeline.start(Request(PROMPT), on_disconnect="continue")
        neighbour = await pipeline.start(Request("hello"))
        assert text_of(await read_to_end(neighbour)) == "ab"
        assert (failing.status, neighbour.status) == ("failed", "completed")
        later = await pipeline.start(Request("hello again"))
        assert text_of(await read_to_end(later)) == "ab"


@pytest.mark.parametrize("engine", [quotes_the_prompt, quotes_in_a_group])
async def test_an_exceptions_text_reaches_neither_client_nor_log_but_its_traceback_does(
    engine: Callable, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    with caplog.at_level(logging.DEBUG):
        async with open_pipeline(engine) as pipeline:
            stream = await pipeline.start(Request((Message("user", PROMPT),)), on_disconnect="continue")
            await trio.sleep(10)
    assert stream.snapshot().error is not None
    assert stream.snapshot().error.message == "The engine failed."
    assert stream.snapshot().output == "a"
    assert PROMPT.encode() not in b"".join(stream.log.read(0))
    assert PROMPT not in caplog.text
    assert stream.id in caplog.text
    assert "Error" in caplog.text
    assert "test_isolation.py" in caplog.text
    assert "quotes_the_prompt" in caplog.text


async def test_an_error_meant_for_the_client_is_not_logged_as_a_failure(
    scripted: Callable, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted(EngineError("busy", "Later."))) as pipeline:
        stream = await pipeline.start(Request("q"))
        await wait_all_tasks_blocked()
        assert stream.status == "failed"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_each_ended_stream_logs_one_line_without_its_text(
    caplog: pytest.LogCaptureFixture, scripted: Callable, autojump_clock: MockClock
) -> None:
    with caplog.at_level(logging.INFO):
        async with open_pipeline(scripted(0.25, "the", "answer", 1)) as pipeline:
            completed = await pipeline.start(Request(PROMPT, mode="deep"), on_disconnect="continue")
            await trio.sleep(2)
            cancelled = await pipeline.start(Request(PROMPT))
            cancelled.cancel()
            await wait_all_tasks_blocked()
    assert [record.getMessage() for record in caplog.records] == [
        f"stream {completed.id} ended: engine=scripted mode=deep status=completed"
        " pieces=2 first_token_ms=250.0 total_ms=1250.0",
        f"stream {cancelled.id} ended: engine=scripted mode=standard status=cancelled pieces=0"
        " first_token_ms=None total_ms=0.0",
    ]


@pytest.mark.parametrize("broken", ["add", "finish"])
async def test_an_internal_error_ends_only_its_own_stream(
    broken: str,
    scripted: Callable,
    read_to_end: Callable,
    text_of: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    whole = getattr(Recorder, broken)

    def breaks(recorder: Recorder, *args: object) -> object:
        if recorder._stream_id == victim.id:
            raise RuntimeError("a bug")
        return whole(recorder, *args)

    engine = scripted("a", 1, "b", 1)
    async with open_pipeline(engine) as pipeline:
        victim = await pipeline.start(Request("q"), on_disconnect="continue")
        neighbour = await pipeline.start(Request("q"))
        monkeypatch.setattr(Recorder, broken, breaks)
        assert text_of(await read_to_end(neighbour)) == "ab"
        *_, end = await read_to_end(victim)  # its readers get an end too
        assert isinstance(end, StreamFailed)
        assert end.error == ErrorInfo("internal_error", "Internal error.", False)
        await wait_all_tasks_blocked()
        assert engine.live == 0
        assert pipeline.store.running == 0
    assert f"stream {victim.id}: internal error" in caplog.text


async def test_an_interrupt_in_an_engine_stops_the_program(autojump_clock: MockClock) -> None:
    async def interrupted(request: Request, output: Output) -> Finish:
        await output.delta("a")
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with open_pipeline(interrupted, Settings(buffer_tokens=1)) as pipeline:
            await pipeline.start(Request("q"), on_disconnect="continue")
            await trio.sleep_forever()


async def test_an_internal_error_after_the_end_changes_no_record(
    scripted: Callable, read_to_end: Callable, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    whole = Generation.run

    async def fails_at_the_end(generation: Generation) -> None:
        await whole(generation)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Generation, "run", fails_at_the_end)
    async with open_pipeline(scripted("a")) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        records = await read_to_end(stream)
        await wait_all_tasks_blocked()
        assert isinstance(records[-1], StreamCompleted)
        assert pipeline.store.running == 0
        assert await read_to_end(stream) == records


@pytest.mark.parametrize("pause", [0.0, 1.0])  # a burst goes through the buffer, a piece alone does not
@pytest.mark.parametrize("on_disconnect", ["pause", "continue"])
async def test_an_error_while_recording_ends_its_stream_alone(
    monkeypatch: pytest.MonkeyPatch, pause: float, on_disconnect: OnDisconnect, autojump_clock: MockClock
) -> None:
    """The recorder runs in the call of whoever makes room. That may be a reader, and the pieces in hand are lost."""
    add = Recorder.add

    def fail(recorder: Recorder, pieces: Sequence[Piece]) -> list[bytes]:
        frames = add(recorder, pieces)
        if Text("bad") in pieces:
            raise RuntimeError
        return frames

    async def engine(request: Request, output: Output) -> Finish:
        for text in ("a", "bad", "c"):
            await output.delta(text)
            if pause:
                await trio.sleep(pause)
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(Recorder, "add", fail)
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=on_disconnect)
        if on_disconnect == "continue":
            await trio.sleep(10)
        async with stream.attach() as reader:
            records = [record async for record in reader]
        await trio.sleep(1)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        assert isinstance(records[-1], StreamFailed)
        assert records[-1].error.code == "internal_error"
        assert pipeline.store.running == 0
