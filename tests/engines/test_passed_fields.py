"""Fields of a server's chunks that are not interpreted are passed on, once for each value and within limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from crucible_trio.content import MAX_FIELDS_BYTES, Piece, ServerFields, Text
from crucible_trio.engines.upstream.passed_fields import MAX_STREAM_BYTES, PassedFields
from crucible_trio.engines.upstream.reading import CompletionReader
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.engines.upstream.writing import PieceWriter
from crucible_trio.output import Output
from crucible_trio.records import MAX_DEPTH

OVERHEAD = len('{"a":""}')


def pieces_of(*chunks: dict[str, Any]) -> list[Piece]:
    reader = CompletionReader(ThinkSplitter(), SkippedFields(), 10**6, passed=PassedFields())
    return [piece for chunk in chunks for piece in reader.feed(b"data: %s\n\n" % json.dumps(chunk).encode())]


def fields_of(*chunks: dict[str, Any]) -> list[ServerFields]:
    return [piece for piece in pieces_of(*chunks) if isinstance(piece, ServerFields)]


def chunk(delta: dict[str, Any] | None = None, choice: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": None, **(choice or {})}]
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **fields}


def test_fields_are_passed_on_from_each_place_before_the_text_of_their_chunk() -> None:
    odd = chunk({"content": "a", "x": [1]}, {"stop_reason": 7}, service_tier="flex", citations=["u"])
    assert pieces_of(odd) == [
        ServerFields("delta", {"x": [1]}),
        ServerFields("choice", {"stop_reason": 7}),
        ServerFields("chunk", {"service_tier": "flex", "citations": ["u"]}),
        Text("a"),
    ]


def test_what_is_interpreted_or_made_anew_is_not_passed_on() -> None:
    known = chunk(
        {"role": "assistant", "content": "a", "reasoning": "b", "refusal": None, "name": "n", "function_call": None},
        {"logprobs": None, "text": "", "message": None},
        usage={"prompt_tokens": 1},
        obfuscation="q8f",
        error=None,
    )
    assert fields_of(known) == []


def test_a_trace_in_parts_is_passed_on_too_because_it_may_be_signed() -> None:
    details = [{"type": "reasoning.text", "text": "a", "signature": "s"}]
    for name in ("reasoning_details", "thinking_blocks"):
        assert fields_of(chunk({name: details})) == [ServerFields("delta", {name: details})]


def test_a_field_is_passed_on_again_only_when_its_value_has_changed() -> None:
    values = [1, 1, 2, None, 2, [], {}, "", 0, False, 1]
    passed = [dict(fields.fields)["a"] for fields in fields_of(*(chunk(a=value) for value in values))]
    assert passed == [1, 2, 0, 1]


def test_one_name_in_two_places_is_two_fields() -> None:
    assert fields_of(chunk({"a": 1}, {"a": 1}, a=1)) == [
        ServerFields(at, {"a": 1}) for at in ("delta", "choice", "chunk")
    ]


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "ping", "a": 1},
        {"error": {"message": "no"}, "choices": [], "a": 1},
        {"choices": [{"index": 1, "delta": {"a": 1}, "b": 2}]},
    ],
)
def test_nothing_is_passed_on_from_what_is_no_part_of_the_answer(odd: dict[str, Any]) -> None:
    assert fields_of(odd) == []


def test_fields_that_are_too_long_together_are_passed_on_apart() -> None:
    half = "x" * (MAX_FIELDS_BYTES // 2)
    assert [list(fields.fields) for fields in fields_of(chunk(a=half, b=half, c=1))] == [["a"], ["b", "c"]]


def test_a_field_that_is_too_long_too_deep_or_no_json_is_skipped_and_counted() -> None:
    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    longest = "x" * (MAX_FIELDS_BYTES - OVERHEAD)
    skipped = SkippedFields()
    passed = PassedFields()
    found = passed.changed("choice", {"a": longest, "b": longest + "x", "c": deep, "d": "\ud800", "e": 1}, skipped)
    assert [list(fields.fields) for fields in found] == [["a"], ["e"]]
    assert (skipped.total, skipped.names) == (3, ["choice.b", "choice.c", "choice.d"])
    assert not skipped.may_hold_text


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("place", ["delta", "choice", "chunk"])
async def test_a_field_at_the_limit_of_depth_is_written_and_one_beyond_it_is_skipped(place: str) -> None:
    for depth, is_passed_on in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False)):
        field = {"deep": nested(depth)}
        match place:
            case "delta":
                pieces = pieces_of(chunk({"content": "a"} | field))
            case "choice":
                pieces = pieces_of(chunk({"content": "a"}, field))
            case _:
                pieces = pieces_of(chunk({"content": "a"}, **field))
        send, receive = trio.open_memory_channel[Piece](10)
        async with PieceWriter(Output(send)) as writer:
            await writer.write(pieces)
        assert [receive.receive_nowait() for _ in range(1 + is_passed_on)][-1] == Text("a")
        assert receive.statistics().current_buffer_used == 0


@pytest.mark.parametrize("depth", [900, 990, 1100, 50_000])
@pytest.mark.parametrize("opening", ["[", '{"a\\"[":'])
def test_a_field_that_is_too_deep_to_decode_loses_no_text(depth: int, opening: str) -> None:
    deep = opening * depth + "1" + ("]" if opening == "[" else "}") * depth
    for body in (
        '{"deep": %s, "choices": [{"delta": {"content": "a"}}]}',
        '{"choices": [{"delta": {"deep": %s, "content": "a"}}]}',
        '{"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [%s]}}], "end": {"b": "]"}}',
    ):
        skipped = SkippedFields()
        reader = CompletionReader(None, skipped, 10**6, keeps_logprobs=True, passed=PassedFields())
        pieces = reader.feed(f"data: {body % deep}\n\n".encode())
        assert [piece for piece in pieces if isinstance(piece, Text)] == [Text("a")]
        assert skipped.total >= 1


def test_a_stream_passes_on_64_kib() -> None:
    skipped, passed = SkippedFields(), PassedFields()
    found: list[ServerFields] = []
    for number in range(40):
        found += passed.changed("chunk", {"a": str(number % 10) * (2048 - OVERHEAD)}, skipped)
    assert len(found) == MAX_STREAM_BYTES // 2048
    assert (skipped.total, skipped.names) == (8, ["a"])
