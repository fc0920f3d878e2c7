"""The pieces of an upstream's completion reach the output, and a call is whole only with its end."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from crucible_trio import Finish, Output, Request, open_pipeline
from crucible_trio.content import (
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.engines.upstream.writing import PieceWriter
from crucible_trio.errors import EngineError
from crucible_trio.records import ToolCallDelta

START, HALF, END = ToolCallStart("c", "f"), ToolCallArguments("{"), ToolCallEnd()


async def written(pieces: list[Piece]) -> list[Piece]:
    """The pieces in the buffer after the writer has written these."""
    send, receive = trio.open_memory_channel[Piece](math.inf)
    async with PieceWriter(Output(send)) as writer:
        await writer.write(pieces)
    return [receive.receive_nowait() for _ in range(receive.statistics().current_buffer_used)]


@pytest.mark.parametrize(
    "pieces",
    [
        [Reasoning("a", 0), Text("b"), Text("c", [{"token": "c"}]), Refusal("d")],
        [START, HALF, ToolCallArguments("}"), END, Text("a"), ToolCallStart("d", "g"), END],
        [START, HALF, Text("a")],
        [START, HALF, ToolCallStart("d", "g"), HALF, END],
        [START, HALF, Reasoning("a", 0)],
        [START],
    ],
)
async def test_pieces_are_written_as_they_are(pieces: list[Piece]) -> None:
    assert await written(pieces) == pieces


FIRST, SECOND = ServerFields("chunk", {"a": 1}), ServerFields("delta", {"b": 2})


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([FIRST, Text("a"), SECOND], [FIRST, Text("a"), SECOND]),
        ([START, FIRST, HALF, SECOND, END, Text("a")], [START, HALF, END, FIRST, SECOND, Text("a")]),
        ([START, HALF, FIRST, Text("a")], [START, HALF, FIRST, Text("a")]),
        ([START, FIRST, END], [START, END, FIRST]),
        ([START, HALF, FIRST], [START, HALF, FIRST]),
    ],
)
async def test_fields_never_stand_inside_a_call(pieces: list[Piece], expected: list[Piece]) -> None:
    assert await written(pieces) == expected


@pytest.mark.parametrize(
    ("before", "expected"), [([FIRST], []), ([Text("a"), FIRST], [Text("a"), FIRST]), ([START, FIRST], [START, FIRST])]
)
async def test_fields_are_not_the_first_output_of_a_stream_that_fails(
    before: list[Piece], expected: list[Piece]
) -> None:
    send, receive = trio.open_memory_channel[Piece](math.inf)
    output = Output(send)

    async def fail() -> None:
        async with PieceWriter(output) as writer:
            await writer.write(before)
            raise EngineError("upstream_ended_early", "lost")

    with pytest.raises(EngineError):
        await fail()
    assert output.has_written == bool(expected)
    assert [receive.receive_nowait() for _ in range(receive.statistics().current_buffer_used)] == expected


@pytest.mark.parametrize("how", ["cancel", "idle deadline", "failure"])
async def test_a_call_in_which_the_stream_ends_is_not_whole(how: str, autojump_clock: MockClock) -> None:
    async def engine(request: Request, output: Output) -> Finish:
        async with PieceWriter(output) as writer:
            await writer.write([Text("a"), START, HALF])
            if how == "failure":
                raise ValueError
            await trio.sleep_forever()
        raise AssertionError

    async with open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("x"))
        async with stream.attach() as reader:
            async for record in reader:
                if isinstance(record, ToolCallDelta) and how == "cancel":
                    stream.cancel("client")
        snapshot = stream.snapshot()
    assert snapshot.status == {"cancel": "cancelled", "idle deadline": "incomplete", "failure": "failed"}[how]
    assert [(call.id, call.arguments, call.complete) for call in snapshot.tool_calls] == [("c", "{", False)]
