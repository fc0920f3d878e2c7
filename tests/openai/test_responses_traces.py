"""Traces that a client keeps in `encrypted_content` and sends back."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from trio.testing import MockClock

from crucible_trio.apis.kit.sealed import Seals
from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities
from crucible_trio.request import Message

PATH = "/v1/responses"
INCLUDE = {"include": ["reasoning.encrypted_content"]}
DEEP = (Reasoning("Hm, ", 0), Reasoning("überlegt", 1), "Hi")
TRACE = "Hm, überlegt"
KEYS = {"keys": {"alice": "a", "bob": "b"}, "token_secret": "secret"}
ALICE, BOB = {"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}
ABLE = Capabilities(reasoning_input=True)
USER = {"role": "user", "content": "Why?"}


async def first_turn(open_api: Any, scripted: Any, headers: dict[str, str] = ALICE, **settings: Any) -> list[Any]:
    async with open_api(engine=scripted(*DEEP), **KEYS | settings) as api:
        answer = await api.post(PATH, {"input": "Why?", "store": False} | INCLUDE, **headers)
        assert answer.status == 200, answer.body
        return answer.json["output"]


async def second_turn(
    open_api: Any,
    scripted: Any,
    output: list[Any],
    headers: dict[str, str] = ALICE,
    can: Capabilities = ABLE,
    **settings: Any,
) -> tuple[Message, float]:
    """The message that the engine gets for an earlier output, and how many traces were left out."""
    async with open_api(engine=scripted("Ho", capabilities=can), **KEYS | settings) as api:
        answer = await api.post(PATH, {"input": [USER, *output, USER]}, **headers)
        assert answer.status == 200, answer.body
        [request] = api.engine.requests
        return request.messages[1], api.number("unverified_traces_total")


async def test_a_trace_comes_back_to_a_server_with_the_same_secret(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    output = await first_turn(open_api, scripted)
    output[0]["summary"] = []  # only the signed trace counts
    assert await second_turn(open_api, scripted, output) == (Message("assistant", "Hi", reasoning=TRACE), 0)
    without = await second_turn(open_api, scripted, output, can=Capabilities())
    assert without == (Message("assistant", "Hi"), 0)


@pytest.mark.parametrize("spoil", ["owner", "secret", "no secret", "text", "short", "other server", "not ascii"])
async def test_a_trace_that_is_not_this_owners_is_left_out_and_counted(
    open_api, scripted, spoil, autojump_clock: MockClock
) -> None:
    settings = {"token_secret": None} if spoil == "no secret" else {}
    output = await first_turn(open_api, scripted, **settings)
    sealed = output[0]["encrypted_content"]
    spoiled = {
        "text": sealed.replace("SG0", "SG1"),
        "short": sealed[:-1],
        "other server": "gAAAAABo" * 20,
        "not ascii": sealed + "é",
    }
    output[0]["encrypted_content"] = spoiled.get(spoil, sealed)
    headers = BOB if spoil == "owner" else ALICE
    settings = {"token_secret": "another"} if spoil == "secret" else settings
    message = Message("assistant", "Hi")
    assert await second_turn(open_api, scripted, output, headers, **settings) == (message, 1)


async def test_the_trace_is_sealed_in_the_done_event_and_only_if_asked(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    async with open_api(engine=scripted(*DEEP)) as api:
        answer = await api.post(PATH, {"input": "Why?", "stream": True} | INCLUDE)
        response = answer.events[-1]["response"]
        added, done = (event for event in answer.events if event.get("item", {}).get("type") == "reasoning")
        assert "encrypted_content" not in added["item"]
        assert done["item"] == response["output"][0]
        assert TypeAdapter(ResponseStreamEvent).validate_python(done).item.encrypted_content
        url = f"{PATH}/{response['id']}"
        assert (await api.get(url)).json == response
        assert (await api.get(f"{url}?stream=true")).body == answer.body
        plain = (await api.post(PATH, {"input": "Why?"})).json
        assert "encrypted_content" not in plain["output"][0]
        asked = await api.get(f"{PATH}/{plain['id']}?include[]=reasoning.encrypted_content")
    assert asked.json["output"][0]["encrypted_content"] == response["output"][0]["encrypted_content"]


async def test_a_trace_without_a_signature_is_taken_from_the_summary(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    output = await first_turn(open_api, scripted)
    for sealed in (None, ""):
        output[0]["encrypted_content"] = sealed
        assert await second_turn(open_api, scripted, output) == (Message("assistant", "Hi", reasoning=TRACE), 0)
    output[0] |= {"content": [{"type": "reasoning_text", "text": "raw"}, {"type": "x"}, 7, {"text": 7}]}
    assert await second_turn(open_api, scripted, output) == (Message("assistant", "Hi", reasoning="raw"), 0)
    output[0] |= {"content": "x", "summary": None}
    assert await second_turn(open_api, scripted, output) == (Message("assistant", "Hi"), 0)


def test_a_seal_is_of_one_owner_and_one_key() -> None:
    seals = Seals("secret")
    sealed = seals.of("ab").sign("c")
    assert seals.of("ab").verify(sealed) == "c"
    assert Seals("secret").of("ab").sign("c") == sealed
    assert [seals.of(owner).verify(sealed) for owner in ("a", "", "abc", "2.ab")] == [None] * 4
    assert Seals(None).of("ab").verify(sealed) is None
    assert seals.of("").verify(seals.of("").sign("")) == ""
