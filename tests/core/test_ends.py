"""Promise 6: a stream has exactly one terminal record. It comes last and says how the stream ended."""

from collections.abc import AsyncIterator, Callable
from typing import get_args

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import EngineInfo, Finish
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import (
    TERMINAL,
    AnyRecord,
    ErrorInfo,
    IncompleteReason,
    ReasoningDone,
    StreamCompleted,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Usage,
    encode_frame,
)
from crucible_trio.request import Request

ENGINE_FAILED = ErrorInfo("engine_error", "The engine failed.", False)


@pytest.fixture
def end_of(records_in: Callable) -> Callable:
    """Run an engine, check its whole log, and return the terminal record and the text."""

    async def end_of(engine: object, settings: Settings | None = None, **fields: object) -> tuple[AnyRecord, str]:
        async with open_pipeline(engine, settings) as pipeline:  # type: ignore[arg-type]
            stream = await pipeline.start(Request("q", **fields), on_disconnect="continue")  # type: ignore[arg-type]
            await trio.sleep(1000)
            records = records_in(stream)
            assert isinstance(records[0], StreamCreated)
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            assert [record for record in records if isinstance(record, TERMINAL)] == records[-1:]
            assert stream.terminal == records[-1]
            snapshot = stream.snapshot()
            return records[-1], "".join(snapshot.trace) + snapshot.output

    return end_of


# Ended by the engine


async def test_a_finish_completes_the_stream_with_its_reason_and_usage(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    usage = Usage(3, 9, 4)
    terminal, text = await end_of(scripted(2, "a", 3, "b", Finish("tool_calls", usage)))
    assert text == "ab"
    assert terminal == StreamCompleted(terminal.seq, "tool_calls", usage, terminal.timings)
    assert (terminal.timings.first_token_ms, terminal.timings.total_ms) == pytest.approx((2000, 5000))


async def test_usage_that_is_not_given_is_not_guessed(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    terminal, _ = await end_of(scripted("a", "b", Finish("stop", Usage(output_tokens=2))))
    assert terminal.usage == Usage(None, 2, None)


async def test_finish_reason_length_makes_the_stream_incomplete(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    terminal, text = await end_of(scripted("a", Finish("length", Usage(1, 1))))
    assert terminal == StreamIncomplete(terminal.seq, "max_output_tokens", Usage(1, 1), terminal.timings)
    assert text == "a"


@pytest.mark.parametrize("reason", get_args(IncompleteReason))
async def test_an_engine_can_end_with_the_reason_of_any_limit(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock, reason: IncompleteReason
) -> None:
    terminal, _ = await end_of(scripted("a", Finish(reason, Usage(1, 1))))
    assert terminal == StreamIncomplete(terminal.seq, reason, Usage(1, 1), terminal.timings)


async def test_a_finish_without_a_piece_completes_with_empty_text(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    terminal, text = await end_of(scripted(Finish()))
    assert isinstance(terminal, StreamCompleted)
    assert (text, terminal.timings.first_token_ms, terminal.seq) == ("", None, 2)


async def test_a_finish_reason_is_shortened_and_made_valid_unicode(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    terminal, _ = await end_of(scripted("a", Finish("\ud800" + "x" * 999)))
    assert isinstance(terminal, StreamCompleted)
    assert terminal.finish_reason == "?" + "x" * 63


async def test_the_stop_string_is_in_the_last_record_shortened_and_valid(
    end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    for given, expected in (("END", "END"), ("\ud800" + "x" * 999, "?" + "x" * 255), (None, None)):
        terminal, _ = await end_of(scripted("a", Finish(stop_string=given)))
        assert isinstance(terminal, StreamCompleted)
        assert terminal.stop_string == expected
        assert (b"stop_string" in encode_frame("str_x", terminal)) == (expected is not None)


@pytest.mark.parametrize("finish", [Finish(None), Finish("stop", None), Finish("stop", Usage("many"))])  # type: ignore[arg-type]
async def test_a_finish_that_cannot_be_encoded_is_an_engine_error(
    finish: Finish, end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    terminal, text = await end_of(scripted("a", finish))
    assert (terminal.error, text) == (ENGINE_FAILED, "a")


@pytest.mark.parametrize("result", [None, "stop", Usage()])
async def test_a_coroutine_that_returns_no_finish_breaks_the_protocol(
    result: object, end_of: Callable, autojump_clock: MockClock
) -> None:
    async def engine(request: Request, output: Output) -> object:
        await output.delta("a")
        return result

    terminal, text = await end_of(engine)
    assert terminal.error == ErrorInfo("engine_protocol", "The engine did not return a Finish.", False)
    assert text == "a"


async def test_a_generator_without_a_piece_fails(end_of: Callable, autojump_clock: MockClock) -> None:
    async def silent(request: Request) -> AsyncIterator[str]:
        for piece in ():
            yield piece

    terminal, _ = await end_of(silent)
    assert terminal.error == ErrorInfo("empty_output", "The engine ended without writing anything.", False)


async def test_a_generator_that_yields_a_wrong_type_fails_and_keeps_earlier_pieces(
    end_of: Callable, autojump_clock: MockClock
) -> None:
    async def broken(request: Request) -> AsyncIterator[object]:
        yield "a"
        yield 7

    terminal, text = await end_of(broken)
    assert terminal.error.code == "engine_protocol"
    assert text == "a"


async def test_a_safe_channel_runs_like_any_engine(end_of: Callable, autojump_clock: MockClock) -> None:
    @trio.as_safe_channel
    async def crowd(request: Request) -> AsyncIterator[str | Reasoning]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            yield Reasoning("a")
            await trio.sleep(1)
            yield "b"

    terminal, text = await end_of(crowd)
    assert isinstance(terminal, StreamCompleted)
    assert text == "ab"


# Ended by an error


@pytest.mark.parametrize("retryable", [True, False])
async def test_an_engine_error_is_sent_to_the_client(
    retryable: bool, end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    error = EngineError("upstream_busy", "Try later.", retryable=retryable)
    terminal, text = await end_of(scripted("a", "b", error))
    assert terminal == StreamFailed(
        terminal.seq, ErrorInfo("upstream_busy", "Try later.", retryable), Usage(), terminal.timings
    )
    assert text == "ab"


async def test_a_long_engine_error_is_cut(end_of: Callable, scripted: Callable, autojump_clock: MockClock) -> None:
    terminal, _ = await end_of(scripted(EngineError("c" * 999, "m" * 999)))
    assert terminal.error == ErrorInfo("c" * 64, "m" * 400, False)


KNOWN = EngineError("known", "Known.")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("secret"), ENGINE_FAILED),
        (ExceptionGroup("secret", [ValueError("secret"), KeyError("secret")]), ENGINE_FAILED),
        (ExceptionGroup("secret", [KNOWN]), ErrorInfo("known", "Known.", False)),
        (ExceptionGroup("secret", [ExceptionGroup("", [KNOWN])]), ErrorInfo("known", "Known.", False)),
        (ExceptionGroup("secret", [KNOWN, KNOWN]), ENGINE_FAILED),
        (ExceptionGroup("secret", [KNOWN, ValueError("secret")]), ENGINE_FAILED),
        (trio.ClosedResourceError("secret"), ENGINE_FAILED),
        (trio.BrokenResourceError("secret"), ENGINE_FAILED),
        (trio.EndOfChannel("secret"), ENGINE_FAILED),
        (trio.WouldBlock("secret"), ENGINE_FAILED),
        (StopAsyncIteration("secret"), ENGINE_FAILED),
        (TimeoutError("secret"), ENGINE_FAILED),
    ],
)
async def test_any_other_exception_becomes_engine_error_and_keeps_earlier_pieces(
    error: Exception, expected: ErrorInfo, end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    terminal, text = await end_of(scripted("a", 1, "b", error))
    assert isinstance(terminal, StreamFailed)
    assert terminal.error == expected
    assert text == "ab"


async def test_an_error_in_an_engines_own_nursery_is_its_error(end_of: Callable, autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        async def fail() -> None:
            await trio.sleep(1)
            raise EngineError("worker", "A worker died.")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await output.delta("a")
            await trio.sleep_forever()
        return Finish()

    terminal, text = await end_of(engine)
    assert terminal.error.code == "worker"
    assert text == "a"


@pytest.mark.parametrize("piece", [5, b"x", None])
async def test_writing_anything_but_text_fails_the_stream(
    piece: object, end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        await output.delta("a")
        await output.delta(piece)  # type: ignore[arg-type]
        return Finish()

    terminal, text = await end_of(engine)
    assert (terminal.error, text) == (ENGINE_FAILED, "a")


async def test_an_engine_has_no_way_to_close_its_output(end_of: Callable, autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        await output.delta("a")
        output.close()  # type: ignore[attr-defined]
        await trio.sleep_forever()
        raise AssertionError

    terminal, text = await end_of(engine)
    assert (terminal.error, text) == (ENGINE_FAILED, "a")


# Ended by a limit


class CountingEngine:
    """Writes the letters a to h, and counts two tokens for each. It ignores `max_output_tokens`."""

    def __init__(self) -> None:
        self.info = EngineInfo(name="counting", models=("counting",))
        self.live = 0

    async def generate(self, request: Request, output: Output) -> Finish:
        self.live += 1
        try:
            for number, letter in enumerate("abcdefgh", 1):
                await output.delta(letter)
                output.count_tokens(2 * number)
                await trio.sleep(1)
        finally:
            self.live -= 1
        return Finish()


async def test_an_engine_that_counts_more_tokens_than_it_may_use_is_stopped(
    end_of: Callable, autojump_clock: MockClock
) -> None:
    engine = CountingEngine()
    terminal, text = await end_of(engine, max_output_tokens=6)
    assert terminal == StreamIncomplete(terminal.seq, "max_output_tokens", Usage(), terminal.timings)
    assert text == "abcd"  # with the fourth piece the engine has counted eight tokens
    assert engine.live == 0


async def test_an_engine_that_counts_as_many_tokens_as_it_may_use_completes(
    end_of: Callable, autojump_clock: MockClock
) -> None:
    terminal, text = await end_of(CountingEngine(), max_output_tokens=16)
    assert isinstance(terminal, StreamCompleted)
    assert text == "abcdefgh"


async def test_the_servers_token_limit_applies_to_a_request_that_sets_none(
    end_of: Callable, autojump_clock: MockClock
) -> None:
    terminal, text = await end_of(CountingEngine(), Settings(max_output_tokens=4))
    assert (terminal.reason, text) == ("max_output_tokens", "abc")


@pytest.mark.parametrize("pause", [1, 0])
async def test_pieces_are_not_tokens(
    pause: float, end_of: Callable, scripted: Callable, autojump_clock: MockClock
) -> None:
    """An upstream may send one character per chunk: 50 pieces can be 10 tokens. The same holds for a burst."""
    engine = scripted(*[step for _ in range(50) for step in ("x", pause)])
    terminal, text = await end_of(engine, max_output_tokens=10)
    assert isinstance(terminal, StreamCompleted)
    assert text == "x" * 50


async def test_a_full_log_stops_the_engine_and_keeps_everything_readable(
    scripted: Callable, records_in: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*[step for _ in range(50) for step in (Reasoning("x" * 1000, 0), 1)])
    async with open_pipeline(engine, Settings(stream_log_bytes=10_240)) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(100)
        records = records_in(stream)
        assert isinstance(records[-1], StreamIncomplete)
        assert records[-1].reason == "log_limit"
        assert records[-2] == ReasoningDone(records[-2].seq, 1)
        assert stream.snapshot().trace == ["x" * 3000]  # the cap minus the reserve for the end
        assert stream.log.size_bytes <= 8192
        assert engine.live == 0
        assert len(engine.made) == 4


async def test_a_stream_is_not_completed_if_the_rest_of_its_buffer_does_not_fit(
    scripted: Callable, records_in: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted(*["x" * 1000] * 8, Finish("stop", Usage(1, 8)))
    async with open_pipeline(engine, Settings(stream_log_bytes=10_240)) as pipeline:
        stream = await pipeline.start(Request("q"))  # no reader: all pieces are still buffered when the engine returns
        await wait_all_tasks_blocked()
        assert len(engine.written) == 8
        terminal = records_in(stream)[-1]
        assert terminal == stream.terminal
        assert terminal == StreamIncomplete(terminal.seq, "log_limit", Usage(1, 8), terminal.timings)
        assert set(stream.snapshot().output) == {"x"}
        assert stream.log.size_bytes <= 8192


# The last pieces


async def test_the_piece_in_hand_when_the_channel_ends_is_recorded(end_of: Callable, autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        await trio.sleep(1)  # so that the recorder waits: it gets the first piece, then finds the rest and the end
        for letter in "abc":
            await output.delta(letter)
        return Finish()

    for _ in range(20):  # the scheduler's order is random
        terminal, text = await end_of(engine)
        assert isinstance(terminal, StreamCompleted)
        assert text == "abc"


async def test_the_last_pieces_and_the_terminal_record_appear_together(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("abc", 1, "def", 1)) as pipeline:
        stream = await pipeline.start(Request("q"))  # without a reader, all pieces are still buffered at the end
        await stream.log.attach(0).wait(1)
        assert (stream.log.head, stream.log.finished) == (3, True)
        assert stream.snapshot().output == "abcdef"


async def test_after_the_end_the_output_is_closed_to_leftover_tasks(autojump_clock: MockClock) -> None:
    outputs: list[Output] = []

    async def engine(request: Request, output: Output) -> Finish:
        outputs.append(output)
        await output.delta("a")
        return Finish()

    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await wait_all_tasks_blocked()
        assert stream.status == "completed"
        for write in (outputs[0].delta("b"), outputs[0].reasoning("b", 0)):
            with pytest.raises(trio.ClosedResourceError):
                await write
        assert stream.snapshot().output == "a"
