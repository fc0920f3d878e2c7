"""Tool calls of upstream servers: whatever form they come in, they leave in one."""

from __future__ import annotations

import json

import pytest

from crucible_trio.content import Piece, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.call_order import MAX_WAITING_LENGTH
from crucible_trio.engines.upstream.json_end import JsonEnd
from crucible_trio.engines.upstream.reading import CompletionReader
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.errors import EngineError

from .reads import WHOLE_CALL, Parts, read

ARGUMENTS = '{"city": "P}a\\"r{is"}'
HALF, REST = ARGUMENTS[:9], ARGUMENTS[9:]


def event(data: object) -> bytes:
    return b"data: " + (data if isinstance(data, str) else json.dumps(data)).encode() + b"\n\n"


def chunk(finish_reason: object = None, **delta: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def calls(*entries: object) -> bytes:
    return chunk(tool_calls=list(entries))


def entry(index: object = None, call_id: object = None, name: object = None, arguments: object = None) -> object:
    fields: dict[str, object] = {"function": {"name": name, "arguments": arguments}}
    if index is not None:
        fields["index"] = index
    return fields | {"id": call_id, "type": "function"}


def deep_value(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


R = chunk(role="assistant", content=None)
T, S, L, D = chunk("tool_calls"), chunk("stop"), chunk("length"), event("[DONE]")
F: tuple[str, str] = ("call", f"f({ARGUMENTS}{WHOLE_CALL}")
G: tuple[str, str] = ("call", f'g({{"x": 1}}{WHOLE_CALL}')
OTHER = '{"x": 1}'


def pieces_of(body: bytes, *, was_cut: bool = False) -> list[Piece]:
    reader = CompletionReader(ThinkSplitter(), SkippedFields(), 10_000_000)
    return reader.feed(body) + reader.end(was_cut=was_cut)


# Forms


@pytest.mark.parametrize(
    "body",
    [
        calls(entry(0, "c", "f", ""))
        + calls({"index": 0, "function": {"arguments": HALF}})
        + calls(entry(0, None, None, REST)),
        calls(entry(0, "c", "f", HALF)) + calls(entry(0, "c", "f", REST)),
        calls(entry(0, "c", "f", HALF)) + calls(entry(0, "", "", REST)),
        calls(entry(0, "c", "f")) + calls(entry(0, None, "f", HALF)) + calls(entry(0, None, "f", REST)),
        calls(entry("0", "c", "f", HALF)) + calls(entry(0.0, "c", None, REST)),
        calls(entry(0, "c", "f", ARGUMENTS)),
        calls(entry(None, "c", "f", ARGUMENTS)),
        calls(entry(None, "c", "f", HALF)) + calls(entry(None, None, None, REST)),
        calls(entry(None, "c", "f", HALF)) + calls(entry(None, "c", "f", REST)),
        calls(entry(0, "c", None, None)) + calls(entry(0, None, "f", HALF)) + calls(entry(0, None, None, REST)),
        calls(entry(0, "c", None, HALF)) + calls(entry(0, None, "f", REST)),
        calls(entry(0, "c", "f", json.loads(ARGUMENTS))),
        calls(entry(0, "c", "f", ARGUMENTS)) + calls(entry(0, "c", "f", "")) + calls(entry(0, None, "f", None)),
        calls({"id": "c", "name": "f", "arguments": ARGUMENTS}),
        calls(None, {}, [], entry(0, "c", "f", ARGUMENTS), {"index": 0}),
        chunk(tool_calls={"id": "c", "function": {"name": "f", "arguments": ARGUMENTS}}),
        chunk(function_call={"name": "f", "arguments": HALF}) + chunk(function_call={"arguments": REST}),
        event({"choices": [{"message": {"tool_calls": [entry(None, "c", "f", ARGUMENTS)]}}]}),
        event(
            {"choices": [{"delta": {}, "message": {"content": None, "tool_calls": [entry(0, "c", "f", ARGUMENTS)]}}]}
        ),
    ],
)
def test_a_call_is_read_in_every_form(body: bytes) -> None:
    for end in (T + D, S + D, T, S):
        assert read(R + body + end) == ([F], Finish("tool_calls"))
    [first, *_] = pieces_of(R + body + T)
    assert isinstance(first, ToolCallStart)
    assert first.id == "c" or (b"function_call" in body and first.id.startswith("call_"))


def test_id_and_name_come_first_and_each_piece_of_the_arguments_as_it_comes() -> None:
    reader = CompletionReader(None, SkippedFields(), 1000)
    reader.feed(R)
    assert reader.feed(calls(entry(0, "c", "f", ""))) == [ToolCallStart("c", "f")]
    assert reader.feed(calls(entry(0, None, None, HALF))) == [ToolCallArguments(HALF)]
    assert reader.feed(calls(entry(0, None, None, REST))) == [ToolCallArguments(REST)]
    assert reader.feed(T) == []
    assert reader.end(was_cut=False) == [ToolCallEnd()]


@pytest.mark.parametrize(
    "body",
    [
        calls(entry(0, "a", "f", ARGUMENTS), entry(1, "b", "g", OTHER)),
        calls(entry(None, "a", "f", ARGUMENTS), entry(None, "b", "g", OTHER)),
        calls(entry(None, None, "f", ARGUMENTS), entry(None, None, "g", OTHER)),
        calls(entry(0, "a", "f", ARGUMENTS), entry(0, "b", "g", OTHER)),
        calls(entry(0, "a", "f", ARGUMENTS)) + calls(entry(0, "b", "g", OTHER)),
        calls(entry(0, "same", "f", ARGUMENTS)) + calls(entry(1, "same", "g", OTHER)),
        calls(entry(0, None, "f", ARGUMENTS)) + calls(entry(0, None, "g", OTHER)),
        calls(entry(None, None, "f", ARGUMENTS)) + calls(entry(None, None, "g", OTHER)),
        calls(entry(1, "a", "f", HALF)) + calls(entry(1, None, None, REST)) + calls(entry(0, "b", "g", OTHER)),
        # Interleaved.
        calls(entry(0, "a", "f", HALF), entry(1, "b", "g", OTHER), entry(0, None, None, REST)),
        calls(entry(0, "a", "f", ""), entry(1, "b", "g", ""))
        + calls(entry(1, None, None, OTHER), entry(0, None, None, ARGUMENTS)),
        calls(entry(None, "a", "f", HALF)) + calls(entry(None, "b", "g", OTHER)) + calls(entry(None, "a", None, REST)),
        calls(entry(0, "a", "f", HALF))
        + calls(entry(1, "b", "g", "{"))
        + calls(entry(0, None, None, REST))
        + calls(entry(1, None, None, OTHER[1:])),
    ],
)
def test_two_calls_leave_one_after_the_other(body: bytes) -> None:
    for end in (T + D, S):
        assert read(R + body + end) == ([F, G], Finish("tool_calls"))


@pytest.mark.parametrize("index", [0, None])
@pytest.mark.parametrize("call_id", ["call_0", None])
@pytest.mark.parametrize("is_one_list", [True, False])
def test_calls_with_one_index_and_one_id_are_as_many_as_their_names(
    index: object, call_id: object, is_one_list: bool
) -> None:
    def ends_with(*entries: object) -> Parts:
        body = calls(*entries) if is_one_list else b"".join(calls(entry) for entry in entries)
        text, finish = read(R + body + T + D)
        assert finish == Finish("tool_calls")
        return text

    first = entry(index, call_id, "f", ARGUMENTS)
    assert ends_with(first, entry(index, call_id, "g", OTHER)) == [F, G]
    assert ends_with(first, entry(index, call_id, "f", OTHER)) == [F, ("call", f"f({OTHER}{WHOLE_CALL}")]
    assert ends_with(first, entry(index, call_id, "g", None)) == [F, ("call", f"g({{}}{WHOLE_CALL}")]
    assert ends_with(entry(index, call_id, "f", ""), entry(index, call_id, "g", "")) == [
        ("call", f"f({{}}{WHOLE_CALL}"),
        ("call", f"g({{}}{WHOLE_CALL}"),
    ]


def test_a_piece_with_the_id_of_two_calls_belongs_to_the_later_one() -> None:
    body = calls(entry(None, "c", "f", ARGUMENTS)) + calls(entry(None, "c", "g", "{"))
    assert read(R + body + calls(entry(None, "c", None, OTHER[1:])) + T) == ([F, G], Finish("tool_calls"))
    [first, second] = [piece for piece in pieces_of(R + body + T) if isinstance(piece, ToolCallStart)]
    assert first.id == "c"
    assert second.id.startswith("call_")


def test_a_bracket_too_many_in_a_piece_with_the_same_id_is_no_call() -> None:
    body = calls(entry(0, "c", "f", OTHER)) + calls(entry(0, "c", "f", "}"))
    assert read(R + body + T) == ([("call", f"f({OTHER}}}{WHOLE_CALL}")], Finish("tool_calls"))


def test_two_calls_of_one_tool_without_arguments_are_two() -> None:
    body = calls(entry(0, "a", "f", "")) + calls(entry(1, "b", "f", ""))
    for entries in (
        body,
        calls(entry(0, "a", "f", ""), entry(0, "b", "f", "")),
        calls(entry(None, "a", "f"), entry(None, "b", "f")),
    ):
        assert read(R + entries + T) == ([("call", f"f({{}}{WHOLE_CALL}")] * 2, Finish("tool_calls"))


def test_no_arguments_are_an_empty_object() -> None:
    for arguments in ("", None, {}):
        assert read(R + calls(entry(0, "a", "f", arguments)) + T) == (
            [("call", f"f({{}}{WHOLE_CALL}")],
            Finish("tool_calls"),
        )


@pytest.mark.parametrize("arguments", ["", "{}", "nonsense", '{"a": 1}}', "{'a': 1}", "7", '["x"]', '"x"'])
def test_arguments_leave_as_the_model_wrote_them(arguments: str) -> None:
    assert read(R + calls(entry(0, "a", "f", arguments)) + T) == (
        [("call", f"f({arguments or '{}'}{WHOLE_CALL}")],
        Finish("tool_calls"),
    )


@pytest.mark.parametrize("value", [7, 0, 1.5, True, False, {"a": {"b": []}}, ["x"]])
def test_arguments_that_are_a_value_are_its_json_text(value: object) -> None:
    whole: Parts = [("call", f"f({json.dumps(value)}{WHOLE_CALL}")]
    for end in (T, S, L):
        assert read(R + calls(entry(0, "a", "f", value)) + end) == (
            whole,
            Finish("tool_calls" if end != L else "length"),
        )
        body = calls(entry(0, "a", "f", "")) + calls(entry(0, None, None, value)) + calls(entry(0, "a", "f", ""))
        assert read(R + body + end)[0] == whole
    body = calls(entry(0, "a", "f", value)) + calls(entry(0, "a", "g", value)) + chunk(content="x")
    assert read(R + body + T)[0] == [*whole, ("call", f"g({json.dumps(value)}{WHOLE_CALL}"), ("answer", "x")]


@pytest.mark.parametrize(
    "pieces", [['{"n":', 5, "}"], ['{"n":', {"a": 1}, "}"], [5, "}"], [True, False], ["1", 0], [deep_value(150)]]
)
def test_a_call_is_not_whole_if_a_piece_of_its_arguments_cannot_be_text(pieces: list[object]) -> None:
    body = b"".join(
        calls(entry(0, None if number else "a", None if number else "f", piece)) for number, piece in enumerate(pieces)
    )
    text, error = read(R + body + T + D)
    assert WHOLE_CALL not in str(text)
    assert isinstance(error, EngineError)
    assert error.code == "upstream_invalid_response"
    assert "arguments of a tool call that are" in error.message


def test_an_object_that_grows_after_it_seemed_whole_is_one_call() -> None:
    body = calls(entry(0, "a", "f", "{}")) + calls(entry(0, None, None, ARGUMENTS))
    assert read(R + body + T) == ([("call", f"f({{}}{ARGUMENTS}{WHOLE_CALL}")], Finish("tool_calls"))


# Order


def test_text_around_calls_keeps_its_place() -> None:
    body = (
        chunk(reasoning_content="Hm")
        + chunk(content="Look: ", tool_calls=[entry(0, "a", "f", ARGUMENTS)])
        + chunk(reasoning_content="And")
        + calls(entry(1, "b", "g", OTHER))
        + chunk(content="Done.")
    )
    expected: Parts = [("trace", "Hm"), ("answer", "Look: "), F, ("trace", "And"), G, ("answer", "Done.")]
    assert read(R + body + T) == (expected, Finish("tool_calls"))
    segments = [piece.segment for piece in pieces_of(R + body + T) if hasattr(piece, "segment")]
    assert segments == [0, 1]


def test_text_inside_a_call_waits_for_its_end() -> None:
    body = calls(entry(0, "a", "f", HALF)) + chunk(content="x") + calls(entry(1, "b", "g", OTHER)) + chunk(refusal="y")
    assert read(R + body + calls(entry(0, None, None, REST)) + T) == (
        [F, ("answer", "x"), G, ("refusal", "y")],
        Finish("tool_calls"),
    )


def test_a_held_tag_comes_out_before_a_call_and_a_trace_goes_on_after_it() -> None:
    body = chunk(content="<thi") + calls(entry(0, "a", "f", ARGUMENTS))
    assert read(R + body + T)[0] == [("answer", "<thi"), F]
    body = chunk(content="<think>Hm") + calls(entry(0, "a", "f", ARGUMENTS)) + chunk(content="m</think>Blue")
    assert read(R + body + T)[0] == [("trace", "Hm"), F, ("trace", "m"), ("answer", "Blue")]


# Ends


@pytest.mark.parametrize(
    "end", [T + D, S + D, L, L + D, S], ids=["calls", "stop", "length", "length done", "stop only"]
)
def test_arguments_that_are_cut_are_never_called_whole(end: bytes) -> None:
    for arguments in (HALF, '{"a": "x', "[", '"x', '{"a": {}'):
        text, finish = read(R + calls(entry(0, "a", "f", arguments)) + end)
        assert text == [("call", f"f({arguments}")]
        assert finish == Finish("length")


def test_a_limit_may_cut_arguments_where_no_bracket_shows_it() -> None:
    for arguments in ("", "12", " "):
        assert read(R + calls(entry(0, "a", "f", arguments)) + L) == ([("call", f"f({arguments}")], Finish("length"))
    assert read(R + calls(entry(0, "a", "f", ARGUMENTS)) + L) == ([F], Finish("length"))
    body = calls(entry(0, "a", "f", ""), entry(1, "b", "g", OTHER))
    assert read(R + body + L) == ([("call", f"f({{}}{WHOLE_CALL}"), G], Finish("length"))


def test_a_filter_that_cuts_a_call_stays_a_filter() -> None:
    text, finish = read(R + calls(entry(0, "a", "f", HALF)) + chunk("content_filter"))
    assert (text, finish) == ([("call", f"f({HALF}")], Finish("content_filter"))


@pytest.mark.parametrize("was_cut", [False, True])
def test_a_cut_stream_has_no_whole_call_at_its_end_and_loses_nothing(was_cut: bool) -> None:
    body = calls(entry(0, "a", "f", HALF)) + chunk(content="x") + calls(entry(1, "b", "g", OTHER))
    text, error = read(R + body, was_cut=was_cut)
    assert text == [("call", f"f({HALF}"), ("answer", "x"), ("call", f"g({OTHER}")]
    assert isinstance(error, EngineError)
    assert (error.code, error.retryable) == ("upstream_ended_early", True)


def test_a_failure_inside_a_call_fails() -> None:
    text, error = read(R + calls(entry(0, "a", "f", HALF)) + event({"error": {"code": 500}}) + D)
    assert text == [("call", f"f({HALF}")]
    assert isinstance(error, EngineError)
    assert error.code == "upstream_error"


def test_a_finish_before_a_call_is_withdrawn() -> None:
    body = R + chunk(content="a") + S + calls(entry(0, "a", "f", ARGUMENTS))
    assert isinstance(read(body)[1], EngineError)
    assert isinstance(read(body + T)[1], EngineError)  # needs `[DONE]`
    assert read(body + T + D) == ([("answer", "a"), F], Finish("tool_calls"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (calls(entry(0, "a", None, ARGUMENTS)), "without a name"),
        (calls(entry(0, "a", "n" * 257, ARGUMENTS)), "a name of more than 256"),
        (
            calls(entry(0, "a", "f", ARGUMENTS)) + calls(entry(1, "b", "g", OTHER)) + calls(entry(0, None, None, "x")),
            "that has ended",
        ),
        (calls(entry(0, "a", "f", "{")) + calls(entry(1, "b", "g", "x" * MAX_WAITING_LENGTH)), "did not end"),
        (calls(entry(0, "a", "f", "{")) + chunk(content="x" * MAX_WAITING_LENGTH), "did not end"),
        (calls(entry(0, "a", "f", "{"), *[entry(n, None, "g") for n in range(1, 5000)]), "did not end"),
    ],
)
def test_calls_that_cannot_be_put_in_order_fail(body: bytes, words: str) -> None:
    reader = CompletionReader(None, SkippedFields(), 10_000_000)
    reader.feed(R + body + T + D)
    reader.end(was_cut=False)
    with pytest.raises(EngineError, match=words) as caught:
        reader.finish()
    assert (caught.value.code, caught.value.retryable) == ("upstream_invalid_response", False)


def test_white_space_after_the_end_of_a_call_is_harmless() -> None:
    body = calls(entry(0, "a", "f", ARGUMENTS)) + calls(entry(1, "b", "g", OTHER)) + calls(entry(0, None, None, "\n"))
    assert read(R + body + T) == ([F, G], Finish("tool_calls"))


def test_what_has_waited_and_left_no_longer_counts() -> None:
    big = json.dumps({"x": "y" * (MAX_WAITING_LENGTH // 2)})
    rounds = b"".join(
        calls(entry(2 * n, None, "f", "{"), entry(2 * n + 1, None, "g", big)) + calls(entry(2 * n, None, None, "}"))
        for n in range(4)
    )
    reader = CompletionReader(None, SkippedFields(), 10_000_000)
    pieces = reader.feed(R + rounds + T) + reader.end(was_cut=False)
    assert sum(isinstance(piece, ToolCallEnd) for piece in pieces) == 8
    assert reader.finish() == Finish("tool_calls")


@pytest.mark.parametrize("call_id", [None, "", [], "i" * 1025, {"a": 1}])
def test_an_id_that_no_client_could_use_is_replaced(call_id: object) -> None:
    [start, *_] = pieces_of(R + calls(entry(0, call_id, "f", ARGUMENTS)) + T)
    assert isinstance(start, ToolCallStart)
    assert start.id.startswith("call_")
    assert 10 < len(start.id) < 64


def test_a_number_as_id_is_a_text() -> None:
    [start, *_] = pieces_of(R + calls(entry(0, 7, "f", ARGUMENTS)) + T)
    assert start == ToolCallStart("7", "f")


def test_a_stream_with_a_call_skips_nothing() -> None:
    skipped = SkippedFields()
    body = calls(entry(0, "a", "f", HALF)) + calls({"index": 0, "type": None, "function": {"arguments": REST}})
    assert read(R + body + T + D, skipped=skipped)[0] == [F]
    assert (skipped.total, skipped.names) == (0, [])


@pytest.mark.parametrize(
    ("text", "closed", "is_open"),
    [
        ("", False, False),
        (" ", False, False),
        ("{", False, True),
        ("{}", True, False),
        (" [1, {}] ", True, False),
        ('{"a": "}', False, True),
        ('{"a": "\\"}', False, True),
        ('{"a": "\\\\"}', True, False),
        ("}", True, False),
        ("{}{", False, True),
        ('"a', False, True),
        ('"a"', False, False),
        ("12", False, False),
    ],
)
def test_the_end_of_a_json_text_is_found_however_it_is_split(text: str, closed: bool, is_open: bool) -> None:
    for cut in range(len(text) + 1):
        end = JsonEnd()
        end.feed(text[:cut])
        end.feed(text[cut:])
        assert (end.is_closed, end.is_open, end.is_empty) == (closed, is_open, not text.strip())


def test_texts_without_calls_are_as_before() -> None:
    assert pieces_of(R + chunk(content="a") + S) == [Text("a")]
