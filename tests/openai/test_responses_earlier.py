"""Requests that refer to earlier responses: `previous_response_id`, `item_reference`, and the list of the input."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio
from openai.types.responses import ResponseItemList
from trio.testing import MockClock

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities
from crucible_trio.errors import EngineError
from crucible_trio.request import FilePart, ImagePart, Message, Sampling, TextPart, ToolCall
from crucible_trio.testing import CallTool

PATH = "/v1/responses"
ABLE = Capabilities.of(Capabilities.__dataclass_fields__, Sampling.__struct_fields__)
WEATHER = {"type": "function", "name": "weather"}
AGENTS = {"type": "namespace", "name": "agents", "tools": [{"type": "function", "name": "close"}]}
PATCH = {"type": "custom", "name": "patch"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "31"}
MADE = ToolCall("call_1", "weather", "{}")
CALLS = (Reasoning("Hm", 0), "Wait.", CallTool("weather"))
PNG = "data:image/png;base64,AAAA"


def able(scripted: Any, *steps: Any) -> Any:
    return scripted(*steps, capabilities=ABLE)


async def test_a_conversation_continues_from_its_last_response(open_api, scripted, autojump_clock: MockClock) -> None:
    async with open_api(engine=able(scripted, *CALLS)) as api:
        first = await api.post(PATH, {"input": "Hot?", "instructions": "Be short.", "tools": [WEATHER]})
        second = await api.post(
            PATH,
            {
                "input": [RESULT],
                "previous_response_id": first.json["id"],
                "instructions": "Be long.",
                "tools": [WEATHER],
            },
        )
        third = await api.post(PATH, {"input": "And?", "previous_response_id": second.json["id"]})
        one, two, three = (request.messages for request in api.engine.requests)
    assert [answer.json["previous_response_id"] for answer in (first, second, third)] == [
        None,
        first.json["id"],
        second.json["id"],
    ]
    answer = Message("assistant", "Wait.", tool_calls=(MADE,), reasoning="Hm")
    turns = [Message("user", "Hot?"), answer, Message("tool", "31", tool_call_id="call_1")]
    assert list(two) == [Message("system", "Be long."), *turns]
    assert list(three) == [*turns, answer, Message("user", "And?")]
    # The messages are shared, so a long conversation is in memory once.
    assert three[0] is two[1] is one[1]
    assert three[1] is two[2]


async def test_items_of_earlier_responses_can_be_named(open_api, scripted, autojump_clock: MockClock) -> None:
    async with open_api(engine=able(scripted, *CALLS)) as api:
        first = await api.post(PATH, {"input": "Hot?", "tools": [WEATHER, AGENTS]})
        ids = [item["id"] for item in first.json["output"]]
        references = [{"type": "item_reference", "id": ids[0]}, {"id": ids[1]}, {"type": None, "id": ids[2]}]
        user = {"role": "user", "content": "Hot?"}
        second = await api.post(PATH, {"input": [user, *references, RESULT]})
        assert second.status == 200, second.body
        assert list(api.engine.requests[1].messages) == [
            Message("user", "Hot?"),
            Message("assistant", "Wait.", tool_calls=(MADE,), reasoning="Hm"),
            Message("tool", "31", tool_call_id="call_1"),
        ]


async def test_names_of_tools_are_those_of_the_new_request(open_api, scripted, autojump_clock: MockClock) -> None:
    steps = (CallTool("agents__close", id="c1"), CallTool("patch", '{"input": "x"}', id="c2"))
    async with open_api(engine=able(scripted, *steps)) as api:
        first = await api.post(PATH, {"input": "Go.", "tools": [AGENTS, PATCH]})
        results = [RESULT | {"call_id": "c1"}, {"type": "custom_tool_call_output", "call_id": "c2", "output": "ok"}]
        await api.post(PATH, {"input": results, "previous_response_id": first.json["id"], "tools": [AGENTS, PATCH]})
        calls = api.engine.requests[1].messages[1].tool_calls
    assert calls == (ToolCall("c1", "agents__close", "{}"), ToolCall("c2", "patch", '{"input":"x"}'))


async def test_a_call_that_broke_off_does_not_carry_over(open_api, scripted, autojump_clock: MockClock) -> None:
    cut = ("Wait.", CallTool("weather", ('{"ci', EngineError("x", "The model is gone."))))
    async with open_api(engine=able(scripted, *cut)) as api:
        answer = await api.post(PATH, {"input": "Hot?", "stream": True})
        response_id = answer.events[0]["response"]["id"]
        await api.post(PATH, {"input": "Again.", "previous_response_id": response_id, "stream": True})
        assert list(api.engine.requests[1].messages) == [
            Message("user", "Hot?"),
            Message("assistant", "Wait."),
            Message("user", "Again."),
        ]


async def test_a_model_that_takes_no_traces_gets_none(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = able(scripted, Reasoning("Hm", 0), "Hi")
    async with open_api(engine=engine) as api:
        first = await api.post(PATH, {"input": "Why?"})
        second = await api.post(PATH, {"input": "And?", "previous_response_id": first.json["id"]})
        assert api.engine.requests[1].messages[1].reasoning == "Hm"
        engine.info = scripted(capabilities=Capabilities()).info
        third = await api.post(PATH, {"input": "So?", "previous_response_id": second.json["id"]})
        assert third.status == 200, third.body
        assert [message.reasoning for message in api.engine.requests[2].messages] == [None] * 5


@pytest.mark.parametrize("way", ["unknown", "invalid", "deleted", "expired", "not stored", "foreign"])
async def test_what_is_gone_is_404_by_name(open_api, scripted, way, autojump_clock: MockClock) -> None:
    alice, bob = {"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}
    async with open_api("Hi", keys={"alice": "a", "bob": "b"}, retention_seconds=10) as api:
        first = await api.post(PATH, {"input": "Why?", "store": way != "not stored"}, **alice)
        response_id, item_id = first.json["id"], first.json["output"][0]["id"]
        if way == "deleted":
            await api.ask("DELETE", f"{PATH}/{response_id}", **alice)
        elif way == "expired":
            autojump_clock.jump(20)
        elif way == "unknown":
            response_id, item_id = f"resp_{'x' * 22}", f"msg_{'x' * 22}_0"
        elif way == "invalid":
            response_id, item_id = "resp_1", "msg_1"
        asking = bob if way == "foreign" else alice
        previous = await api.post(PATH, {"input": "And?", "previous_response_id": response_id}, **asking)
        named = await api.post(PATH, {"input": [{"type": "item_reference", "id": item_id}]}, **asking)
    assert (previous.status, previous.error["code"]) == (404, "previous_response_not_found")
    assert previous.error["param"] == "previous_response_id"
    assert (named.status, named.error["code"], named.error["param"]) == (404, "item_not_found", "input[0].id")


@pytest.mark.parametrize("ending", [{}, {"stream": True}, {"background": True}])
async def test_a_repeat_finds_its_stream_after_the_earlier_response_has_expired(
    open_api, ending, autojump_clock: MockClock
) -> None:
    async with open_api("Hi", 8, "!", retention_seconds=10) as api:
        autojump_clock.jump(-trio.current_time())
        first = (await api.post(PATH, {"input": "Why?"})).json
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        asks = [
            {"input": "And?", "previous_response_id": first["id"]} | ending,
            {"input": [reference, {"role": "user", "content": "So?"}]} | ending,
        ]
        made = [await api.post(PATH, ask, Idempotency_Key=f"k{n}") for n, ask in enumerate(asks)]
        autojump_clock.jump(25 - trio.current_time())  # the first has expired, the others have not
        again = [await api.post(PATH, ask, Idempotency_Key=f"k{n}") for n, ask in enumerate(asks)]
        for before, after in zip(made, again, strict=True):
            assert after.status == 200, after.body
            assert after.header("crucible-replayed") == "true"
            assert after.header("crucible-stream") == before.header("crucible-stream")
        assert len(api.engine.runs) == 3
        # Another request, a new key and no key are not repeats.
        other = await api.post(PATH, asks[0] | {"input": "Other?"}, Idempotency_Key="k0")
        assert (other.status, other.error["code"]) == (422, "idempotency_conflict")
        for headers in ({}, {"Idempotency_Key": "new"}):
            answer = await api.post(PATH, asks[0], **headers)
            assert (answer.status, answer.error["code"]) == (404, "previous_response_not_found")
        # The key that was tried in vain is free.
        assert (await api.post(PATH, {"input": "New?"}, Idempotency_Key="new")).status == 200


async def test_an_item_that_does_not_exist_yet_is_404(open_api, autojump_clock) -> None:
    async with open_api("Hi", 1_000, "there") as api:
        started = (await api.post(PATH, {"input": "Why?", "background": True})).json
        for number in (0, 1):  # the first is being written
            reference = {"id": f"msg_{started['id'].removeprefix('resp_')}_{number}"}
            answer = await api.post(PATH, {"input": [reference]})
            assert (answer.status, answer.error["param"]) == (404, "input[0].id")
        answer = await api.post(PATH, {"input": "And?", "previous_response_id": started["id"]})
        assert (answer.status, answer.error["param"]) == (400, "previous_response_id")


async def test_a_conversation_outlives_its_first_responses(open_api, scripted, autojump_clock: MockClock) -> None:
    async with open_api(engine=able(scripted, "Hi"), retention_seconds=10) as api:
        last = (await api.post(PATH, {"input": "0"})).json["id"]
        for number in range(1, 4):
            autojump_clock.jump(8)
            answer = await api.post(PATH, {"input": str(number), "previous_response_id": last})
            assert answer.status == 200
            last = answer.json["id"]
        texts = [message.text for message in api.engine.requests[-1].messages]
    assert texts == ["0", "Hi", "1", "Hi", "2", "Hi", "3"]


async def test_a_long_conversation_counts_each_turn_once(open_api, scripted, autojump_clock: MockClock) -> None:
    counted = []
    async with open_api(engine=able(scripted, "Hi")) as api:
        last = None
        for number in range(5):
            ask = {"input": f"{number}" * 10_000, "previous_response_id": last}
            last = (await api.post(PATH, ask)).json["id"]
            await trio.sleep(1)
            counted.append(api.pipeline.store.log_bytes)
        grown = [after - before for before, after in pairwise(counted)]
        assert all(10_000 < more < 14_000 for more in grown), grown
        # As long as one response holds them, all turns count.
        for stream in (await api.pipeline.list())[1:]:
            await api.pipeline.forget(stream)
        assert api.pipeline.store.log_bytes > 50_000
        await api.ask("DELETE", f"{PATH}/{last}")
        assert api.pipeline.store.log_bytes == 0


async def test_only_a_stored_response_keeps_its_input(open_api, autojump_clock: MockClock) -> None:
    async with open_api("Hi") as api:
        await api.chat(messages=[{"role": "user", "content": "q" * 10_000}])
        await api.post("/v1/streams", {"input": "q" * 10_000, "on_disconnect": "continue"})
        await api.post(PATH, {"input": "q" * 10_000, "store": False}, Idempotency_Key="k")
        await trio.sleep(1)
        assert api.pipeline.store.log_bytes < 10_000
        for stream in await api.pipeline.list():
            response_id = stream.id.replace("str_", "resp_")
            shown = await api.get(f"{PATH}/{response_id}")
            items = await api.get(f"{PATH}/{response_id}/input_items")
            following = await api.post(PATH, {"input": "And?", "previous_response_id": response_id})
            assert shown.status in {200, 404}  # 404: not stored
            assert (items.status, following.status) == (404, 404)
            assert following.error["code"] == "previous_response_not_found"


# The list


async def test_the_input_is_listed_as_items(open_api, scripted, autojump_clock: MockClock) -> None:
    parts = [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": PNG, "detail": "low"},
        {"type": "input_file", "file_url": "https://example.org/a.pdf", "filename": "a.pdf"},
    ]
    given = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": parts},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {"role": "assistant", "content": "Wait."},
        {"type": "function_call", "call_id": "c1", "name": "close", "namespace": "agents", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "patch", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": ""},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "ok"}, parts[1]],
        },
    ]
    async with open_api(engine=able(scripted, "Hi")) as api:
        answer = await api.post(PATH, {"input": given, "instructions": "Be short.", "tools": [AGENTS, PATCH]})
        listed = (await api.get(f"{PATH}/{answer.json['id']}/input_items?order=asc")).json
        assert api.engine.requests[0].messages[2].content == (
            TextPart("Look:"),
            ImagePart(PNG, "low"),
            FilePart("https://example.org/a.pdf", "a.pdf"),
        )
    suffix = answer.json["id"].removeprefix("resp_")
    kinds = ["msg", "msg", "rs", "msg", "fc", "ctc", "fco", "cto"]
    assert [item.pop("id") for item in listed["data"]] == [f"{kind}_{suffix}_in{n}" for n, kind in enumerate(kinds)]
    assert all(item.pop("status") == "completed" for item in listed["data"])
    said = {"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}
    assert listed["data"] == [
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"type": "message", "role": "user", "content": parts},
        given[2],
        {"type": "message", "role": "assistant", "content": [said]},
        *given[4:],
    ]


async def test_the_list_is_paged(open_api, scripted, autojump_clock: MockClock) -> None:
    given = [{"role": "user", "content": str(number)} for number in range(25)]
    async with open_api(engine=able(scripted, "Hi")) as api:
        url = f"{PATH}/{(await api.post(PATH, {'input': given})).json['id']}/input_items"

        async def page(query: str) -> tuple[list[str], Any]:
            answer = (await api.get(f"{url}?{query}")).json
            ResponseItemList.model_validate(answer | {"first_id": "", "last_id": ""})
            return [item["content"][0]["text"] for item in answer["data"]], answer

        texts, first = await page("")
        assert (texts, first["has_more"]) == ([str(24 - number) for number in range(20)], True)
        texts, rest = await page(f"after={first['last_id']}&include[]=message.input_image.image_url")
        assert (texts, rest["has_more"]) == (["4", "3", "2", "1", "0"], False)
        assert (rest["first_id"], rest["last_id"]) == (rest["data"][0]["id"], rest["data"][-1]["id"])
        texts, empty = await page(f"after={rest['last_id']}")
        assert (texts, empty["first_id"], empty["last_id"]) == ([], None, None)
        assert (await page("order=asc&limit=2"))[0] == ["0", "1"]
        for query, param in (
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("order=up", "order"),
            ("after=x", "after"),
            ("x=1", "x"),
        ):
            answer = await api.get(f"{url}?{query}")
            assert (answer.status, answer.error["param"]) == (400, param)


async def test_only_its_owner_lists_the_input_of_a_stored_response(open_api, autojump_clock) -> None:
    alice, bob = {"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}
    async with open_api("Hi", keys={"alice": "a", "bob": "b"}) as api:
        stored = (await api.post(PATH, {"input": "Why?"}, **alice)).json["id"]
        assert (await api.get(f"{PATH}/{stored}/input_items", **alice)).status == 200
        assert (await api.get(f"{PATH}/{stored}/input_items", **bob)).status == 404
