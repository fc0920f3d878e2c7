"""Tool calls, refusals and log probabilities on OpenAI's wires: events, whole objects, resuming, and the SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from trio.testing import MockClock

from crucible_trio.content import Reasoning, Refusal, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.engine import Finish
from crucible_trio.records import Usage
from crucible_trio.request import Request

USAGE = Usage(3, 9, 4)
WEATHER = (
    ToolCallStart("call_1", "weather"),
    1,
    ToolCallArguments('{"city":'),
    1,
    ToolCallArguments('"Oslo"}'),
    1,
    ToolCallEnd(),
)
CUT = WEATHER[:-1]
TIME = (ToolCallStart("call_2", "time"), 1, ToolCallArguments("{}"), ToolCallEnd())
NO_ARGUMENTS = (ToolCallStart("call_3", "now"), ToolCallEnd())
REFUSAL = (Refusal("I can"), 1, Refusal("not."))
LOGPROBS = [{"token": token, "logprob": -0.5, "bytes": [108], "top_logprobs": []} for token in ("Hel", "lo", "!")]
LOGPROBS_TEXT = (Text("Hel", LOGPROBS[:1]), 1, Text("lo!", LOGPROBS[1:]))
MIXED = (Reasoning("Hm", 0), 1, "Let me see. ", 1, *WEATHER, *TIME, *REFUSAL, Reasoning("So", 1), 1, "Done.")


def engine(*steps: Any) -> Callable[[Request], AsyncIterator[Any]]:
    """An async generator engine. A number is a pause, and an exception is raised."""

    async def model(request: Request) -> AsyncIterator[Any]:
        for step in steps:
            if isinstance(step, float | int):
                await trio.sleep(step)
            elif isinstance(step, Exception):
                raise step
            else:
                yield step

    return model


# Chat completions


def choices_in(events: list[Any]) -> list[Any]:
    """The one choice of every chunk. Checks every chunk against the SDK's types."""
    chunks = [event for event in events if event != "[DONE]"]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return [chunk["choices"][0] for chunk in chunks]


async def test_a_chat_stream_names_each_tool_call_once_and_numbers_every_part(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(engine=engine(*WEATHER, *TIME)) as api:
        choices = choices_in((await api.chat(stream=True)).events)
    assert all(choice["index"] == 0 and "logprobs" not in choice for choice in choices)
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["tool_calls"]
    weather = {"arguments": "", "name": "weather"}
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"tool_calls": [{"index": 0, "function": weather, "id": "call_1", "type": "function"}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
        {
            "tool_calls": [
                {"index": 1, "function": {"arguments": "", "name": "time"}, "id": "call_2", "type": "function"}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        pytest.param(WEATHER, "tool_calls", id="a call"),
        pytest.param((*WEATHER, Finish("tool_calls")), "tool_calls", id="a call and its reason"),
        pytest.param(("Let me see.", *WEATHER, *TIME), "tool_calls", id="text and two calls"),
        pytest.param(NO_ARGUMENTS, "tool_calls", id="a call without arguments"),
        pytest.param(CUT, "length", id="a call that broke off"),
        pytest.param((*TIME, *CUT), "length", id="a whole call and one that broke off"),
        pytest.param((*WEATHER, Finish("length")), "length", id="a call and a limit"),
        pytest.param((*CUT, Finish("length")), "length", id="a call that a limit broke off"),
        pytest.param(REFUSAL, "stop", id="a refusal"),
        pytest.param((*REFUSAL, Finish("content_filter")), "content_filter", id="a refusal of a filter"),
        pytest.param(("No call", Finish("tool_calls")), "stop", id="a reason without a call"),
    ],
)
async def test_the_finish_reason_is_tool_calls_only_if_every_call_is_whole(
    steps: tuple[Any, ...], reason: str, open_api, autojump_clock: MockClock
) -> None:
    async with open_api(engine=engine(*steps)) as api:
        choices = choices_in((await api.chat(stream=True)).events)
        whole = (await api.chat()).json
    ChatCompletion.model_validate(whole, strict=True)
    assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"] == reason


async def test_a_whole_completion_has_the_whole_tool_calls(open_api, autojump_clock: MockClock) -> None:
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    async with open_api(engine=engine(*WEATHER, *TIME)) as api:
        message = (await api.chat()).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    async with open_api(engine=engine("Let me see.", *TIME)) as api:
        message = (await api.chat()).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "Let me see.", "refusal": None, "tool_calls": calls[1:]}


async def test_a_whole_completion_leaves_out_a_call_that_broke_off(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine(*CUT)) as api:
        message = (await api.chat()).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "", "refusal": None}
    async with open_api(engine=engine(*TIME, *CUT)) as api:
        message = (await api.chat()).json["choices"][0]["message"]
        assert [call["id"] for call in message["tool_calls"]] == ["call_2"]


async def test_arguments_that_are_not_json_are_passed_on(open_api, autojump_clock: MockClock) -> None:
    arguments = '{"city": \u2028\N{SNOWMAN}"'
    async with open_api(
        engine=engine(ToolCallStart("call", "tool"), ToolCallArguments(arguments), ToolCallEnd())
    ) as api:
        stream = choices_in((await api.chat(stream=True)).events)
        assert stream[2]["delta"]["tool_calls"][0]["function"]["arguments"] == arguments
        message = (await api.chat()).json["choices"][0]["message"]
        assert message["tool_calls"][0]["function"]["arguments"] == arguments


async def test_a_refusal_has_its_field_in_a_chat_completion(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine(*REFUSAL)) as api:
        deltas = [choice["delta"] for choice in choices_in((await api.chat(stream=True)).events)]
        assert deltas == [{"role": "assistant", "content": ""}, {"refusal": "I can"}, {"refusal": "not."}, {}]
        message = (await api.chat()).json["choices"][0]["message"]
        assert message == {"role": "assistant", "content": None, "refusal": "I cannot."}


async def test_log_probabilities_come_with_their_text_in_a_chat_completion(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine(*LOGPROBS_TEXT, 1, "?")) as api:
        choices = choices_in((await api.chat(stream=True)).events)
        assert [choice["delta"].get("content") for choice in choices] == ["", "Hel", "lo!", "?", None]
        logprobs = [choice.get("logprobs") for choice in choices]
        assert logprobs == [None, {"content": LOGPROBS[:1]}, {"content": LOGPROBS[1:]}, None, None]
        whole = (await api.chat()).json
        ChatCompletion.model_validate(whole, strict=True)
        assert whole["choices"][0]["logprobs"]["content"] == LOGPROBS
