import time

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.batching import Batcher
from crucible_trio.output import Output, Token
from crucible_trio.timers import Timers


def open_output(buffer: int) -> tuple[Output, trio.MemoryReceiveChannel[Token]]:
    send, receive = trio.open_memory_channel[Token](buffer)
    return Output(send), receive


async def test_pieces_arrive_in_order_with_their_segment(autojump_clock: MockClock) -> None:
    output, receive = open_output(9)
    await output.reasoning("a", 0)
    await output.reasoning("b", 0)
    await output.reasoning("c", 1)
    await output.delta("d")
    assert [receive.receive_nowait() for _ in range(4)] == [
        Token("a", 0),
        Token("b", 0),
        Token("c", 1),
        Token("d", None),
    ]


async def test_writing_waits_while_the_buffer_is_full(autojump_clock: MockClock) -> None:
    output, receive = open_output(1)
    written = []

    async def write() -> None:
        for letter in "abc":
            await output.delta(letter)
            written.append(letter)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert written == ["a"]
        receive.receive_nowait()
        await wait_all_tasks_blocked()
        assert written == ["a", "b"]
        receive.receive_nowait()


@pytest.mark.parametrize("text", ["x", ""])
async def test_every_write_checks_for_cancellation(text: str, autojump_clock: MockClock) -> None:
    output, receive = open_output(9)
    for write in (output.delta(text), output.reasoning(text, 0)):
        with trio.CancelScope() as scope:
            scope.cancel()
            await write
        assert scope.cancelled_caught
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_an_engine_that_never_waits_lets_others_run(autojump_clock: MockClock) -> None:
    batcher = Batcher(Timers())
    trio.lowlevel.add_instrument(batcher)
    send, _receive = trio.open_memory_channel[Token](10_000)
    output = Output(send, batcher)
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await trio.lowlevel.checkpoint()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            before = passes
            for _ in range(64 * 10 + 1):
                await output.delta("x")
            assert passes - before >= 9
            before = passes
            for _ in range(4):  # each takes longer than one pass of the scheduler may
                await output.delta("x")
                time.sleep(0.006)  # noqa: ASYNC251 - an engine that computes
            assert passes - before >= 2
            nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(batcher)


async def test_an_empty_piece_takes_no_buffer_space(autojump_clock: MockClock) -> None:
    output, receive = open_output(1)
    await output.delta("")
    await output.delta("")
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


@pytest.mark.parametrize("first", [-1, 1, 2])
async def test_the_first_segment_is_0(first: int, autojump_clock: MockClock) -> None:
    output, receive = open_output(9)
    with pytest.raises(ValueError, match="segment"):
        await output.reasoning("x", first)
    await output.reasoning("x", 0)
    assert receive.receive_nowait() == Token("x", 0)


@pytest.mark.parametrize("wrong", [-1, 0, 3])
async def test_segments_are_consecutive_and_never_go_back(wrong: int, autojump_clock: MockClock) -> None:
    output, _receive = open_output(9)
    await output.reasoning("a", 0)
    await output.reasoning("b", 1)
    with pytest.raises(ValueError, match=f"segment {wrong} cannot follow segment 1"):
        await output.reasoning("c", wrong)
    await output.reasoning("c", 1)
    await output.reasoning("d", 2)


async def test_an_empty_piece_opens_no_segment(autojump_clock: MockClock) -> None:
    output, _receive = open_output(9)
    await output.reasoning("a", 0)
    await output.reasoning("", 1)
    with pytest.raises(ValueError, match="segment 2 cannot follow segment 0"):
        await output.reasoning("c", 2)


async def test_a_segment_is_a_plain_int_in_the_log(autojump_clock: MockClock) -> None:
    output, receive = open_output(9)
    await output.reasoning("a", False)
    assert type(receive.receive_nowait().segment) is int


@pytest.mark.parametrize("text", [5, b"x", None])
async def test_writing_anything_but_text_raises_a_type_error(text: object, autojump_clock: MockClock) -> None:
    output, receive = open_output(9)
    with pytest.raises(TypeError):
        await output.delta(text)  # type: ignore[arg-type]
    with pytest.raises(trio.WouldBlock):
        receive.receive_nowait()


async def test_writing_after_the_end_raises_whichever_side_closed_first(autojump_clock: MockClock) -> None:
    output, receive = open_output(9)
    receive.close()
    with pytest.raises(trio.ClosedResourceError):
        await output.delta("x")
    send, receive = trio.open_memory_channel[Token](9)
    send.close()
    with pytest.raises(trio.ClosedResourceError):
        await Output(send).reasoning("x", 0)


async def test_queued_time_adds_up_over_all_waits_and_grows_during_one(autojump_clock: MockClock) -> None:
    output, _receive = open_output(9)
    assert output.queued_seconds == 0
    assert not output.is_queued
    async with output.queued():
        assert output.is_queued
        await trio.sleep(2)
        assert output.queued_seconds == pytest.approx(2)
        await trio.sleep(1)
    await trio.sleep(10)
    assert output.queued_seconds == pytest.approx(3)
    with trio.move_on_after(4):
        async with output.queued():
            await trio.sleep_forever()
    assert output.queued_seconds == pytest.approx(7)
    assert not output.is_queued
    await trio.sleep(10)
    assert output.queued_seconds == pytest.approx(7)
