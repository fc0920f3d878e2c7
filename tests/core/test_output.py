import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio import Finish, Request, open_pipeline
from crucible_trio.batching import Batcher
from crucible_trio.content import (
    MAX_FIELDS_BYTES,
    Continued,
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.output import Output
from crucible_trio.records import MAX_DEPTH
from crucible_trio.timers import Timers


class Sink:
    """A sink that lets every piece go through the buffer, unless `records_now` is set."""

    def __init__(self) -> None:
        self.records_now = False
        self.recorded: list[Piece] = []
        self.buffered = 0
        self.counted: list[int] = []
        self.engines: list[str] = []

    def record_now(self, piece: Piece) -> bool:
        if self.records_now:
            self.recorded.append(piece)
        return self.records_now

    def piece_buffered(self) -> None:
        self.buffered += 1

    def tokens_counted(self, total: int) -> None:
        self.counted.append(total)

    def engine_changed(self, name: str) -> None:
        self.engines.append(name)


@pytest.fixture
async def batcher() -> AsyncIterator[Batcher]:
    """A batcher that the scheduler drives."""
    batcher = Batcher(Timers())
    trio.lowlevel.add_instrument(batcher)
    yield batcher
    trio.lowlevel.remove_instrument(batcher)


def open_output(buffer: int, batcher: Batcher | None = None) -> tuple[Output, trio.MemoryReceiveChannel[Piece], Sink]:
    send, receive = trio.open_memory_channel[Piece](buffer)
    sink = Sink()
    return Output(send, batcher or Batcher(Timers()), sink), receive, sink


def written(receive: trio.MemoryReceiveChannel[Piece]) -> list[Piece]:
    """Everything in the buffer."""
    pieces = []
    while receive.statistics().current_buffer_used:
        pieces.append(receive.receive_nowait())
    return pieces


async def open_call(output: Output) -> None:
    async with output.tool_call("call_1", "weather"):
        pass


async def test_pieces_arrive_in_order_with_their_kind_and_segment(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    await output.reasoning("a", 0)
    await output.reasoning("b", 0)
    await output.reasoning("c", 1)
    await output.delta("d")
    await output.delta("e", [{"token": "e", "logprob": -1.5}])
    await output.refusal("f")
    assert written(receive) == [
        Reasoning("a", 0),
        Reasoning("b", 0),
        Reasoning("c", 1),
        Text("d"),
        Text("e", [{"token": "e", "logprob": -1.5}]),
        Refusal("f"),
    ]


async def test_writing_waits_while_the_buffer_is_full(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(1)
    returned = []

    async def write() -> None:
        for letter in "abc":
            await output.delta(letter)
            returned.append(letter)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        assert returned == ["a"]
        receive.receive_nowait()
        await wait_all_tasks_blocked()
        assert returned == ["a", "b"]
        receive.receive_nowait()


async def test_the_sink_is_told_of_every_buffered_piece_and_of_a_full_buffer(autojump_clock: MockClock) -> None:
    output, receive, sink = open_output(1)
    await output.delta("a")
    assert sink.buffered == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.delta, "b")
        await wait_all_tasks_blocked()
        assert sink.buffered == 2
        receive.receive_nowait()
    assert sink.buffered == 3


async def test_only_the_first_piece_of_a_scheduler_pass_is_recorded_without_the_buffer(
    batcher: Batcher, autojump_clock: MockClock
) -> None:
    output, receive, sink = open_output(9, batcher)
    sink.records_now = True
    await trio.sleep(1)
    await output.delta("a")
    await output.delta("b")  # belongs to a burst
    await trio.sleep(1)
    await output.refusal("c")
    await trio.sleep(1)
    async with output.tool_call("call_1", "weather") as call:
        await trio.sleep(1)
        await call.arguments("{}")
        await trio.sleep(1)
    assert sink.recorded == [
        Text("a"),
        Refusal("c"),
        ToolCallStart("call_1", "weather"),
        ToolCallArguments("{}"),
        ToolCallEnd(),
    ]
    assert written(receive) == [Text("b")]


@pytest.mark.parametrize("text", ["x", ""])
@pytest.mark.parametrize(
    "write",
    [
        Output.delta,
        lambda output, text: output.reasoning(text, 0),
        Output.refusal,
        lambda output, _: output.continued(1),
        lambda output, _: open_call(output),
    ],
    ids=["delta", "reasoning", "refusal", "continued", "tool_call"],
)
async def test_every_write_checks_for_cancellation(
    text: str, write: Callable[[Output, str], Awaitable[None]], autojump_clock: MockClock
) -> None:
    output, receive, _ = open_output(9)
    with trio.CancelScope() as scope:
        scope.cancel()
        await write(output, text)
    assert scope.cancelled_caught
    assert written(receive) == []


async def test_an_engine_that_never_waits_lets_others_run(batcher: Batcher, autojump_clock: MockClock) -> None:
    output, _receive, _ = open_output(10_000, batcher)
    passes = 0

    async def count() -> None:
        nonlocal passes
        while True:
            passes += 1
            await trio.lowlevel.checkpoint()

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


async def test_an_empty_piece_takes_no_buffer_space(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(2)
    await output.delta("")
    await output.delta("", [])
    await output.refusal("")
    async with output.tool_call("call_1", "weather") as call:
        assert written(receive) == [ToolCallStart("call_1", "weather")]
        await call.arguments("")
        await call.arguments("")
    assert written(receive) == [ToolCallEnd()]


async def test_a_piece_with_log_probabilities_alone_is_not_empty(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    await output.delta("", [{"token": "\\xf0\\x9f"}])  # the first half of a character
    assert written(receive) == [Text("", [{"token": "\\xf0\\x9f"}])]


@pytest.mark.parametrize("logprobs", [[object()], ["\ud83d"], (part for part in "ab")])
async def test_log_probabilities_that_json_cannot_hold_raise_in_the_engines_call(
    logprobs: list[object], autojump_clock: MockClock
) -> None:
    output, receive, _ = open_output(9)
    with pytest.raises((TypeError, ValueError)):
        await output.delta("x", logprobs)
    assert written(receive) == []


@pytest.mark.parametrize("first", [-1, 1, 2])
async def test_the_first_segment_is_0(first: int, autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    with pytest.raises(ValueError, match="segment"):
        await output.reasoning("x", first)
    await output.reasoning("x", 0)
    assert written(receive) == [Reasoning("x", 0)]


@pytest.mark.parametrize("wrong", [-1, 0, 3])
async def test_segments_are_consecutive_and_never_go_back(wrong: int, autojump_clock: MockClock) -> None:
    output, _receive, _ = open_output(9)
    await output.reasoning("a", 0)
    await output.reasoning("b", 1)
    with pytest.raises(ValueError, match=f"segment {wrong} cannot follow segment 1"):
        await output.reasoning("c", wrong)
    await output.reasoning("c", 1)
    await output.reasoning("d", 2)


async def test_an_empty_piece_opens_no_segment(autojump_clock: MockClock) -> None:
    output, _receive, _ = open_output(9)
    await output.reasoning("a", 0)
    await output.reasoning("", 1)
    with pytest.raises(ValueError, match="segment 2 cannot follow segment 0"):
        await output.reasoning("c", 2)


async def test_a_segment_is_a_plain_int_in_the_log(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    await output.reasoning("a", False)
    [piece] = written(receive)
    assert isinstance(piece, Reasoning)
    assert type(piece.segment) is int


@pytest.mark.parametrize("text", [5, b"x", None])
async def test_writing_anything_but_text_raises_a_type_error(text: object, autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    for write in (output.delta, output.refusal):
        with pytest.raises(TypeError):
            await write(text)  # type: ignore[arg-type]
    assert written(receive) == []
    async with output.tool_call("call_1", "weather") as call:
        with pytest.raises(TypeError):
            await call.arguments(text)  # type: ignore[arg-type]
    assert written(receive) == [ToolCallStart("call_1", "weather"), ToolCallEnd()]


async def test_writing_after_the_end_raises_whichever_side_closed_first(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    receive.close()
    with pytest.raises(trio.ClosedResourceError):
        await output.delta("x")
    send, _receive = trio.open_memory_channel[Piece](9)
    send.close()
    with pytest.raises(trio.ClosedResourceError):
        await Output(send, Batcher(Timers()), Sink()).reasoning("x", 0)


async def test_a_counted_total_goes_to_the_sink(autojump_clock: MockClock) -> None:
    output, receive, sink = open_output(9)
    output.count_tokens(3)
    output.count_tokens(5)
    assert sink.counted == [3, 5]
    assert written(receive) == []


async def test_queued_time_adds_up_over_all_waits_and_grows_during_one(autojump_clock: MockClock) -> None:
    output, _receive, _ = open_output(9)
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


# Tool calls


async def test_a_tool_call_is_its_start_its_arguments_and_its_end(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    async with output.tool_call("call_1", "weather") as call:
        await call.arguments('{"city":')
        await call.arguments('"Oslo"}')
    async with output.tool_call("call_2", "time"):
        pass
    assert written(receive) == [
        ToolCallStart("call_1", "weather"),
        ToolCallArguments('{"city":'),
        ToolCallArguments('"Oslo"}'),
        ToolCallEnd(),
        ToolCallStart("call_2", "time"),
        ToolCallEnd(),
    ]


async def test_arguments_that_are_not_json_are_passed_on_unchanged(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    async with output.tool_call("call_1", "weather") as call:
        await call.arguments('{"city": Oslo')
    assert written(receive)[1] == ToolCallArguments('{"city": Oslo')


@pytest.mark.parametrize(
    "write",
    [
        lambda output: output.delta("x"),
        lambda output: output.delta(""),
        lambda output: output.reasoning("x", 0),
        lambda output: output.refusal("x"),
        lambda output: output.continued(1),
        lambda output: output.upstream_fields("chunk", {"a": 1}),
        open_call,
    ],
    ids=["delta", "empty delta", "reasoning", "refusal", "continued", "fields", "tool_call"],
)
async def test_while_a_tool_call_is_open_only_its_arguments_can_be_written(
    write: Callable[[Output], Awaitable[None]], autojump_clock: MockClock
) -> None:
    output, receive, _ = open_output(9)
    async with output.tool_call("call_0", "first") as call:
        with pytest.raises(RuntimeError, match="a tool call is open"):
            await write(output)
        await call.arguments("{}")
    assert written(receive) == [ToolCallStart("call_0", "first"), ToolCallArguments("{}"), ToolCallEnd()]
    await write(output)


async def test_a_call_that_an_exception_leaves_is_not_whole(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    with suppress(KeyError):
        async with output.tool_call("call_1", "weather") as call:
            await call.arguments("{")
            raise KeyError
    await output.delta("x")
    assert written(receive) == [ToolCallStart("call_1", "weather"), ToolCallArguments("{"), Text("x")]


async def test_a_call_that_a_cancellation_leaves_is_not_whole(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    with trio.move_on_after(1):
        async with output.tool_call("call_1", "weather") as call:
            await call.arguments("{")
            await trio.sleep_forever()
    await output.delta("x")
    assert written(receive) == [ToolCallStart("call_1", "weather"), ToolCallArguments("{"), Text("x")]


async def test_a_cancellation_while_leaving_does_not_make_a_call_whole(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(1)
    with trio.move_on_after(1) as scope:
        async with output.tool_call("call_1", "weather"):
            pass  # the end waits for room in the buffer
    assert scope.cancelled_caught
    assert written(receive) == [ToolCallStart("call_1", "weather")]
    await output.delta("x")
    assert written(receive) == [Text("x")]


async def test_a_call_that_was_cut_is_not_whole_and_takes_no_more_arguments(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    async with output.tool_call("call_1", "weather") as call:
        await call.arguments("{")
        call.cut()
        with pytest.raises(RuntimeError, match="the tool call has ended"):
            await call.arguments("}")
        with pytest.raises(RuntimeError, match="a tool call is open"):
            await output.delta("x")
    await output.delta("x")
    assert written(receive) == [ToolCallStart("call_1", "weather"), ToolCallArguments("{"), Text("x")]


async def test_arguments_can_be_written_only_inside_the_block(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    call = output.tool_call("call_1", "weather")
    with pytest.raises(RuntimeError):
        await call.arguments("{")
    async with call:
        pass
    with pytest.raises(RuntimeError, match="the tool call has ended"):
        await call.arguments("}")
    async with output.tool_call("call_2", "time"):
        with pytest.raises(RuntimeError):
            await call.arguments("}")
    assert [type(piece) for piece in written(receive)] == [ToolCallStart, ToolCallEnd] * 2


async def test_a_call_whose_start_could_not_be_written_is_not_open(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(1)
    await output.delta("x")
    with trio.move_on_after(1) as scope:
        await open_call(output)
    assert scope.cancelled_caught
    assert written(receive) == [Text("x")]
    await output.delta("y")
    receive.close()
    for _ in range(2):
        with pytest.raises(trio.ClosedResourceError):
            await open_call(output)


async def test_no_other_task_can_write_before_the_end_of_a_call(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(1)
    ended = trio.Event()

    async def call_a_tool() -> None:
        async with output.tool_call("call_0", "first"):
            pass  # the start fills the buffer, so leaving waits for room
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call_a_tool)
        await wait_all_tasks_blocked()
        assert not ended.is_set()
        for write in (lambda: open_call(output), lambda: output.delta("x"), lambda: output.refusal("x")):
            with pytest.raises(RuntimeError, match="a tool call is open"):
                await write()
        assert isinstance(receive.receive_nowait(), ToolCallStart)
        assert isinstance(await receive.receive(), ToolCallEnd)
        await ended.wait()
    await output.delta("x")


async def test_opening_a_call_waits_for_room_and_writes_nothing_else_meanwhile(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(1)
    await output.delta("x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_call, output)
        await wait_all_tasks_blocked()
        with pytest.raises(RuntimeError, match="a tool call is open"):
            await output.delta("y")
        assert receive.receive_nowait() == Text("x")
        await wait_all_tasks_blocked()
        assert receive.receive_nowait() == ToolCallStart("call_1", "weather")
    assert written(receive) == [ToolCallEnd()]


@pytest.mark.parametrize("wrong", [None, 5, b"call_1"])
async def test_the_id_and_the_name_of_a_call_are_text(wrong: object, autojump_clock: MockClock) -> None:
    output, _receive, _ = open_output(9)
    with pytest.raises(TypeError, match="the id of a tool call is a str"):
        output.tool_call(wrong, "weather")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the name of a tool call is a str"):
        output.tool_call("call_1", wrong)  # type: ignore[arg-type]


async def test_the_id_and_the_name_of_a_call_are_neither_empty_nor_too_long(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    for length in (0, 1025):
        with pytest.raises(ValueError, match="the id of a tool call has 1 to 1024 characters"):
            output.tool_call("i" * length, "weather")
    for length in (0, 257):
        with pytest.raises(ValueError, match="the name of a tool call has 1 to 256 characters"):
            output.tool_call("call_1", "n" * length)
    await output.delta("x")  # a refused call is not open
    for call_id, name in (("i", "n"), ("i" * 1024, "n" * 256)):
        async with output.tool_call(call_id, name):
            pass
    assert written(receive)[1::2] == [ToolCallStart("i", "n"), ToolCallStart("i" * 1024, "n" * 256)]


async def test_half_characters_in_an_id_or_a_name_are_replaced(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    async with output.tool_call("a\ud83d", "\ud83d\ude00\ude00"):
        pass
    assert written(receive)[0] == ToolCallStart("a\ufffd", "😀\ufffd")


async def test_without_a_sink_everything_stays_in_the_buffer(autojump_clock: MockClock) -> None:
    """An engine can be tested with a channel alone."""
    send, receive = trio.open_memory_channel[Piece](9)
    output = Output(send)
    await output.delta("a")
    output.count_tokens(1)
    await output.refusal("b")
    assert written(receive) == [Text("a"), Refusal("b")]


class Label(str):
    """A text of a library that has its own class for it."""


async def test_a_text_of_a_subclass_is_written_as_a_plain_text(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(8)
    await output.delta(Label("a"))
    await output.reasoning(Label("b"), 0)
    assert written(receive) == [Text("a"), Reasoning("b", 0)]
    await output.refusal(Label("c"))
    [piece] = written(receive)
    assert isinstance(piece, Refusal)
    assert type(piece.text) is str


async def test_log_probabilities_are_copied(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(8)
    logprobs: list[object] = [{"token": "a"}]
    await output.delta("a", logprobs)
    logprobs[0] = object()
    assert written(receive) == [Text("a", [{"token": "a"}])]


@pytest.mark.parametrize("logprobs", [5, "text", {"a": 1}])
async def test_log_probabilities_that_are_no_list_are_refused(logprobs: object, autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(8)
    with pytest.raises(TypeError, match="log probabilities"):
        await output.delta("a", logprobs)  # type: ignore[arg-type]
    assert not written(receive)


async def test_a_piece_that_gave_way_to_another_tasks_call_is_refused(
    batcher: Batcher, autojump_clock: MockClock
) -> None:
    output, receive, _ = open_output(1000, batcher)

    async def write() -> None:
        with suppress(RuntimeError):
            for _ in range(65):  # the last lets other tasks run first
                await output.delta("t")

    async def call() -> None:
        async with output.tool_call("call_1", "weather") as opened:
            await opened.arguments("{")
            await trio.lowlevel.checkpoint()
            await opened.arguments("}")

    for _ in range(40):  # the scheduler picks at random who comes first
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(call)
        kinds = [type(piece) for piece in written(receive)]
        start, end = kinds.index(ToolCallStart), kinds.index(ToolCallEnd)
        assert set(kinds[start + 1 : end]) == {ToolCallArguments}


async def test_log_probabilities_may_be_a_hundred_levels_deep(autojump_clock: MockClock) -> None:
    """Near Python's recursion limit the output could encode them, and the recorder could not."""
    output, receive, _ = open_output(8)
    logprobs: list[object] = []
    for _ in range(99):
        logprobs = [logprobs]
    await output.delta("a", logprobs)
    assert written(receive) == [Text("a", logprobs)]
    with pytest.raises(ValueError, match="levels deep"):
        await output.delta("a", [logprobs])


async def test_an_output_without_a_sink_takes_the_word_that_a_request_was_accepted(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Piece](1)
    output = Output(send)
    assert not output.client_retries
    output.accepted()
    assert receive.statistics().current_buffer_used == 0


async def test_a_continuation_says_how_long_the_answer_is_so_far(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    with pytest.raises(ValueError, match="0 characters or more, not -1"):
        await output.continued(-1)
    await output.continued(0)
    await output.continued(5)
    assert written(receive) == [Continued(0), Continued(5)]


async def test_fields_of_an_upstream_are_copied_and_bounded(autojump_clock: MockClock) -> None:
    output, receive, _ = open_output(9)
    fields: dict[str, dict[str, list[int]]] = {"a": {"b": [1]}}
    await output.upstream_fields("chunk", fields)
    fields["a"]["b"].append(2)
    await output.upstream_fields("choice", {})
    await output.upstream_fields("delta", {"a": "x" * (MAX_FIELDS_BYTES - len('{"a":""}'))})
    with pytest.raises(ValueError, match="at most 4096 bytes of JSON, not 4097"):
        await output.upstream_fields("delta", {"a": "x" * (MAX_FIELDS_BYTES - len('{"a":""}') + 1)})
    deep: list[object] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(ValueError, match="more than 100 levels deep"):
        await output.upstream_fields("delta", {"a": deep})
    with pytest.raises(TypeError):
        await output.upstream_fields("delta", {"a": object()})
    first, second = written(receive)
    assert first == ServerFields("chunk", {"a": {"b": [1]}})
    assert isinstance(second, ServerFields)
    assert second.at == "delta"


async def _open_a_call(output: Output) -> None:
    async with output.tool_call("call_1", "weather") as call:
        call.cut()


@pytest.mark.parametrize(
    "write",
    [
        lambda output: output.delta("a"),
        lambda output: output.delta("", [1]),
        lambda output: output.reasoning("a", 0),
        lambda output: output.refusal("a"),
        lambda output: output.upstream_fields("chunk", {"a": 1}),
        _open_a_call,
    ],
)
async def test_an_output_knows_whether_anything_has_been_written(
    write: Callable[[Output], Awaitable[None]], autojump_clock: MockClock
) -> None:
    output, _, _ = open_output(8)
    await output.delta("")
    await output.reasoning("", 0)
    output.count_tokens(5)
    assert not output.has_written
    await write(output)
    assert output.has_written


async def test_a_piece_that_waits_for_room_counts_as_written(autojump_clock: MockClock) -> None:
    output, _, _ = open_output(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(output.delta, "a")
        await wait_all_tasks_blocked()
        assert output.has_written
        nursery.cancel_scope.cancel()


def test_another_engine_is_told_to_the_sink() -> None:
    output, _, sink = open_output(8)
    output.engine_changed("second")
    assert sink.engines == ["second"]
    send, _ = trio.open_memory_channel[Piece](1)
    Output(send).engine_changed("second")  # without a sink it does nothing


async def test_a_task_of_the_engine_that_writes_after_the_end_is_refused_with_and_without_a_buffer(
    autojump_clock: MockClock,
) -> None:
    refused: list[str] = []

    async def late(output: Output, name: str) -> None:
        await trio.sleep(1)
        with suppress(trio.ClosedResourceError):
            await output.delta("late")
            return
        refused.append(name)

    async with trio.open_nursery() as nursery:

        async def engine(request: Request, output: Output) -> Finish:
            for _ in range(int(request.input)):
                await output.delta("a")
            nursery.start_soon(late, output, request.input)
            return Finish()

        async with open_pipeline(engine) as pipeline:
            for pieces in (0, 1, 3):  # only the last burst needs the buffer
                await pipeline.start(Request(f"{pieces}"), on_disconnect="continue")
            await trio.sleep(2)
    assert sorted(refused) == ["0", "1", "3"]


async def test_without_a_sink_an_output_needs_its_buffer(autojump_clock: MockClock) -> None:
    with pytest.raises(NotImplementedError):
        await Output(None).delta("a")


async def test_a_piece_is_written_outside_of_the_engines_task(batcher: Batcher, autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Piece](2)
    sink = Sink()
    output = Output(send, batcher, sink)
    sink.records_now = True
    assert output.write_nowait(Reasoning("a", 0))
    assert output.has_written
    assert sink.recorded == [Reasoning("a", 0)]
    sink.records_now = False
    assert not output.write_nowait(Reasoning("b", 2))  # `reasoning` raises for it
    assert output.write_nowait(Reasoning("b", 1))
    assert output.write_nowait(Text("c"))
    assert not output.write_nowait(Text("d"))  # there is no room
    assert [receive.receive_nowait() for _ in range(2)] == [Reasoning("b", 1), Text("c")]
    await output.reasoning("e", 2)
    receive.close()
    with pytest.raises(trio.ClosedResourceError):
        output.write_nowait(Text("f"))


async def test_no_piece_is_written_outside_of_the_engines_task_while_a_call_is_open(
    batcher: Batcher, autojump_clock: MockClock
) -> None:
    send, _receive = trio.open_memory_channel[Piece](9)
    output = Output(send, batcher, Sink())
    async with output.tool_call("call_1", "weather"):
        with pytest.raises(RuntimeError, match="a tool call is open"):
            output.write_nowait(Text("a"))


async def test_a_piece_that_waits_for_room_is_refused_when_the_stream_ends(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[Piece](0)
    output = Output(send, sink=Sink())

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await output.delta("a")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        receive.close()


async def test_pieces_written_outside_of_the_engines_task_let_other_tasks_run(
    batcher: Batcher, autojump_clock: MockClock
) -> None:
    send, _receive = trio.open_memory_channel[Piece](1000)
    output = Output(send, batcher, Sink())
    written = 0
    while output.write_nowait(Text("a")):
        written += 1
    assert 1 <= written <= 64
    await trio.lowlevel.checkpoint()
    assert output.write_nowait(Text("a"))
