"""Bad input on the routes of the UI message stream: a sentence in plain text, a code in a header, and no stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.testing import ScriptedEngine

CHAT = "/v1/ui/chat"
STREAM = "/v1/ui/chat/c/stream"
FOREIGN = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site", "Host": "evil.example"}
KINDS = ["text", "reasoning", "file", "tool-x", "dynamic-tool", "step-start", "data-x"]


async def refused(api: Any, body: Any, **headers: str) -> tuple[int, str, str]:
    """Status, code and sentence of a refused request. Checks the shape."""
    answer = await api.post(CHAT, body, **headers)
    assert answer.header("content-type") == "text/plain; charset=utf-8"
    assert answer.header("cache-control") == "no-store"
    assert await api.pipeline.list() == []
    return answer.status, answer.header("crucible-error"), answer.body.decode()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is not valid JSON in UTF-8"),
        (b"{", "the body is not valid JSON in UTF-8"),
        (b'{"messages": "\xff"}', "the body is not valid JSON in UTF-8"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "Object missing required field `messages`"),
        (b'{"messages": 7}', "Expected `array`, got `int` (in messages)"),
        (b'{"messages": [{"role": "user", "parts": [{"type": "text"}]}]}', "missing required field `text`"),
    ],
)
async def test_a_wrong_body_is_400_in_words(
    autojump_clock: MockClock, open_api: Any, body: bytes, sentence: str
) -> None:
    async with open_api("a") as api:
        status, code, said = await refused(api, body, Content_Type="application/json")
    assert (status, code) == (400, "invalid_request")
    assert sentence in said


async def test_every_prefix_of_a_good_body_is_400(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    body = json.dumps(ask_body()).encode()
    async with open_api("a") as api:
        for end in range(len(body)):
            status, code, _ = await refused(api, body[:end], Content_Type="application/json")
            assert (status, code) == (400, "invalid_request")


async def test_a_body_of_another_type_is_415(autojump_clock: MockClock, open_api: Any) -> None:
    async with open_api("a") as api:
        status, code, said = await refused(api, b"{}", Content_Type="text/plain;charset=UTF-8")
    assert (status, code, said) == (415, "unsupported_media_type", "the body must be application/json")


@pytest.mark.parametrize("place", ["metadata", "input", "output", "inputSchema"])
async def test_json_that_is_nested_too_deeply_is_400(
    autojump_clock: MockClock, open_api: Any, ask_body: Any, place: str
) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    part = {"type": "tool-x", "toolCallId": "c", "state": "output-available", place: deep}
    body = ask_body(tools={"f": {"inputSchema": {"x": deep}}} if place == "inputSchema" else {})
    if place != "inputSchema":
        body["messages"].append({"id": "a", "role": "assistant", "parts": [part]})
    engine = ScriptedEngine("a", capabilities=UPSTREAM_CAPABILITIES)
    async with open_api(engine=engine) as api:
        status, code, said = await refused(api, body)
    assert (status, code) == (400, "invalid_request")
    assert "100 levels deep" in said


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", CHAT, 405), ("GET", "/v1/ui/x", 404), ("POST", STREAM, 405), ("GET", "/v1/ui/chat//stream", 404)],
)
async def test_an_unknown_path_is_refused_in_words(
    autojump_clock: MockClock, open_api: Any, method: str, target: str, status: int
) -> None:
    async with open_api("a") as api:
        answer = await api.ask(method, target)
        assert (answer.status, answer.header("content-type")) == (status, "text/plain; charset=utf-8")


async def test_an_unknown_parameter_is_refused(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("a") as api:
        for method, target in (("POST", CHAT), ("GET", STREAM)):
            answer = await api.ask(method, f"{target}?x=1", ask_body() if method == "POST" else b"")
            assert (answer.status, answer.body) == (400, b"there is no parameter 'x'")


async def test_a_foreign_page_is_403_on_every_route(autojump_clock: MockClock, open_api: Any, ask_body: Any) -> None:
    async with open_api("a") as api:
        for method, target in (("POST", CHAT), ("GET", STREAM), ("POST", "/v1/ui/chat/c/stop")):
            body = ask_body() if target == CHAT else b""
            for name, value in FOREIGN.items():
                answer = await api.ask(method, target, body, **{name: value})
                assert (answer.status, answer.header("crucible-error")) == (403, "forbidden")
        assert await api.pipeline.list() == []


def anything(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )


ANYTHING = anything(st.floats(allow_nan=False))
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | ANYTHING},
    optional={
        name: ANYTHING | st.text(max_size=3)
        for name in ("text", "url", "mediaType", "toolName", "toolCallId", "input", "output", "errorText", "approval")
    }
    | {"state": st.sampled_from(["output-available", "output-error", "output-denied", "input-streaming"]) | ANYTHING},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "parts": st.lists(PART, max_size=4)},
    optional={"id": st.text(max_size=3) | ANYTHING},
)
OPTIONS = st.dictionaries(
    st.sampled_from(["id", "model", "system", "reasoning", "topP", "tools", "toolChoice", "onDisconnect", "x", "seed"]),
    ANYTHING,
    max_size=3,
)


@given(st.lists(MESSAGE | ANYTHING, max_size=4), OPTIONS)
def test_no_body_causes_a_server_error(
    open_api: Any, chunks_of: Any, run_virtually: Callable[..., Any], messages: list[Any], options: dict[str, Any]
) -> None:
    async def ask() -> None:
        engine = ScriptedEngine("a", capabilities=UPSTREAM_CAPABILITIES)
        async with open_api(engine=engine) as api:
            answer = await api.post(CHAT, {"messages": messages} | options)
            assert answer.status is not None
            assert answer.status < 500

    run_virtually(ask)


WORDS = st.text(max_size=5)
JSON = anything(st.floats(allow_nan=False, allow_infinity=False))
GOOD_PART = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "reasoning"]), "text": WORDS}),
    st.fixed_dictionaries({"type": st.sampled_from(["step-start", "data-x", "source-url"]), "data": JSON}),
    st.fixed_dictionaries(
        {
            "type": st.just("tool-x"),
            "toolCallId": st.text(min_size=1, max_size=5),
            "state": st.sampled_from(["output-available", "output-error", "output-denied", "input-streaming"]),
            "input": JSON,
            "output": JSON,
            "errorText": WORDS,
        }
    ),
)
GOOD_PARTS = st.lists(GOOD_PART, max_size=4)


@given(GOOD_PARTS, st.booleans())
def test_every_conversation_that_a_page_can_have_is_answered_and_the_answer_is_replayed(
    open_api: Any, chunks_of: Any, ask_body: Any, run_virtually: Callable[..., Any], parts: list[Any], goes_on: bool
) -> None:
    async def ask() -> None:
        engine = ScriptedEngine("a", capabilities=UPSTREAM_CAPABILITIES)
        body = ask_body()
        [question] = body["messages"]
        answer = {"id": "m1", "role": "assistant", "parts": parts}
        body["messages"] = [question, answer] if goes_on else [answer, question]
        async with open_api(engine=engine) as api:
            first = await api.post(CHAT, body)
            assert first.status == 200
            chunks = chunks_of(first.body)
            assert (chunks[0]["type"], chunks[-1]["type"]) == ("start", "finish")
            again = chunks_of((await api.get(f"{CHAT}/{first.header('crucible-stream')}/stream")).body)
            assert (again[0], again[-1]) == (chunks[0], chunks[-1])

    run_virtually(ask)
