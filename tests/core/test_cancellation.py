"""Promises 1 and 4 under cancellation: no text is lost, the engine is cancelled, no task outlives its stream."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.records import TERMINAL, AnyRecord, StreamCancelled, StreamCompleted, decode_frame
from crucible_trio.request import Request
from crucible_trio.stream import Stream


def cancelled_by(stream: Stream) -> str:
    assert isinstance(stream.terminal, StreamCancelled)
    return stream.terminal.by


def text_in(frames: list[bytes]) -> str:
    records = [decode_frame(frame) for frame in frames]
    assert [record for record in records if isinstance(record, TERMINAL)] == records[-1:]
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    return "".join(getattr(record, "delta", "") for record in records)


PIECES = [Reasoning("a", 0), Reasoning("b", 0), Reasoning("c", 1), *"defghijklmnop"]
WHOLE = "abcdefghijklmnop"


def assert_keeps_what_was_written(engine: object, stream: Stream) -> None:
    text = text_in(stream.log.read(0))
    written = "".join(engine.written)  # type: ignore[attr-defined]
    assert text.startswith(written), "a piece whose call had returned was lost"
    assert WHOLE.startswith(text), "a piece was split or recorded twice"
    assert len(text) <= len(written) + 1, "more was recorded than the piece that was being written"
    assert engine.live == 0  # type: ignore[attr-defined]


Cut = Callable[[Stream, trio.CancelScope], None]
CUTS: dict[str, Cut] = {
    "cancel": lambda stream, _: stream.cancel(),
    "from outside": lambda _, scope: scope.cancel(),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("buffer", [1, 3, 64])
@pytest.mark.parametrize("reading", [True, False])
def test_a_stream_cancelled_at_any_time_keeps_everything_written(
    cut: str, buffer: int, reading: bool, scripted: Callable, run_virtually: Callable
) -> None:
    async def run(at: float) -> None:
        engine = scripted(*[step for piece in PIECES for step in (piece, 0.1)])
        scope = trio.CancelScope()
        with scope:
            async with open_pipeline(engine, Settings(buffer_tokens=buffer)) as pipeline:
                stream = await pipeline.start(Request("q"))
                if reading:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(follow, stream)
                        await trio.sleep(at)
                        CUTS[cut](stream, scope)
                else:
                    await trio.sleep(at)
                    CUTS[cut](stream, scope)
                    await trio.lowlevel.checkpoint()
        assert_keeps_what_was_written(engine, stream)

    async def follow(stream: Stream) -> None:
        async with stream.attach() as reader:
            async for _ in reader:
                pass

    for tick in range(36):
        run_virtually(run, tick * 0.05)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("buffer", [1, 3, 64])
@pytest.mark.parametrize("policy", ["continue", "pause"])
def test_a_stream_cancelled_at_any_scheduler_step_keeps_everything_written(
    cut: str, buffer: int, policy: str, scripted: Callable, run_virtually: Callable
) -> None:
    async def run(steps: int) -> str:
        engine = scripted(*PIECES)
        with trio.CancelScope() as scope:
            async with open_pipeline(engine, Settings(buffer_tokens=buffer)) as pipeline:
                stream = await pipeline.start(Request("q"), on_disconnect=policy)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                CUTS[cut](stream, scope)
                await trio.lowlevel.checkpoint()
        assert_keeps_what_was_written(engine, stream)
        return stream.status

    outcomes = [run_virtually(run, steps) for steps in range(40)]
    assert outcomes[0] == "cancelled"
    if policy == "continue":
        assert outcomes[-1] == "completed"  # the sweep covered every step from the first to the last


async def test_cancel_returns_immediately_and_the_terminal_record_says_who_cancelled(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 5, "b")
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(1)
        stream.cancel()
        assert stream.status == "running"
        await wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(1)
        assert cancelled_by(stream) == "client"
        assert engine.live == 0


async def test_all_attached_readers_get_the_terminal_record(
    scripted: Callable, read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    ends: list[AnyRecord] = []
    async with open_pipeline(scripted("a", 999)) as pipeline:
        stream = await pipeline.start(Request("q"))

        async def follow() -> None:
            ends.append((await read_to_end(stream))[-1])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(follow)
            await trio.sleep(1)
            stream.cancel()
    assert ends == [stream.terminal] * 3


async def test_an_engine_is_cancelled_before_its_first_piece_too(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(999, "a")
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"))
        await trio.sleep(1)
        assert engine.live == 1
        stream.cancel()
        await wait_all_tasks_blocked()
        assert engine.live == 0
        assert cancelled_by(stream) == "client"


@pytest.mark.parametrize("starts_with_reader", [True, False])
async def test_a_stream_cancelled_before_its_engine_is_called_never_calls_it(
    starts_with_reader: bool, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), starts_with_reader=starts_with_reader)
        stream.cancel()
        await wait_all_tasks_blocked()
        assert cancelled_by(stream) == "client"
        assert engine.calls == 0
        assert pipeline.store.running == 0


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("starts_with_reader", [True, False])
async def test_a_stream_cancelled_at_any_step_of_its_start_leaves_no_task(
    starts_with_reader: bool, read: bool, scripted: Callable, autojump_clock: MockClock
) -> None:
    engine = scripted("a", 999)
    async with open_pipeline(engine) as pipeline:
        for steps in range(20):
            before = trio.lowlevel.current_statistics().tasks_living
            stream = await pipeline.start(Request("q"), starts_with_reader=starts_with_reader)
            if read:
                async with stream.attach(after=1):
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    stream.cancel()
            else:
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                stream.cancel()
            await wait_all_tasks_blocked()
            assert cancelled_by(stream) == "client"
            assert engine.live == 0
            assert trio.lowlevel.current_statistics().tasks_living == before


async def test_only_the_first_cancel_counts_and_a_finished_stream_does_not_change(
    scripted: Callable, autojump_clock: MockClock
) -> None:
    async with open_pipeline(scripted("a", 1)) as pipeline:
        twice = await pipeline.start(Request("q"))
        done = await pipeline.start(Request("q"))
        twice.cancel("client")
        twice.cancel("disconnect")
        await trio.sleep(2)
        done.cancel()
        done.cancel()
        await trio.sleep(2)
        assert cancelled_by(twice) == "client"
        assert isinstance(done.terminal, StreamCompleted)


# Engines that react to a cancellation in unusual ways


async def cancelled_after_a_second(engine: Callable) -> Stream:
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(1)
        stream.cancel()
        await wait_all_tasks_blocked()
        assert cancelled_by(stream) == "client"
        assert trio.current_time() == pytest.approx(1)
        return stream


async def test_an_engine_that_swallows_its_cancel_still_ends_cancelled(autojump_clock: MockClock) -> None:
    async def swallows(request: Request, output: Output) -> Finish:
        await output.delta("a")
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        return Finish()

    assert text_in((await cancelled_after_a_second(swallows)).log.read(0)) == "a"


async def test_an_engine_that_swallows_a_shutdown_still_ends_cancelled(autojump_clock: MockClock) -> None:
    async def swallows(request: Request, output: Output) -> Finish:
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        return Finish()

    for _ in range(20):  # the scheduler may run either of the two tasks first
        async with open_pipeline(swallows) as pipeline:
            stream = await pipeline.start(Request("q"))
            await wait_all_tasks_blocked()
        assert cancelled_by(stream) == "shutdown"


@pytest.mark.parametrize("shutdown", [False, True])
@pytest.mark.parametrize("kind", ["error", "group", "no finish"])
async def test_an_engine_that_raises_during_its_cancellation_still_ends_cancelled(
    kind: str, shutdown: bool, autojump_clock: MockClock
) -> None:
    async def fails_in_its_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    async def engine(request: Request, output: Output) -> Finish | None:
        await output.delta("a")
        match kind:
            case "error":
                await fails_in_its_cleanup()
            case "group":  # ValueError and Cancelled in one group
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fails_in_its_cleanup)
                    nursery.start_soon(trio.sleep_forever)
                    await trio.sleep_forever()
            case _:
                with trio.move_on_after(99):
                    await trio.sleep_forever()
        return None

    for _ in range(20):  # the scheduler may run either of the two tasks first
        async with open_pipeline(engine) as pipeline:
            stream = await pipeline.start(Request("q"), on_disconnect="continue")
            await trio.sleep(1)
            if not shutdown:
                stream.cancel()
                await wait_all_tasks_blocked()
        assert cancelled_by(stream) == ("shutdown" if shutdown else "client")
        assert text_in(stream.log.read(0)) == "a"


async def test_a_write_in_a_cleanup_after_the_end_raises(autojump_clock: MockClock) -> None:
    raised: list[Exception] = []

    async def engine(request: Request, output: Output) -> Finish:
        await output.delta("a")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
                for write in (output.delta, lambda text: output.reasoning(text, 0)):
                    try:
                        await write("goodbye")
                    except trio.ClosedResourceError as error:
                        raised.append(error)
        raise AssertionError

    stream = await cancelled_after_a_second(engine)
    assert len(raised) == 2
    assert text_in(stream.log.read(0)) == "a"


async def test_an_immediate_write_in_a_cleanup_is_recorded_or_raises(autojump_clock: MockClock) -> None:
    for _ in range(20):  # the result depends on which of the two tasks the scheduler runs first
        returned: list[str] = []

        async def engine(request: Request, output: Output, returned: list[str] = returned) -> Finish:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await output.delta("goodbye")
                    returned.append("goodbye")
            raise AssertionError

        async with open_pipeline(engine) as pipeline:
            stream = await pipeline.start(Request("q"), on_disconnect="continue")
            await wait_all_tasks_blocked()
            stream.cancel()
            await wait_all_tasks_blocked()
            assert text_in(stream.log.read(0)) == "".join(returned)
            assert cancelled_by(stream) == "client"


async def test_a_shielded_write_is_recorded_if_its_call_returns_and_raises_otherwise(
    autojump_clock: MockClock,
) -> None:
    returned: list[str] = []

    async def shielded(request: Request, output: Output) -> Finish:
        with trio.CancelScope(shield=True):
            for letter in "abcdefgh":
                await output.delta(letter)
                returned.append(letter)
        return Finish()

    async with open_pipeline(shielded, Settings(buffer_tokens=2)) as pipeline:
        stream = await pipeline.start(Request("q"))
        await wait_all_tasks_blocked()
        stream.cancel()
        await wait_all_tasks_blocked()
        assert text_in(stream.log.read(0)) == "".join(returned) == "abc"


async def test_the_terminal_record_does_not_wait_for_an_engine_that_ignores_cancellation(
    read_to_end: Callable[..., Awaitable[list[AnyRecord]]], autojump_clock: MockClock
) -> None:
    let_go = trio.Event()

    async def stubborn(request: Request, output: Output) -> Finish:
        await output.delta("a")
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await let_go.wait()
        raise AssertionError

    async with open_pipeline(stubborn) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await trio.sleep(1)
        stream.cancel()
        assert (await read_to_end(stream))[-1] == stream.terminal
        assert trio.current_time() == pytest.approx(1)
        assert cancelled_by(stream) == "client"
        assert pipeline.store.running == 1  # its slot is in use
        let_go.set()
        await wait_all_tasks_blocked()
        assert pipeline.store.running == 0


async def test_a_cancelled_engine_releases_its_model_slot(autojump_clock: MockClock) -> None:
    slots = trio.CapacityLimiter(1)

    async def engine(request: Request, output: Output) -> Finish:
        async with output.queued():
            await slots.acquire()
        try:
            await output.delta("a")
            await trio.sleep_forever()
        finally:
            slots.release()
        raise AssertionError

    async with open_pipeline(engine) as pipeline:
        streams = [await pipeline.start(Request("q"), on_disconnect="continue") for _ in range(3)]
        await wait_all_tasks_blocked()
        assert slots.statistics().tasks_waiting == 2
        for stream in streams:
            stream.cancel()
        await wait_all_tasks_blocked()
        assert (slots.borrowed_tokens, slots.statistics().tasks_waiting) == (0, 0)
        assert [cancelled_by(stream) for stream in streams] == ["client"] * 3
