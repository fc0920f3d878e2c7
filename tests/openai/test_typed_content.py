"""Tool calls, refusals and log probabilities on OpenAI's wires: events, whole objects, resuming, and the SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
import trio
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from trio.testing import MockClock

from crucible_trio.content import Reasoning, Refusal, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
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

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


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


# Responses


async def events_of(api: Any, *, response_id: str | None = None, starting_after: int | None = None) -> list[Any]:
    """The events of a new response, or of one that exists. Checks every event against the SDK's types."""
    if response_id is None:
        exchange = await api.post("/v1/responses", {"input": "Why?", "stream": True, "background": True})
    else:
        after = "" if starting_after is None else f"&starting_after={starting_after}"
        exchange = await api.get(f"/v1/responses/{response_id}?stream=true{after}")
    events = exchange.events
    for event in events:
        EVENT.validate_python(with_listed_values(event))
    return events


def with_listed_values(event: Any) -> Any:
    """The event with a value that OpenAI lists in the two fields where this server adds values."""
    response = event.get("response", {})
    changed = {
        name: ({"reason": "max_output_tokens"} if name == "incomplete_details" else value | {"code": "server_error"})
        for name, value in response.items()
        if name in {"incomplete_details", "error"} and value is not None
    }
    return event | {"response": response | changed} if response else event


def names_of(events: list[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def call_item(status: str, arguments: str, call_id: str = "call_1", name: str = "weather") -> Any:
    """A function call item, without its own id."""
    return {"type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments}


def without_id(item: Any) -> Any:
    return {name: value for name, value in item.items() if name != "id"}


async def test_the_events_of_a_tool_call_come_in_order(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine(*WEATHER, Finish(usage=USAGE))) as api:
        events = await events_of(api)
        response_id = events[0]["response"]["id"]
        shown = (await api.get(f"/v1/responses/{response_id}")).json
    assert names_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    _, _, added, first, second, arguments, done, end = events
    assert without_id(added["item"]) == call_item("in_progress", "")
    assert [first["delta"], second["delta"], arguments["arguments"]] == ['{"city":', '"Oslo"}', '{"city":"Oslo"}']
    assert without_id(done["item"]) == call_item("completed", '{"city":"Oslo"}')
    assert end["response"]["output"] == [done["item"]]
    assert shown == end["response"]
    item_id = added["item"]["id"]
    assert item_id == f"fc_{response_id.removeprefix('resp_')}_0"
    assert [event["item_id"] for event in (first, second, arguments)] == [item_id] * 3
    assert [event["output_index"] for event in events[2:-1]] == [0] * 5


async def test_several_tool_calls_are_items_one_after_another(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine("Let me see.", *WEATHER, *TIME, *NO_ARGUMENTS)) as api:
        events = await events_of(api)
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call", "function_call"]
    assert [without_id(item) for item in output[1:]] == [
        call_item("completed", '{"city":"Oslo"}'),
        call_item("completed", "{}", "call_2", "time"),
        call_item("completed", "", "call_3", "now"),
    ]
    assert len({item["id"] for item in output}) == 4
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert [(event["output_index"], event["arguments"]) for event in done] == [
        (1, '{"city":"Oslo"}'),
        (2, "{}"),
        (3, ""),
    ]


@pytest.mark.parametrize(
    ("steps", "end", "reason"),
    [
        pytest.param(CUT, "incomplete", "incomplete_tool_call", id="the engine ends"),
        pytest.param((*CUT, Finish("length")), "incomplete", "max_output_tokens", id="a limit"),
        pytest.param((*CUT, EngineError("broken", "It broke.")), "failed", None, id="the engine fails"),
        pytest.param((*CUT, 10_000), "incomplete", "idle_deadline", id="a deadline"),
    ],
)
async def test_a_call_that_broke_off_has_no_done_event_and_is_incomplete(
    steps: tuple[Any, ...], end: str, reason: str | None, open_api, autojump_clock: MockClock
) -> None:
    async with open_api(engine=engine(*TIME, *steps)) as api:
        events = await events_of(api)
        shown = (await api.get(f"/v1/responses/{events[0]['response']['id']}")).json
    expected = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.delta", end]
    if end == "failed":
        expected.insert(-1, "error")
    names = [name for name in names_of(events) if name != "in_progress"]  # repeated in silence
    assert names[-len(expected) :] == expected
    response = events[-1]["response"]
    assert response["status"] == end
    assert response["incomplete_details"] == (None if reason is None else {"reason": reason})
    assert [without_id(item) for item in response["output"]] == [
        call_item("completed", "{}", "call_2", "time"),
        call_item("incomplete", '{"city":"Oslo"}'),
    ]
    assert shown == response


async def test_a_cancelled_response_shows_its_call_as_incomplete(open_api, autojump_clock: MockClock) -> None:
    body = {"input": "Why?", "stream": True, "background": True}
    async with open_api(engine=engine(*CUT, 10_000)) as api, api.open("POST", "/v1/responses", body) as exchange:
        await exchange.until_event(5)
        response_id = exchange.events[0]["response"]["id"]
        running = (await api.get(f"/v1/responses/{response_id}")).json
        assert [without_id(item) for item in running["output"]] == [call_item("in_progress", '{"city":"Oslo"}')]
        cancelled = (await api.post(f"/v1/responses/{response_id}/cancel")).json
        await exchange.until(lambda exchange: exchange.ended)
    assert cancelled["status"] == "cancelled"
    assert [without_id(item) for item in cancelled["output"]] == [call_item("incomplete", '{"city":"Oslo"}')]
    assert names_of(exchange.events)[-1] == "incomplete"
    assert exchange.events[-1]["response"] == cancelled
    assert not any("done" in name for name in names_of(exchange.events))


async def test_text_after_a_call_that_broke_off_does_not_make_the_answer_whole(
    open_api, autojump_clock: MockClock
) -> None:
    async def model(request: Request, output: Output) -> Finish:
        async with output.tool_call("call_1", "weather") as call:
            await call.arguments("{")
            call.cut()
        await output.delta("Never mind.")
        return Finish()

    async with open_api(engine=model) as api:
        events = await events_of(api)
        whole = (await api.chat()).json["choices"][0]
        chunks = choices_in((await api.chat(stream=True)).events)
    assert names_of(events)[2:6] == [
        "output_item.added",
        "function_call_arguments.delta",
        "output_item.added",
        "content_part.added",
    ]
    response = events[-1]["response"]
    assert [item["status"] for item in response["output"]] == ["incomplete", "completed"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "incomplete_tool_call"}
    assert whole["message"] == {"role": "assistant", "content": "Never mind.", "refusal": None}
    assert whole["finish_reason"] == chunks[-1]["finish_reason"] == "length"


async def test_a_refusal_is_a_message_with_a_refusal_part(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine("Well. ", 1, *REFUSAL)) as api:
        events = await events_of(api)
    assert names_of(events)[8:] == [
        "output_item.added",
        "content_part.added",
        "refusal.delta",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    added, part, first, second, refusal, part_done, done, end = events[8:]
    whole = {"type": "refusal", "refusal": "I cannot."}
    assert (added["item"]["content"], part["part"]) == ([], {"type": "refusal", "refusal": ""})
    assert [first["delta"], second["delta"], refusal["refusal"]] == ["I can", "not.", "I cannot."]
    assert part_done["part"] == whole
    assert done["item"] == end["response"]["output"][1]
    assert (done["item"]["status"], done["item"]["content"]) == ("completed", [whole])
    assert [event["content_index"] for event in events[9:14]] == [0] * 5
    assert {event["output_index"] for event in events[8:-1]} == {1}


async def test_log_probabilities_come_with_their_text_in_a_response(open_api, autojump_clock: MockClock) -> None:
    async with open_api(engine=engine(*LOGPROBS_TEXT, 1, "?")) as api:
        events = await events_of(api)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(event["delta"], event["logprobs"]) for event in deltas] == [
        ("Hel", LOGPROBS[:1]),
        ("lo!", LOGPROBS[1:]),
        ("?", []),
    ]
    text, part, item = events[-4:-1]
    assert text["logprobs"] == part["part"]["logprobs"] == item["item"]["content"][0]["logprobs"] == LOGPROBS
    assert events[-1]["response"]["output"] == [item["item"]]


@pytest.mark.parametrize("end", [Finish(usage=USAGE), ToolCallStart("call_4", "never ended")])
async def test_a_response_resumes_after_every_event_with_the_same_events(
    end: Any, open_api, autojump_clock: MockClock
) -> None:
    async with open_api(engine=engine(*MIXED, end)) as api:
        whole = await events_of(api)
        assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
        response_id = whole[0]["response"]["id"]
        body = (await api.get(f"/v1/responses/{response_id}?stream=true")).body
        for number in range(len(whole) - 1):
            resumed = await api.get(f"/v1/responses/{response_id}?stream=true&starting_after={number}")
            assert body.endswith(resumed.body)
            assert resumed.events == whole[number + 1 :]
    assert [item["type"] for item in whole[-1]["response"]["output"]] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "message",
        "reasoning",
        "message",
        *(["function_call"] if isinstance(end, ToolCallStart) else []),
    ]


# The SDK, on sockets


def quick(*steps: Any) -> Callable[[Request], AsyncIterator[Any]]:
    """The same engine with pauses for real time."""
    return engine(*(0.005 if isinstance(step, int) else step for step in steps))


CHAT: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "Why?"}]}
RESPONSE: dict[str, Any] = {"model": "model", "input": "Why?"}


def check_calls(completion: Any) -> None:
    type(completion).model_validate(completion.model_dump(), strict=True)
    [choice] = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    calls = [(call.id, call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [
        ("call_1", "function", "weather", '{"city":"Oslo"}'),
        ("call_2", "function", "time", "{}"),
    ]


def check_call_chunks(chunks: list[Any]) -> None:
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or []]
    assert [(part.index, part.id, part.function.name, part.function.arguments) for part in parts] == [
        (0, "call_1", "weather", ""),
        (0, None, None, '{"city":'),
        (0, None, None, '"Oslo"}'),
        (1, "call_2", "time", ""),
        (1, None, None, "{}"),
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def check_call_helper(events: list[Any], completion: Any) -> None:
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert [(event.index, event.name, event.arguments) for event in deltas] == [
        (0, "weather", ""),
        (0, "weather", '{"city":'),
        (0, "weather", '{"city":"Oslo"}'),
        (1, "time", ""),
        (1, "time", "{}"),
    ]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, event.name, event.arguments) for event in done] == [
        (0, "weather", '{"city":"Oslo"}'),
        (1, "time", "{}"),
    ]
    check_calls(completion)


async def test_the_sync_sdk_reads_tool_calls_of_a_chat_completion(serving, with_sync_client) -> None:
    def use(client: Any) -> None:
        check_call_chunks(list(client.chat.completions.create(**CHAT, stream=True)))
        with client.chat.completions.stream(**CHAT) as helper:
            check_call_helper(list(helper), helper.get_final_completion())
        check_calls(client.chat.completions.create(**CHAT))

    async with serving(quick("Let me see.", 1, *WEATHER, *TIME)) as served:
        await with_sync_client(served, use)


async def test_the_async_sdk_reads_tool_calls_of_a_chat_completion(serving, with_async_client) -> None:
    async def use(client: Any) -> None:
        check_call_chunks([chunk async for chunk in await client.chat.completions.create(**CHAT, stream=True)])
        async with client.chat.completions.stream(**CHAT) as helper:
            check_call_helper([event async for event in helper], await helper.get_final_completion())
        check_calls(await client.chat.completions.create(**CHAT))

    async with serving(quick("Let me see.", 1, *WEATHER, *TIME)) as served:
        await with_async_client(served, use)


async def test_the_sdk_sees_that_a_call_of_a_chat_completion_broke_off(serving, with_sync_client) -> None:
    def use(client: Any) -> None:
        assert list(client.chat.completions.create(**CHAT, stream=True))[-1].choices[0].finish_reason == "length"
        with client.chat.completions.stream(**CHAT) as helper, pytest.raises(openai.LengthFinishReasonError):
            helper.get_final_completion()
        [choice] = client.chat.completions.create(**CHAT).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)

    async with serving(quick(*CUT)) as served:
        await with_sync_client(served, use)


async def test_the_sdk_reads_a_refusal_and_log_probabilities_of_a_chat_completion(serving, with_sync_client) -> None:
    def use(client: Any) -> None:
        with client.chat.completions.stream(**CHAT) as helper:
            events = list(helper)
            streamed = helper.get_final_completion()
        kinds = [event.type for event in events]
        assert [event.refusal for event in events if event.type == "refusal.done"] == ["I cannot."]
        assert kinds.count("refusal.delta") == kinds.count("logprobs.content.delta") == 2
        for completion in (streamed, client.chat.completions.create(**CHAT)):
            [choice] = completion.choices
            assert (choice.message.content, choice.message.refusal) == ("Hello!", "I cannot.")
            assert [entry.token for entry in choice.logprobs.content] == ["Hel", "lo", "!"]
            assert choice.finish_reason == "stop"

    async with serving(quick(*LOGPROBS_TEXT, 1, *REFUSAL)) as served:
        await with_sync_client(served, use)


def check_response(response: Any) -> None:
    message, weather, time, refusal = response.output
    assert response.status == "completed"
    assert response.output_text == message.content[0].text == "Hello!"
    assert [entry.token for entry in message.content[0].logprobs] == ["Hel", "lo", "!"]
    assert (weather.type, weather.call_id, weather.name) == ("function_call", "call_1", "weather")
    assert (weather.arguments, weather.status) == ('{"city":"Oslo"}', "completed")
    assert (time.call_id, time.arguments) == ("call_2", "{}")
    assert (refusal.content[0].type, refusal.content[0].refusal) == ("refusal", "I cannot.")


def check_response_events(events: list[Any]) -> None:
    assert [event.sequence_number for event in events] == list(range(len(events)))
    arguments = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert arguments == '{"city":"Oslo"}{}'
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == ['{"city":"Oslo"}', "{}"]
    assert "".join(event.delta for event in events if event.type == "response.refusal.delta") == "I cannot."
    check_response(events[-1].response)


CONTENT = (*LOGPROBS_TEXT, 1, *WEATHER, *TIME, *REFUSAL)


async def test_the_sync_sdk_reads_the_new_items_of_a_response(serving, with_sync_client) -> None:
    def use(client: Any) -> None:
        check_response_events(list(client.responses.create(**RESPONSE, stream=True)))
        with client.responses.stream(**RESPONSE) as helper:
            events = list(helper)
            check_response(helper.get_final_response())
        snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
        assert snapshots == ['{"city":', '{"city":"Oslo"}', "{}"]
        response = client.responses.create(**RESPONSE)
        check_response(response)
        assert client.responses.retrieve(response.id) == response

    async with serving(quick(*CONTENT)) as served:
        await with_sync_client(served, use)


async def test_the_async_sdk_reads_the_new_items_of_a_response(serving, with_async_client) -> None:
    async def use(client: Any) -> None:
        events = [event async for event in await client.responses.create(**RESPONSE, stream=True)]
        check_response_events(events)
        async with client.responses.stream(**RESPONSE) as helper:
            check_response(await helper.get_final_response())
        response_id = events[0].response.id
        for number in (3, 9, 13):
            again = client.responses.stream(response_id=response_id, starting_after=number)
            async with again as helper:
                assert [event.sequence_number async for event in helper] == list(range(number + 1, len(events)))
                check_response(await helper.get_final_response())

    async with serving(quick(*CONTENT)) as served:
        await with_async_client(served, use)


async def test_the_sdk_sees_that_a_call_of_a_response_broke_off(serving, with_sync_client) -> None:
    def use(client: Any) -> None:
        *_, last = client.responses.create(**RESPONSE, stream=True)
        with client.responses.stream(**RESPONSE) as helper:
            *_, end = helper
        for response in (last.response, end.response, client.responses.create(**RESPONSE)):
            assert (response.status, response.incomplete_details.reason) == ("incomplete", "incomplete_tool_call")
            assert [item.status for item in response.output] == ["completed", "incomplete"]

    async with serving(quick(*TIME, *CUT)) as served:
        await with_sync_client(served, use)


# Continuations


async def test_a_continuation_is_on_the_native_wire_alone(open_api, autojump_clock: MockClock) -> None:
    async def continuing(request: Request, output: Output) -> Finish:
        await output.delta("Hel")
        await trio.sleep(1)
        await output.continued(3)
        await trio.sleep(1)
        await output.delta("lo.")
        return Finish()

    async def plain(request: Request, output: Output) -> Finish:
        await output.delta("Hel")
        await trio.sleep(1)
        await output.delta("lo.")
        return Finish()

    seen: list[list[Any]] = []
    for model in (continuing, plain):
        async with open_api(engine=model) as api:
            chat = choices_in((await api.chat(stream=True)).events)
            whole = (await api.chat()).json["choices"][0]["message"]
            response = await api.post("/v1/responses", {"input": "Why?", "stream": True})
            kinds = [(event["type"], event["sequence_number"], event.get("delta")) for event in response.events]
            native = (await api.get(f"/v1/streams/{response.headers['crucible-stream']}/events")).body
            resp_id = response.headers["crucible-stream"].replace("str_", "resp_")
            rest = []
            for number in range(len(kinds)):
                resumed = await api.get(f"/v1/responses/{resp_id}?stream=true&starting_after={number}")
                events = resumed.events if resumed.body else []
                rest.append([event["sequence_number"] for event in events])
            seen.append([[choice["delta"] for choice in chat], whole["content"], kinds, rest])
        assert (b'"type":"stream.continued","seq":3,"characters":3' in native) == (model is continuing)
    assert seen[0] == seen[1]
    assert seen[0][3][0] == list(range(1, len(seen[0][2])))
