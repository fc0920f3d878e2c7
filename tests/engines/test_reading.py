"""The faults of real servers, each with the right value. Facts: the reports of other projects about their upstreams."""

from __future__ import annotations

import json

import pytest

from crucible_trio.content import Text
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.reading import CompletionReader
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage

from .reads import Parts, read


def event(data: object, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(finish_reason: object = None, **delta: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def choice(**fields: object) -> bytes:
    return event({"choices": [fields]})


R = chunk(role="assistant", content="")
A, B = chunk(content="a"), chunk(content="b")
S = chunk("stop")
D = event("[DONE]")
USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})

STOP = Finish("stop")


@pytest.mark.parametrize(
    ("body", "words", "text"),
    [
        (chunk(content="a") + b"data: " + b"x" * 2000, "too large: more than 1000 characters", [Text("a")]),
        (b"data: " + b"x" * 2000, "too large: more than 1000 characters", []),
        (b'{"choices": "' + b"x" * 2000, "not an event stream", []),
        (b"<html>" + b"x" * 2000, "not an event stream", []),
    ],
)
def test_an_event_that_is_too_large_is_called_so(body: bytes, words: str, text: list[Text]) -> None:
    reader = CompletionReader(None, SkippedFields(), 1000)
    assert reader.feed(body) == text
    assert reader.is_over
    assert reader.end(was_cut=False) == []
    with pytest.raises(EngineError, match=words) as caught:
        reader.finish()
    assert caught.value.code == "upstream_invalid_response"


def answer(text: str) -> Parts:
    return [("answer", text)]


# A finish reason that comes too early


@pytest.mark.parametrize(
    "body",
    [
        chunk("stop", role="assistant", content="") + A + B + S + D,
        chunk("stop", role="assistant", content="") + A + B + D[:0] + S + USAGE + D,
        chunk("stop", role="assistant", content="") + chunk("stop", content="a") + chunk("stop", content="b") + D,
        chunk("null", role="assistant") + chunk("null", content="a") + chunk("null", content="b") + S + D,
        chunk("null", role="assistant") + chunk("null", content="a") + chunk("null", content="b") + S,
        R + chunk("tool_calls") + A + B + S + D,
        R + A + chunk("tool_calls") + B + S + D,
        R + A + S + B + S + D,
        R + A + chunk("stop", content="b") + D,
        R + A + chunk("stop", content="b"),
        R + chunk("stop", content="ab") + D,
        R + A + B + S + S + USAGE + D,
    ],
)
def test_text_after_a_finish_is_not_lost(body: bytes) -> None:
    text, end = read(body, as_promised=False)
    assert text == answer("ab")
    assert isinstance(end, Finish)
    assert end.reason == "stop"


EARLY = chunk("stop", role="assistant", content="")


@pytest.mark.parametrize("was_cut", [False, True])
@pytest.mark.parametrize("as_promised", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        EARLY,
        EARLY + A,
        EARLY + A + B,
        EARLY + A + S,
        EARLY + chunk("stop", content="a") + chunk("stop", content="b"),
        chunk("stop", content="a") + chunk("stop", content="b"),
        chunk("null", content="a"),
        R + chunk("tool_calls") + A,
        R + chunk("tool_calls"),
        R + A + chunk("tool_calls"),
        R + A + S + B,
        R + A + S + chunk(reasoning_content="b"),
        R + A + S + chunk(refusal="b"),
        R + A + S + chunk(tool_calls=[{"index": 0, "function": {"name": "f"}}]),
        R + A,
        R + A + D,
        R,
        D,
    ],
)
def test_a_cut_after_an_early_finish_is_an_early_end(body: bytes, was_cut: bool, as_promised: bool) -> None:
    _, end = read(body, was_cut=was_cut, as_promised=as_promised and not was_cut)
    assert isinstance(end, EngineError)
    assert (end.code, end.retryable) == ("upstream_ended_early", True)


def test_a_finish_with_the_first_text_needs_an_end_as_promised_or_done() -> None:
    body = R + chunk("stop", content="Blue")
    assert read(body, as_promised=True) == (answer("Blue"), STOP)
    assert read(body + D, was_cut=True) == (answer("Blue"), STOP)
    for was_cut in (False, True):
        assert isinstance(read(body, was_cut=was_cut)[1], EngineError)


def test_an_empty_answer_needs_done() -> None:
    assert read(R + S + D) == ([], STOP)
    assert isinstance(read(R + S, as_promised=True)[1], EngineError)


def test_a_final_finish_needs_nothing_more() -> None:
    for was_cut in (False, True):
        assert read(R + A + S, was_cut=was_cut) == (answer("a"), STOP)
        assert read(R + chunk(reasoning_content="a") + S, was_cut=was_cut) == ([("trace", "a")], STOP)
        assert read(R + chunk(refusal="a") + S, was_cut=was_cut) == ([("refusal", "a")], STOP)


def test_a_repeated_stop_does_not_hide_that_the_text_was_cut() -> None:
    assert read(R + A + chunk("length") + S + D) == (answer("a"), Finish("length"))
    assert read(R + A + chunk("length") + B + S + D) == (answer("ab"), STOP)


@pytest.mark.parametrize(
    "body",
    [
        event({"choices": [{"index": 0, "delta": {"content": "a", "finish_reason": "stop"}}]}),
        event({"choices": [{"index": 0, "delta": {"content": "a"}}], "finish_reason": "stop"}),
        choice(message={"content": "a"}, finish_reason="stop"),
        choice(delta={}, message={"content": "a", "finish_reason": "stop"}),
    ],
)
def test_a_finish_reason_is_found_wherever_it_is(body: bytes) -> None:
    assert read(body + D) == (answer("a"), STOP)


# Other types and places


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}])
            + chunk(content=[{"type": "text", "text": "Blue"}]),
            [("trace", "Hm"), ("answer", "Blue")],
        ),
        (
            chunk(content=[{"type": "thinking", "thinking": "Hm", "closed": True}, "Blue"]),
            [("trace", "Hm"), *answer("Blue")],
        ),
        (chunk(content=[{"type": "reasoning", "text": "Hm"}]), [("trace", "Hm")]),
        (chunk(content=[{"thinking": "Hm"}, {"refusal": "no"}]), [("trace", "Hm"), ("refusal", "no")]),
        (chunk(reasoning=[{"type": "refusal", "text": "H"}, {"refusal": "m"}]), [("trace", "Hm")]),
        (chunk(content=[{"type": "text", "text": "Bl"}, {"type": "reference", "ids": [1]}, "ue"]), answer("Blue")),
        (chunk(content={"type": "text", "text": "Blue"}), answer("Blue")),
        (chunk(content=[{"type": "text", "text": {"value": "Blue"}}]), answer("Blue")),
        (chunk(reasoning={"content": "Hm"}) + A, [("trace", "Hm"), ("answer", "a")]),
        (chunk(reasoning={}, content="Blue"), answer("Blue")),
        (chunk(reasoning=[], reasoning_content="Hm"), [("trace", "Hm")]),
        (chunk(reasoning={"x": 1}, reasoning_content="Hm"), [("trace", "Hm")]),
        (chunk(reasoning_content={"x": 1}, reasoning="Hm"), [("trace", "Hm")]),
        (chunk(reasoning_details=[{"type": "reasoning.text", "text": "Hm"}]), [("trace", "Hm")]),
        (
            chunk(reasoning="Hm", reasoning_details=[{"type": "reasoning.text", "text": "Hm"}]),
            [("trace", "Hm")],
        ),
        (choice(index=None, delta={"content": "Blue"}), answer("Blue")),
        (choice(index="0", delta={"content": "Blue"}), answer("Blue")),
        (choice(index={}, delta={"content": "Blue"}), answer("Blue")),
        (choice(index=True, delta={"content": "Blue"}), answer("Blue")),
        (choice(index="1", delta={"content": "no"}) + A, answer("a")),
        (choice(index=1, delta={"content": "no"}) + A, answer("a")),
        (event({"choices": [None]}) + A, answer("a")),
        (event({"choices": [7, {"delta": {"content": "a"}}]}), answer("a")),
        (event({"choices": {"delta": {"content": "a"}}}), answer("a")),
        (event({"choices": "x"}) + A, answer("a")),
        (choice(delta=[]) + A, answer("a")),
        (choice(delta=[7]) + A, answer("a")),
        (choice(delta="Blue"), answer("Blue")),
        (chunk(content=7) + A, answer("a")),
        (chunk(role={}, content="Blue"), answer("Blue")),
        (chunk([], content="Blue"), answer("Blue")),
        (event({"id": 7, "created": "x", "choices": [{"delta": {"content": "Blue"}}], "usage": 7}), answer("Blue")),
        (event('{"choices":[{"delta":{"content":"a\tb"},"logprobs":{"x":[NaN,-Infinity]}}]}'), answer("a\tb")),
        (choice(message={"role": "assistant", "content": "Blue"}), answer("Blue")),
        (choice(message="Blue"), answer("Blue")),
        (
            choice(delta=None, message={"reasoning_content": "Hm", "content": "Blue"}),
            [("trace", "Hm"), *answer("Blue")],
        ),
        (choice(delta={}, message={"content": "Blue"}), answer("Blue")),
        (choice(text="Blue"), answer("Blue")),
        (choice(text="Bl", delta={}) + choice(text="ue"), answer("Blue")),
        # Perplexity: the message is the text so far.
        (
            choice(delta={"content": "Bl"}, message={"content": "Bl"})
            + choice(delta={"content": "ue"}, message={"content": "Blue"})
            + choice(delta={"content": ""}, message={"content": "Blue"}),
            answer("Blue"),
        ),
        (choice(delta={"content": "Blue"}, text="Blue"), answer("Blue")),
        (chunk(refusal="I cannot"), [("refusal", "I cannot")]),
        (chunk(content="<thi", refusal="no"), [*answer("<thi"), ("refusal", "no")]),
        (chunk(content=[{"type": "refusal", "refusal": "no"}]), [("refusal", "no")]),
        (choice(message={"refusal": "no", "content": None}), [("refusal", "no")]),
    ],
)
def test_text_is_found_in_every_form(body: bytes, text: Parts) -> None:
    for framing in (R + body + S + D, R + body + S):
        assert read(framing) == (text, STOP)


def nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_deeply_nested_parts_are_skipped() -> None:
    assert read(R + chunk(content=nested(3)) + A + S) == (answer("xa"), STOP)
    assert read(R + chunk(content=nested(300)) + A + S) == (answer("a"), STOP)


@pytest.mark.parametrize(
    "body",
    [
        chunk(output="Blue"),
        chunk(content=[{"type": "new", "new": "Blue"}]),
        chunk(content=7),
        chunk(tool_calls=[{"type": "custom", "custom": {"name": "f"}}]),
        chunk(tool_calls=[{"function": {"arguments": 7}}]),
        chunk(function_call=["f"]),
        event({"choices": "Blue"}),
        event({"choices": ["Blue"]}),
        choice(delta=[{"content": "Blue"}]),
        event({"type": "content_block_delta", "delta": {"text": "Blue"}}),
    ],
)
def test_an_empty_success_with_something_skipped_is_a_lost_text(body: bytes) -> None:
    text, end = read(R + body + S + D)
    assert text == []
    assert isinstance(end, EngineError)
    assert (end.code, end.retryable) == ("upstream_invalid_response", False)


def test_an_empty_answer_without_anything_skipped_is_whole() -> None:
    assert read(R + choice(index=[1], delta=None) + chunk(role=7, annotations=[]) + S + D) == ([], STOP)


@pytest.mark.parametrize(
    "body",
    [
        event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}),
        event({"choices": None, "usage": {"prompt_tokens": "3", "completion_tokens": 9.0}}),
        event({"choices": [], "usage": {"input_tokens": 3, "output_tokens": 9}}),
        choice(delta={}, usage={"prompt_tokens": 3, "completion_tokens": 9}),
        choice(delta={"usage": {"prompt_tokens": 3, "completion_tokens": 9}}),
        event({"choices": [], "x_groq": {"usage": {"prompt_tokens": 3, "completion_tokens": 9}}}),
        event({"choices": [], "usage": {"prompt_tokens": 3}}) + event({"usage": {"completion_tokens": 9}}),
        event({"usage": {"prompt_tokens": 3, "completion_tokens": 8}}) + event({"usage": {"completion_tokens": 9}}),
        event({"usage": {"prompt_tokens": 3, "completion_tokens": 9}}) + event({"usage": {}}) + event({"usage": "x"}),
        event({"usage": {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": [7]}}),
        event({"usage": {"prompt_tokens": 3, "completion_tokens": 9}})
        + event({"usage": {"prompt_tokens": -1, "completion_tokens": True}}),
    ],
)
def test_usage_is_found_wherever_it_is(body: bytes) -> None:
    for framing in (R + A + body + S, R + A + S + body + D, body + A + S):
        assert read(framing) == (answer("a"), Finish("stop", Usage(3, 9)))


@pytest.mark.parametrize(
    "usage",
    [
        {"completion_tokens_details": {"reasoning_tokens": 4}},
        {"output_tokens_details": {"reasoning_tokens": "4"}},
        {"reasoning_tokens": 4},
    ],
)
def test_reasoning_tokens_are_found_wherever_they_are(usage: dict[str, object]) -> None:
    assert read(A + S + event({"usage": usage})) == (answer("a"), Finish("stop", Usage(None, None, 4)))


# Events that are not chunks


@pytest.mark.parametrize(
    "noise",
    [
        b"data:\n\n",
        b"data: \n\n",
        b"data\n\n",
        b"\n\n\n",
        b": ping\n\n",
        b"event: ping\ndata:\n\n",
        b"event: ping\n\n",
        event("", "ping"),
        event("ping", "ping"),
        event("{torn", "ping"),
        event({"type": "ping"}, "ping"),
        event({"type": "ping"}),
        event("ping"),
        event(": OPENROUTER PROCESSING"),
        event("null"),
        event("[]"),
        event("7"),
        event('"x"'),
        event("{}"),
        b"id: 7\nretry: 5\nx: y\ndata:\n\n",
    ],
)
def test_events_that_say_nothing_are_skipped(noise: bytes) -> None:
    body = noise.join([b"", R, A, noise, B, S, b""])
    for framing in (body, body + D, body + D + noise):
        assert read(framing) == (answer("ab"), STOP)


@pytest.mark.parametrize(
    "behind",
    [
        event("{torn"),
        event("boom!"),
        event({"error": {"code": 500, "message": "boom"}}),
        event("boom", "error"),
        event({"object": "error", "code": 400, "message": "x"}),
        chunk("error"),
        chunk("abort"),
        event({"choices": [{"delta": {}, "error": {"code": 500}}]}),
        b"data: " + b"x" * 200_000,
        b"data: " + b"x" * 200_000 + b"\n\n",
    ],
)
def test_nothing_after_a_final_finish_fails_a_whole_answer(behind: bytes) -> None:
    for whole in (R + A + S, R + A + S + D):
        assert read(whole + behind) == (answer("a"), STOP)
        assert read(whole + behind, cuts=[len(whole)]) == (answer("a"), STOP)
        assert read(whole + behind, cuts=[len(whole) + 1, len(whole) + 100, len(whole + behind) - 1])[1] == STOP


def test_anything_after_done_is_skipped() -> None:
    for behind in (A, S, D, chunk("error"), event("{torn"), event("boom", "error")):
        assert read(R + A + S + D + behind) == (answer("a"), STOP)


def test_an_error_between_a_finish_and_more_text_fails() -> None:
    text, end = read(R + A + S + event({"error": {"code": 429}}) + B + S + D)
    assert text == answer("ab")
    assert isinstance(end, EngineError)
    assert end.code == "upstream_refused"


@pytest.mark.parametrize("early", [b"", EARLY, chunk("stop", content="a")])
def test_an_error_after_an_early_finish_fails(early: bytes) -> None:
    _, end = read(early + event({"error": {"code": 429}}) + D, as_promised=True)
    assert isinstance(end, EngineError)
    assert end.code == "upstream_refused"


@pytest.mark.parametrize(
    ("data", "code", "retryable"),
    [
        ({"object": "error", "message": "too long", "code": 400}, "upstream_rejected", False),
        ({"choices": None, "error_type": "rate_limit_error", "error_message": "x"}, "upstream_refused", True),
        ({"choices": None, "error_type": "x", "error_message": "x"}, "upstream_error", True),
        ({"error": {"code": "429", "message": "x"}}, "upstream_refused", True),
        ({"error": {"code": "400", "message": "x"}}, "upstream_rejected", False),
        ({"choices": [{"delta": {}, "finish_reason": "error", "error": {"code": 400}}]}, "upstream_rejected", False),
        ({"choices": [{"delta": {}, "finish_reason": "error"}]}, "upstream_error", True),
        ({"detail": "boom"}, "upstream_error", True),
    ],
)
def test_an_error_is_found_wherever_it_is(data: dict[str, object], code: str, retryable: bool) -> None:
    for body in (event(data), event(data) + D, R + A + event(data) + D, R + A + event(data) + B + S + D):
        text, end = read(body, as_promised=True)
        assert isinstance(end, EngineError)
        assert (end.code, end.retryable) == (code, retryable)
        assert text == ([] if body.startswith(event(data)) else answer("a"))


def test_text_beside_an_error_is_kept() -> None:
    text, end = read(event({"choices": [{"delta": {"content": "a"}}], "error": {"code": 500}}))
    assert text == answer("a")
    assert isinstance(end, EngineError)
    assert read(chunk("abort", content="a"))[0] == answer("a")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"message":"x","code":429}}', "upstream_refused"),
        (b'{\n "error": "x"\n}\n', "upstream_error"),
        (b'{"detail":"x"}', "upstream_error"),
        (b'{"choices":[{"message":{"content":"Blue"}}]}', "upstream_invalid_response"),
        (b"<html>\n</html>", "upstream_invalid_response"),
        (b"", "upstream_ended_early"),
        (b": ping\n\n: ping\n\n", "upstream_ended_early"),
        (b"data: {", "upstream_ended_early"),
        (b"dat", "upstream_ended_early"),
        (b"\xef\xbb", "upstream_ended_early"),
        (b"\xef\xbb\xbfdata: {", "upstream_ended_early"),
        (event({"type": "message_start"}) + event({"type": "message_stop"}), "upstream_invalid_response"),
        (event({"type": "ping"}, "ping") + D, "upstream_invalid_response"),
    ],
)
def test_a_body_without_chunks_has_the_code_of_its_fault(body: bytes, code: str) -> None:
    _, end = read(body, as_promised=True)
    assert isinstance(end, EngineError)
    assert end.code == code


# The end of the body


def test_an_event_without_its_blank_line_counts_if_it_is_whole() -> None:
    for tail in (b"", b"\n", b"\r"):
        assert read(R + A + S.rstrip() + tail) == (answer("a"), STOP)
        assert read(EARLY + A + S + D.rstrip() + tail) == (answer("a"), STOP)
        text, end = read(R + A + B.rstrip() + tail)
        assert text == answer("ab")
        assert isinstance(end, EngineError)
    text, end = read(R + A + b"event: error\ndata: boom")
    assert isinstance(end, EngineError)
    assert end.code == "upstream_error"


def test_text_held_back_comes_out_at_the_end() -> None:
    assert read(R + chunk(content="<thi") + S) == (answer("<thi"), STOP)
    assert read(R + chunk(content="<think>2"))[0] == [("trace", "2")]


# Skipped values


def test_what_was_skipped_is_counted_and_named_without_its_content() -> None:
    skipped = SkippedFields()
    body = (
        chunk(content=7, secret="s1", odd=["s2"], role={"x": "s3"})
        + chunk(tool_calls=["s4"], annotations=[], refusal=[{"type": "s5", "s6": "s7"}])
        + choice(index="s8", delta=["s9"], finish_reason=["s10"])
        + event("s11", "ping")
        + event(["s12"])
        + event({"choices": [], "usage": "s13"})
    )
    assert read(R + body + A + S + D + event("behind"), skipped=skipped) == (answer("a"), STOP)
    assert skipped.names == [
        "delta.content",
        "delta.secret",
        "delta.odd",
        "delta.refusal",
        "delta.tool_calls",
        "choices.index",
        "delta",
        "finish_reason",
    ]
    assert skipped.total == 12


def test_an_ordinary_stream_skips_nothing() -> None:
    skipped = SkippedFields()
    body = chunk(role="assistant", content=None, refusal=None, annotations=[], tool_calls=None, audio=None)
    assert read(body + A + b": ping\n\ndata:\n\n" + S + USAGE + D, skipped=skipped)[0] == answer("a")
    assert (skipped.total, skipped.names) == (0, [])


def test_names_are_escaped_and_limited() -> None:
    skipped = SkippedFields()
    name = "\x1b[31m\n\r é\u2028" + "x" * 1000
    read(chunk(**{name: "secret"}) * 2 + A, skipped=skipped)
    (shown,) = skipped.names
    assert shown.startswith("delta.\\x1b[31m\\n\\r \\xe9\\u2028xxx")
    assert len(shown) == 64
    for number in range(20):
        read(chunk(**{f"field{number}": 1}) + A, skipped=skipped)
    assert len(skipped.names) == 8
    assert skipped.total == 22


def test_after_too_long_an_event_nothing_more_is_read() -> None:
    for body in (R + A, R + A + S):
        reader = CompletionReader(None, SkippedFields(), 1000)
        reader.feed(body + b"data: " + b"x" * 990)
        assert not reader.is_over
        reader.feed(b"x" * 20)
        assert reader.is_over


# Log probabilities


def logprobs_of(body: bytes, *, keeps: bool = True, skipped: SkippedFields | None = None) -> list[tuple[str, object]]:
    """The pieces of the answer with their log probabilities."""
    reader = CompletionReader(ThinkSplitter(), skipped or SkippedFields(), 10_000, keeps_logprobs=keeps)
    pieces = reader.feed(body) + reader.end(was_cut=False)
    return [(piece.text, piece.logprobs) for piece in pieces if isinstance(piece, Text)]


def likely(text: str, *entries: object, field: str = "content") -> bytes:
    return choice(delta={field: text}, logprobs={"content": list(entries)})


def test_log_probabilities_come_with_the_answer_if_they_are_asked_for() -> None:
    body = R + likely("Bl", {"token": "Bl", "logprob": -0.5}) + likely("ue", {"token": "ue"}) + S
    assert logprobs_of(body) == [("Bl", [{"token": "Bl", "logprob": -0.5}]), ("ue", [{"token": "ue"}])]
    assert logprobs_of(body, keeps=False) == [("Bl", None), ("ue", None)]
    assert logprobs_of(R + A + choice(delta={"content": "b"}, logprobs=None) + S) == [("a", None), ("b", None)]


def test_log_probabilities_wait_with_text_that_is_held_back_and_those_of_the_trace_are_dropped() -> None:
    assert logprobs_of(R + likely("<th", 1) + likely("x", 2) + S) == [("<thx", [1, 2])]
    assert logprobs_of(R + likely("Hm", 1, field="reasoning_content") + likely("a", 2) + S) == [("a", [2])]
    assert logprobs_of(R + likely("<think>Hm", 1) + likely("</think>a", 2) + S) == [("a", [2])]


def test_log_probabilities_that_our_json_cannot_hold_are_skipped() -> None:
    half = b'data: {"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"\\ud83d"}]}}]}\n\n'
    for body in (half, likely("a", nested(200))):
        skipped = SkippedFields()
        assert logprobs_of(R + body + S, skipped=skipped) == [("a", None)]
        assert skipped.names == ["choices.logprobs"]
