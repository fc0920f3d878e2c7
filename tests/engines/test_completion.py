from __future__ import annotations

import json

import pytest

from crucible_trio.engines.upstream.completion import UpstreamCompletion, UpstreamPiece, find_error, to_engine_error
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.sse import ServerSentEvent


def chunk(finish_reason: str | None = None, **delta: object) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def feed(completion: UpstreamCompletion, *chunks: str) -> list[UpstreamPiece]:
    return [piece for data in chunks for piece in completion.feed(ServerSentEvent(data=data))]


def run(*chunks: str) -> list[UpstreamPiece]:
    completion = UpstreamCompletion()
    return feed(completion, *chunks) + completion.flush()


def join(pieces: list[UpstreamPiece]) -> list[UpstreamPiece]:
    joined: list[UpstreamPiece] = []
    for segment, text in pieces:
        before = joined.pop()[1] if joined and joined[-1][0] == segment else ""
        joined.append((segment, before + text))
    return joined


def test_pieces_pass_unchanged() -> None:
    assert run(chunk(role="assistant", content=None), chunk(content="Hel"), chunk(content="lo"), chunk("stop")) == [
        (None, "Hel"),
        (None, "lo"),
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_fields_become_the_trace(field: str) -> None:
    pieces = run(chunk(**{field: "Sky "}), chunk(**{field: "first."}), chunk(content="Blue."))
    assert join(pieces) == [(0, "Sky first."), (None, "Blue.")]


def test_a_trace_sent_under_both_names_is_written_once() -> None:
    assert run(chunk(reasoning="Sky", reasoning_content="Sky")) == [(0, "Sky")]


def test_a_trace_inside_the_content_is_separated_however_it_is_split() -> None:
    content = "<think>\nSky first.\n</think>\n\nBlue."
    assert join(run(*(chunk(content=letter) for letter in content))) == [(0, "Sky first.\n"), (None, "Blue.")]


def test_tags_are_text_if_the_server_sends_the_trace_separately() -> None:
    assert run(chunk(reasoning_content="Hm"), chunk(content="<think>")) == [(0, "Hm"), (None, "<think>")]


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
    assert pieces == [(None, "\ud83d"), (None, "\ude00")]


TOO_DEEP = '{"x":' + "[" * 100_000
HALF_AND_TOO_DEEP = '{"x":"\\ud83d","y":' + "[" * 100_000


@pytest.mark.parametrize(
    "data",
    ["{", "[]", '"x"', "null", "", '{"choices":{}}', chunk(content=["x"]), "[" * 10_000, TOO_DEEP, HALF_AND_TOO_DEEP],
)
def test_an_event_that_is_not_a_chunk_is_an_invalid_response(data: str) -> None:
    with pytest.raises(EngineError) as caught:
        run(data)
    assert (caught.value.code, caught.value.retryable) == ("upstream_invalid_response", False)


@pytest.mark.parametrize("data", ["{}", '{"choices":[]}', '{"choices":null,"error":null}', '{"type":"ping"}'])
def test_chunks_without_a_choice_are_ignored(data: str) -> None:
    assert run(data) == []


def test_further_choices_are_ignored() -> None:
    assert run('{"choices":[{"index":1,"delta":{"content":"no"}},{"index":0,"delta":{"content":"yes"}}]}') == [
        (None, "yes")
    ]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos_token", "stop"), ("", None)],
)
def test_an_unknown_finish_reason_counts_as_stop(reason: str, expected: str | None) -> None:
    completion = UpstreamCompletion()
    feed(completion, chunk(reason))
    assert completion.finish_reason == expected


def test_done_without_a_finish_reason_is_not_a_finish() -> None:
    completion = UpstreamCompletion()
    assert feed(completion, "[DONE]") == []
    assert completion.done
    assert completion.finish_reason is None


def test_a_finish_reason_for_a_failure_fails() -> None:
    with pytest.raises(EngineError, match="upstream_error"):
        run(chunk("abort"))


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
    completion = UpstreamCompletion()
    feed(completion, json.dumps({"choices": [], "usage": usage}))
    assert completion.usage == expected


def test_a_null_does_not_erase_usage() -> None:
    completion = UpstreamCompletion()
    feed(completion, '{"usage":{"prompt_tokens":3}}', '{"usage":null}')
    assert completion.usage == Usage(3)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"message": "boom", "code": 500}, "upstream_error", True),
        ("boom", "upstream_error", True),
        ({"code": 400, "message": "too long"}, "upstream_rejected", False),
        ({"code": "context_length_exceeded"}, "upstream_error", True),
        ({"code": 429}, "upstream_refused", True),
    ],
)
def test_an_error_inside_the_stream_fails(error: object, code: str, retryable: bool) -> None:
    with pytest.raises(EngineError) as caught:
        run(json.dumps({"error": error}))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


def test_an_error_event_fails_with_any_data() -> None:
    for data in ("boom", '{"message":"boom"}', "{}"):
        with pytest.raises(EngineError, match="upstream_error"):
            UpstreamCompletion().feed(ServerSentEvent(event="error", data=data))


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (301, "upstream_rejected", False),
        (400, "upstream_rejected", False),
        (401, "upstream_rejected", False),
        (404, "upstream_rejected", False),
        (408, "upstream_error", True),
        (429, "upstream_refused", True),
        (500, "upstream_error", True),
        (502, "upstream_error", True),
        (503, "upstream_refused", True),
    ],
)
def test_each_status_has_its_code(status: int, code: str, retryable: bool) -> None:
    error = to_engine_error(status, None)
    assert (error.code, error.retryable) == (code, retryable)
    assert f"HTTP {status}" in error.message


def test_only_the_identifier_of_an_error_reaches_the_client() -> None:
    body = b'{"error":{"code":"invalid_api_key","type":"x y","message":"Incorrect API key provided: sk-1234"}}'
    assert to_engine_error(401, find_error(body)).message == (
        "The upstream server rejected the request (HTTP 401, invalid_api_key)."
    )
    body = b'{"error":{"code":"sk-1234","type":"the prompt was: hello"}}'
    assert to_engine_error(401, find_error(body)).message == "The upstream server rejected the request (HTTP 401)."


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff", b"[" * 10_000])
def test_an_error_body_need_not_be_json(body: bytes) -> None:
    assert to_engine_error(500, find_error(body)).message == "The upstream server failed (HTTP 500)."
