"""Chunks that differ from an earlier one in their text only are read as if they were read whole."""

from __future__ import annotations

import json
from random import Random

import pytest

from crucible_trio.content import Text
from crucible_trio.engines.upstream import same_form
from crucible_trio.engines.upstream.completion import UpstreamCompletion
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.same_form import SameForm
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.sse import ServerSentEvent

WORDS = [
    "Blue",
    " sky",
    '"',
    "\\",
    "\n",
    'a","content":"b',
    "é",
    "🍵",
    "\u2028",
    "<think>",
    "</think>",
    "1. Look\n",
    "",
]


# More fields of the choice, and of the delta.
FORMS: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {}),
    ({"logprobs": None}, {}),
    ({"finish_reason": None}, {"role": "assistant"}),
    ({"finish_reason": "stop"}, {}),
    ({"logprobs": {"content": [{"token": "a"}]}}, {}),
    ({"usage": {"prompt_tokens": 3}}, {}),
    ({"error": "overloaded"}, {}),
    ({"tier": "flex"}, {}),
    ({"stop_reason": "x"}, {}),
    ({}, {"audio": "x"}),
    ({}, {"reasoning": "Why?"}),
    ({}, {"refusal": "No."}),
]


def chunk(
    text: str, choice: dict[str, object] | None = None, delta: dict[str, object] | None = None, field: str = "content"
) -> str:
    return json.dumps({"id": "c", "choices": [{"index": 0, "delta": {field: text, **(delta or {})}, **(choice or {})}]})


def test_only_the_text_is_decoded_of_a_chunk_of_the_same_form() -> None:
    form = SameForm()
    assert form.text_of(chunk("Blue")) == ""  # nothing is known
    form.learn(chunk("Blue"), "content", "Blue")
    for text in WORDS:
        assert form.text_of(chunk(text)) == text
        assert form.text_of(json.dumps(json.loads(chunk(text)), ensure_ascii=False)) == text
    assert form.kind == "content"


@pytest.mark.parametrize(
    "other",
    [
        chunk("Blue", field="reasoning"),
        chunk("Blue", {"finish_reason": "stop"}),
        chunk("Blue").replace('"c"', '"d"'),
        chunk("Blue").replace("Blue", 'Blue"}, "x": {"y": "'),  # quotes that are not escaped
        chunk("Blue").replace("Blue", "\\ud83c"),  # half of a character
        chunk("Blue").replace('"Blue"', "null"),
        chunk("Blue").replace('"Blue"', ""),
        chunk("Blue")[:-1],
        "",
    ],
)
def test_a_chunk_of_another_form_has_no_known_text(other: str) -> None:
    form = SameForm()
    form.learn(chunk("Green"), "content", "Green")
    assert form.text_of(other) == ""


@pytest.mark.parametrize("data", [chunk("Blue", {"text": "Blue"}), chunk("Blue", delta={"reasoning": "Blue"})])
def test_a_text_that_stands_in_two_places_has_no_form(data: str) -> None:
    form = SameForm()
    form.learn(data, "content", json.loads(data)["choices"][0]["delta"]["content"])
    assert form.text_of(data) == ""


def test_a_text_inside_a_list_is_not_taken_for_another_field_with_the_same_text() -> None:
    completion = UpstreamCompletion(passed=PassedFields())
    for model in ("m", "n"):
        data = json.dumps({"model": model, "choices": [{"delta": {"content": ["m"]}}]})
        assert completion.feed(ServerSentEvent(data=data)) == [Text("m")]


def test_a_long_chunk_is_not_searched_for_its_text() -> None:
    form = SameForm()
    data = chunk("a" * same_form._MAX_LENGTH)
    form.learn(data, "content", "a" * same_form._MAX_LENGTH)
    assert form.text_of(data) == ""


def test_chunks_without_a_form_are_not_searched_forever() -> None:
    form = SameForm()
    for _ in range(same_form._MAX_USELESS):
        form.learn(chunk("Why?", delta={"reasoning": "Why?"}), "trace", "Why?")
    form.learn(chunk("Blue"), "content", "Blue")
    assert form.text_of(chunk("Green")) == ""


def test_a_form_that_was_useful_makes_up_for_useless_ones() -> None:
    form = SameForm()
    for number in range(3 * same_form._MAX_USELESS):  # `created` that changes every second
        form.learn(chunk("Blue", {"n": number}), "content", "Blue")
        if number % 2:
            assert form.text_of(chunk("Green", {"n": number})) == "Green"
        form.forget()
    form.learn(chunk("Blue"), "content", "Blue")
    assert form.text_of(chunk("Green")) == "Green"


def test_forms_that_no_chunk_repeats_are_not_learnt_forever() -> None:
    form = SameForm()
    for number in range(same_form._MAX_USELESS):
        form.learn(chunk("Blue", {"n": number}), "content", "Blue")
        assert form.text_of(chunk("Blue", {"n": number + 1})) == ""
        form.forget()
    form.learn(chunk("Blue"), "content", "Blue")
    assert form.text_of(chunk("Green")) == ""


@pytest.mark.parametrize("seed", range(300))
def test_every_stream_is_read_as_if_each_chunk_were_read_whole(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    events: list[ServerSentEvent] = []
    forms = [random.choice(FORMS) for _ in range(random.randrange(1, 5))]
    for _ in range(random.randrange(30)):
        if random.random() < 0.03:
            data = json.dumps({"choices": [{"delta": {"tool_calls": [{"id": "i", "function": {"name": "f"}}]}}]})
        else:
            data = chunk(random.choice(WORDS), *random.choice(forms))
        events.append(ServerSentEvent(data=data, event="error" if random.random() < 0.02 else ""))
    if random.random() < 0.5:
        events.append(ServerSentEvent(data="[DONE]"))

    def read(*, keeps_logprobs: bool) -> tuple[object, ...]:
        skipped = SkippedFields()
        completion = UpstreamCompletion(
            skipped,
            ThinkSplitter() if seed % 2 else None,
            keeps_logprobs=keeps_logprobs,
            passed=PassedFields(),
        )
        pieces = [completion.feed(event) for event in events]
        failure = completion.failure and str(completion.failure)
        state = (completion.finish_reason, completion.done, completion.stop_string, completion.usage)
        facts = (completion.is_final, completion.is_empty, completion.has_chunks)
        return pieces, completion.flush(), failure, *state, *facts, skipped.total, skipped.names

    for keeps_logprobs in (False, True):
        found = read(keeps_logprobs=keeps_logprobs)
        with monkeypatch.context() as patch:
            patch.setattr(same_form, "_MAX_USELESS", 0)  # no form is learnt
            assert read(keeps_logprobs=keeps_logprobs) == found


def test_a_plain_stream_is_read_by_its_form() -> None:
    completion = UpstreamCompletion(passed=PassedFields())
    whole = 0

    def read(fields: object) -> object:
        nonlocal whole
        whole += 1
        return original(fields)  # type: ignore[arg-type]

    original = completion._chunks.read
    completion._chunks.read = read  # type: ignore[method-assign, assignment]
    texts = [piece for word in "abcdef" for piece in completion.feed(ServerSentEvent(data=chunk(word + "!")))]
    assert len(texts) == 6
    assert whole == 1


def test_log_probabilities_of_a_text_that_was_held_back_come_with_it() -> None:
    completion = UpstreamCompletion(splitter=ThinkSplitter(), keeps_logprobs=True)
    probabilities = [{"token": "<th"}]
    chunks = [chunk("<th", {"logprobs": {"content": probabilities}}), chunk("i"), chunk("s")]
    assert [completion.feed(ServerSentEvent(data=data)) for data in chunks] == [[], [], [Text("<this", probabilities)]]
