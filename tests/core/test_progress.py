"""The progress in a snapshot: the engine's activity, and how far it is ahead of its log."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.config import Settings
from crucible_trio.pipeline import open_pipeline
from crucible_trio.request import OnDisconnect, Request
from crucible_trio.snapshot import Progress
from crucible_trio.stream import Stream
from crucible_trio.testing.script import Gate, Queued


def progress_of(stream: Stream) -> tuple[str, int, int]:
    progress = stream.snapshot().progress
    assert progress is not None
    return progress.activity, progress.pieces, progress.buffered


async def test_an_engine_with_a_full_buffer_waits_for_its_reader(scripted: Callable, autojump_clock: MockClock) -> None:
    engine = scripted(*[step for number in range(20) for step in (f"{number} ", 0.1)])
    async with open_pipeline(engine, Settings(buffer_tokens=3)) as pipeline:
        stream = await pipeline.start(Request("q"))
        async with stream.attach() as reader:
            records = [await anext(reader) for _ in range(3)]
            await trio.sleep(0.05)
            assert progress_of(stream) == ("generating", 2, 0)
            await trio.sleep(60)
            # The reader has its last record in hand. The buffer is full, and the engine has one more piece.
            assert progress_of(stream) == ("waiting", len(engine.made), 4)
            assert len(engine.made) == len(records[1:]) + 4
            async for _ in reader:
                pass
        assert progress_of(stream) == ("ended", 20, 0)


@pytest.mark.parametrize(("policy", "activity"), [("pause", "paused"), ("continue", "generating")])
async def test_an_engine_without_a_reader_is_paused_unless_it_may_continue(
    scripted: Callable, policy: OnDisconnect, activity: str, autojump_clock: MockClock
) -> None:
    engine = scripted("one ", Gate())
    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect=policy)
        await wait_all_tasks_blocked()
        assert progress_of(stream) == (activity, 1, 1 if policy == "pause" else 0)
        stream.cancel()
        assert progress_of(stream)[0] == "ended"


async def test_an_engine_that_waits_for_a_slot_is_queued(scripted: Callable, autojump_clock: MockClock) -> None:
    slot = Gate()
    async with open_pipeline(scripted("one ", Queued(slot), "two ")) as pipeline:
        stream = await pipeline.start(Request("q"), on_disconnect="continue")
        await slot.wait_reached()
        assert stream.snapshot().progress == Progress(activity="queued", pieces=1, buffered=0)
        slot.open()
        await stream.log.wait_finished()
        assert progress_of(stream) == ("ended", 2, 0)
