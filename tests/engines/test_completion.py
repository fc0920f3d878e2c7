from __future__ import annotations

import json

import pytest

from crucible_trio.content import Piece, Reasoning, Refusal, Text
from crucible_trio.engines.upstream.completion import UpstreamCompletion
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.records import Usage
from crucible_trio.sse import ServerSentEvent


def chunk(finish_reason: object = None, **delta: object) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def make(skipped: SkippedFields | None = None) -> UpstreamCompletion:
    return UpstreamCompletion(skipped, ThinkSplitter())


def feed(completion: UpstreamCompletion, *chunks: str) -> list[Piece]:
    return [piece for data in chunks for piece in completion.feed(ServerSentEvent(data=data))]


def run(*chunks: str) -> list[Piece]:
    completion = make()
    pieces = feed(completion, *chunks) + completion.flush()
    assert completion.failure is None
    return pieces


def join(pieces: list[Piece]) -> list[tuple[int | str | None, str]]:
    """Text by segment (of the trace), None (the answer) or "refusal", neighbours joined."""
    joined: list[tuple[int | str | None, str]] = []
    for piece in pieces:
        assert isinstance(piece, Text | Reasoning | Refusal)
        place = piece.segment if isinstance(piece, Reasoning) else "refusal" if isinstance(piece, Refusal) else None
        before = joined.pop()[1] if joined and joined[-1][0] == place else ""
        joined.append((place, before + piece.text))
    return joined


def test_pieces_pass_unchanged() -> None:
    assert run(chunk(role="assistant", content=None), chunk(content="Hel"), chunk(content="lo"), chunk("stop")) == [
        Text("Hel"),
        Text("lo"),
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_fields_become_the_trace(field: str) -> None:
    pieces = run(chunk(**{field: "Sky "}), chunk(**{field: "first."}), chunk(content="Blue."))
    assert join(pieces) == [(0, "Sky first."), (None, "Blue.")]


def test_a_trace_sent_under_both_names_is_written_once() -> None:
    assert run(chunk(reasoning="Sky", reasoning_content="Sky")) == [Reasoning("Sky", 0)]


def test_a_trace_inside_the_content_is_separated_however_it_is_split() -> None:
    content = "<think>\nSky first.\n</think>\n\nBlue."
    assert join(run(*(chunk(content=letter) for letter in content))) == [(0, "Sky first.\n"), (None, "Blue.")]


def test_tags_are_text_if_the_server_sends_the_trace_separately() -> None:
    assert run(chunk(reasoning_content="Hm"), chunk(content="<think>")) == [Reasoning("Hm", 0), Text("<think>")]


def test_a_trace_is_cut_at_its_numbered_steps() -> None:
    pieces = run(*(chunk(reasoning_content=letter) for letter in "1. Look up\n2. Look down"), chunk(content="Blue"))
    assert join(pieces) == [(0, "1. Look up\n"), (1, "2. Look down"), (None, "Blue")]


def test_a_trace_that_resumes_begins_a_new_segment() -> None:
    pieces = run(
        chunk(reasoning="1. a\n2. b"),
        chunk(content="x"),
        chunk(reasoning="c"),
        chunk(content="y"),
        chunk(reasoning="2"),
    )
    assert join(pieces) == [(0, "1. a\n"), (1, "2. b"), (None, "x"), (2, "c"), (None, "y"), (3, "2")]


def test_a_character_split_over_two_chunks_is_kept() -> None:
    pieces = run('{"choices":[{"delta":{"content":"\\ud83d"}}]}', '{"choices":[{"delta":{"content":"\\ude00"}}]}')
    assert pieces == [Text("\ud83d"), Text("\ude00")]


TOO_DEEP = '{"x":' + "[" * 100_000
HALF_AND_TOO_DEEP = '{"x":"\\ud83d","y":' + "[" * 100_000


@pytest.mark.parametrize(
    "data", ["{", '{"choices":[{"delta":{"content":"Bl', "[" * 10_000, TOO_DEEP, HALF_AND_TOO_DEEP]
)
def test_an_event_that_is_not_json_is_an_invalid_response(data: str) -> None:
    completion = make()
    assert feed(completion, chunk(content="a"), data, chunk(content="b"), chunk("stop")) == [Text("a")]
    assert completion.failure is not None
    assert (completion.failure.code, completion.failure.retryable) == ("upstream_invalid_response", False)


@pytest.mark.parametrize("data", ["{}", '{"choices":[]}', '{"choices":null,"error":null}', '{"type":"ping"}'])
def test_chunks_without_a_choice_are_ignored(data: str) -> None:
    assert run(data) == []


def test_further_choices_are_ignored() -> None:
    assert run('{"choices":[{"index":1,"delta":{"content":"no"}},{"index":0,"delta":{"content":"yes"}}]}') == [
        Text("yes")
    ]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("eos_token", "stop"),
        ("", None),
        ("null", None),
        ("None", None),
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("tool_calls", "stop"),
        ("sensitive", "content_filter"),
        (None, None),
        (0, None),
        ({"a": 1}, None),
        (["stop"], None),
    ],
)
def test_each_finish_reason_has_its_meaning(reason: object, expected: str | None) -> None:
    completion = make()
    feed(completion, chunk(reason))
    assert completion.finish_reason == expected


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"choices": [{"stop_reason": "END", "finish_reason": "stop"}]}, "END"),  # vLLM
        ({"choices": [{"stop_reason": 128009, "finish_reason": "stop"}]}, None),
        ({"choices": [{"stop_reason": None, "finish_reason": "stop"}]}, None),
        ({"choices": [{"stop_reason": ["END"], "matched_stop": "\n\n", "finish_reason": "stop"}]}, "\n\n"),  # SGLang
        ({"choices": [{"finish_reason": "stop"}], "stop_type": "word", "stopping_word": "END"}, "END"),
        ({"choices": [{"finish_reason": "stop"}], "__verbose": {"stopping_word": "END"}}, "END"),  # llama.cpp
        ({"choices": [{"finish_reason": "stop"}], "__verbose": {"stop_type": "eos", "stopping_word": ""}}, None),
        ({"choices": [{"finish_reason": "stop"}], "__verbose": "END"}, None),
        ({"choices": [{"stop_reason": "END"}]}, None),  # the model has not ended
    ],
)
def test_the_stop_string_that_a_server_names_is_read(named: dict[str, object], expected: str | None) -> None:
    completion = make()
    feed(completion, chunk(content="Hi"), json.dumps(named))
    assert completion.stop_string == expected
    feed(completion, json.dumps({"choices": [], "usage": {"completion_tokens": 1}}))
    assert completion.stop_string == expected


def test_text_after_a_finish_withdraws_the_stop_string() -> None:
    completion = make()
    feed(completion, json.dumps({"choices": [{"stop_reason": "END", "finish_reason": "stop"}]}), chunk(content="Hi"))
    assert completion.stop_string is None
    feed(completion, chunk("stop"))
    assert completion.stop_string is None


def test_done_without_a_finish_reason_is_not_a_finish() -> None:
    completion = make()
    assert feed(completion, "[DONE]") == []
    assert completion.done
    assert completion.finish_reason is None


def test_a_finish_reason_for_a_failure_fails() -> None:
    completion = make()
    assert feed(completion, chunk("abort", content="Bl")) == [Text("Bl")]
    assert completion.failure is not None
    assert completion.failure.code == "upstream_error"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 9}, Usage(3, 9, None)),
        (
            {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 4}},
            Usage(3, 9, 4),
        ),
        ({"prompt_tokens": 3, "completion_tokens_details": None}, Usage(3, None, None)),
        ({"prompt_tokens": "many"}, Usage()),
        (None, Usage()),
        ([], Usage()),
    ],
)
def test_usage_is_the_servers_and_is_never_guessed(usage: object, expected: Usage) -> None:
    completion = make()
    feed(completion, json.dumps({"choices": [], "usage": usage}))
    assert completion.usage == expected


def test_a_null_does_not_erase_usage() -> None:
    completion = make()
    feed(completion, '{"usage":{"prompt_tokens":3}}', '{"usage":null}')
    assert completion.usage == Usage(3)


def test_an_error_event_fails_with_any_data() -> None:
    for data in ("boom", '{"message":"boom"}', "{}", ""):
        completion = make()
        completion.feed(ServerSentEvent(event="error", data=data))
        assert completion.failure is not None
        assert completion.failure.code == "upstream_error"
