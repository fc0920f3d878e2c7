"""Tools, formats and parts in response requests: what reaches the engine, and how it comes back."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from trio.testing import MockClock

from crucible_trio.apis.kit.hosted import HostedToolsLog
from crucible_trio.engine import Capabilities
from crucible_trio.errors import EngineError
from crucible_trio.request import (
    AudioPart,
    FilePart,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Parameters,
    Request,
    Sampling,
    TextFormat,
    TextPart,
    Tool,
    ToolCall,
)
from crucible_trio.testing import CallTool

PATH = "/v1/responses"
NO_URLS = ("file:///etc/passwd", "AAAAjunk", "data:text/plain", "http:", "//x/a.png", " https://x/a.png")
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "More agents.",
    "tools": [
        {"type": "function", "name": "close", "description": "Close one.", "parameters": SCHEMA, "strict": False},
        {"type": "custom", "name": "shout"},
    ],
}
PATCH = {
    "type": "custom",
    "name": "patch",
    "description": "Patch a file.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"},
}
TEXT_INPUT = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
ABLE = Capabilities.of(Capabilities.__dataclass_fields__, Sampling.__struct_fields__)
USER = {"role": "user", "content": "Why?"}
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "c1",
    "name": "weather",
    "arguments": "{}",
    "status": "completed",
}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "31"}
PNG = "data:image/png;base64,AAAA"


async def asked(open_api: Any, scripted: Any, **fields: Any) -> Request:
    """The request that reaches the engine."""
    async with open_api(engine=scripted("Hi", capabilities=ABLE)) as api:
        answer = await api.post(PATH, {"input": "Why?"} | fields)
        assert answer.status == 200, answer.body
        [request] = api.engine.requests
        return request


async def refusal(open_api: Any, scripted: Any, can: Capabilities = ABLE, **fields: Any) -> tuple[Any, Any]:
    """The code and the field of a refused request."""
    async with open_api(engine=scripted("Hi", capabilities=can)) as api:
        answer = await api.post(PATH, {"input": "Why?"} | fields)
        assert answer.status == 400, answer.body
        assert api.engine.requests == []
        return answer.error["code"], answer.error["param"]


SEARCH = {"type": "web_search"}


def allowed(mode: str, *tools: object) -> dict[str, object]:
    return {"type": "allowed_tools", "mode": mode, "tools": tools}


# Tools


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "weather"}, NamedTool("weather")),
        ({"type": "function", "name": "close", "namespace": "agents"}, NamedTool("agents__close")),
        ({"type": "custom", "name": "patch"}, NamedTool("patch")),
    ],
)
async def test_tools_reach_the_engine_and_are_repeated_as_they_came(
    open_api, scripted, choice, expected, autojump_clock: MockClock
) -> None:
    search = {"type": "web_search", "external_web_access": True}
    given = {
        "tools": [WEATHER, search, AGENTS, PATCH],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tool_calls": 3,
    }
    async with open_api(engine=scripted("Hi", capabilities=ABLE)) as api:
        answer = await api.post(PATH, {"input": "Why?"} | given)
        shown = await api.get(f"{PATH}/{answer.json['id']}")
        [request] = api.engine.requests
    assert request.parameters == Parameters(
        tools=(
            Tool("weather", None, SCHEMA, True),
            Tool("agents__close", "Close one.", SCHEMA, False),
            Tool("agents__shout", None, TEXT_INPUT),
            Tool("patch", request.parameters.tools[3].description, TEXT_INPUT),
        ),
        tool_choice=expected,
        parallel_tool_calls=False,
    )
    assert request.parameters.tools[3].description.startswith("Patch a file.\n\n")
    assert '"syntax":"lark"' in request.parameters.tools[3].description
    shout = {"type": "custom", "name": "shout", "description": None, "format": {"type": "text"}}
    assert answer.json["tools"] == [
        WEATHER | {"description": None},
        AGENTS | {"tools": [AGENTS["tools"][0], shout]},
        PATCH,
    ]
    assert {name: answer.json[name] for name in given if name != "tools"} == {
        name: value for name, value in given.items() if name != "tools"
    }
    assert answer.header("crucible-ignored") == "tools.web_search"
    assert shown.json == answer.json
    assert len(Response.model_validate(answer.json).tools) == 3


async def test_calls_come_back_under_the_names_that_the_client_knows(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    steps = (
        CallTool("agents__close", ('{"ci', 'ty": "Rome"}'), "c1"),
        CallTool("patch", ('{"inp', 'ut": "*** \\"Begin"}'), "c2"),
        CallTool("agents__shout", "not what was asked", "c3"),
        CallTool("weather", "{}", "c4"),
        CallTool("undeclared", "{}", "c5"),
    )
    async with open_api(engine=scripted(*steps, capabilities=ABLE)) as api:
        answer = await api.post(PATH, {"input": "Why?", "stream": True, "tools": [WEATHER, AGENTS, PATCH]})
        events = answer.events
        response = events[-1]["response"]
        replay = await api.get(f"{PATH}/{response['id']}?stream=true")
    assert replay.body == answer.body
    suffix = response["id"].removeprefix("resp_")
    assert response["output"] == [
        {
            "type": "function_call",
            "id": f"fc_{suffix}_0",
            "status": "completed",
            "call_id": "c1",
            "name": "close",
            "arguments": '{"city": "Rome"}',
            "namespace": "agents",
        },
        {
            "type": "custom_tool_call",
            "id": f"ctc_{suffix}_1",
            "status": "completed",
            "call_id": "c2",
            "name": "patch",
            "input": '*** "Begin',
        },
        {
            "type": "custom_tool_call",
            "id": f"ctc_{suffix}_2",
            "status": "completed",
            "call_id": "c3",
            "name": "shout",
            "input": "not what was asked",
            "namespace": "agents",
        },
        {
            "type": "function_call",
            "id": f"fc_{suffix}_3",
            "status": "completed",
            "call_id": "c4",
            "name": "weather",
            "arguments": "{}",
        },
        {
            "type": "function_call",
            "id": f"fc_{suffix}_4",
            "status": "completed",
            "call_id": "c5",
            "name": "undeclared",
            "arguments": "{}",
        },
    ]
    custom = [event for event in events if event.get("item_id") == f"ctc_{suffix}_1"]
    assert [(event["type"], event.get("delta", event.get("input"))) for event in custom] == [
        ("response.custom_tool_call_input.delta", '*** "Begin'),
        ("response.custom_tool_call_input.done", '*** "Begin'),
    ]
    adapter = TypeAdapter(ResponseStreamEvent)
    assert [adapter.validate_python(event).type for event in events] == [event["type"] for event in events]


async def test_a_custom_call_that_broke_off_has_no_input(open_api, scripted, autojump_clock: MockClock) -> None:
    cut = CallTool("patch", ('{"input": "rm -rf /', EngineError("x", "The model is gone.")))
    async with open_api(engine=scripted(cut, capabilities=ABLE)) as api:
        answer = await api.post(PATH, {"input": "Why?", "stream": True, "tools": [PATCH]})
    last = answer.events[-1]
    assert last["type"] == "response.failed"
    assert [(item["status"], item["input"]) for item in last["response"]["output"]] == [("incomplete", "")]
    assert not any("custom_tool_call_input" in event["type"] for event in answer.events)


async def test_long_and_strange_names_are_told_apart(open_api, scripted, autojump_clock: MockClock) -> None:
    def namespace(name: str, *tools: str) -> dict[str, object]:
        return {"type": "namespace", "name": name, "tools": [{"type": "function", "name": tool} for tool in tools]}

    tools = [
        namespace("n" * 60, "first", "second"),
        namespace("mcp: files", "read"),
        namespace("a", "b__c"),
        namespace("a__b", "c"),
        {"type": "function", "name": "a__b__c"},
    ]
    request = await asked(open_api, scripted, tools=tools)
    names = [tool.name for tool in request.parameters.tools]
    assert names[-1] == "a__b__c"
    assert len(set(names)) == len(names) == 6
    assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in names)
    again = await asked(open_api, scripted, tools=tools)
    assert [tool.name for tool in again.parameters.tools] == names
    history = [
        USER,
        CALL | {"name": "c", "namespace": "a__b", "call_id": "c1"},
        CALL | {"name": "second", "namespace": "n" * 60, "call_id": "c2"},
        CALL | {"name": "gone", "namespace": "agents", "call_id": "c3"},
    ]
    request = await asked(open_api, scripted, tools=tools, input=history)
    assert [call.name for call in request.messages[-1].tool_calls] == [names[4], names[1], "agents__gone"]


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_only_the_allowed_tools_are_offered(open_api, scripted, mode: str, autojump_clock: MockClock) -> None:
    close = {"type": "function", "name": "close", "namespace": "agents"}
    async with open_api(engine=scripted("Hi", capabilities=ABLE)) as api:
        tools = [WEATHER, PATCH, AGENTS, SEARCH, {"type": "function", "name": "news"}]
        choice = allowed(mode, {"type": "custom", "name": "patch"}, close, SEARCH, {"type": "function", "name": "news"})
        answer = await api.post(PATH, {"input": "Why?", "tools": tools, "tool_choice": choice})
        [request] = api.engine.requests
    assert [tool.name for tool in request.parameters.tools] == ["patch", "agents__close", "news"]
    assert request.parameters.tool_choice == answer.json["tool_choice"] == mode
    assert [tool["name"] for tool in answer.json["tools"]] == ["patch", "agents", "news"]
    assert answer.header("crucible-ignored") == "tools.web_search, tool_choice.web_search"


async def test_each_type_of_hosted_tool_is_logged_once(open_api, autojump_clock, caplog) -> None:
    caplog.set_level("INFO", "crucible_trio.apis.kit.hosted")
    async with open_api("Hi") as api:
        for _ in range(2):
            await api.post(PATH, {"input": "Why?", "tools": [{"type": "web_search"}, {"type": "tool_search"}]})
    assert [record.args for record in caplog.records] == [("web_search",), ("tool_search",)]


def test_clients_cannot_fill_the_log_with_types_of_tools(caplog) -> None:
    caplog.set_level("INFO", "crucible_trio.apis.kit.hosted")
    log = HostedToolsLog()
    for number in range(1000):
        log.add([f"search_{number}"])
    assert [record.args for record in caplog.records] == [(f"search_{number}",) for number in range(50)]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": "x"}, "invalid_request", "tools"),
        ({"tools": [7]}, "invalid_request", "tools[0]"),
        ({"tools": [{"name": "f"}]}, "invalid_request", "tools[0].type"),
        ({"tools": [{"type": ["function"]}]}, "invalid_request", "tools[0].type"),
        ({"tools": [WEATHER, {"type": "function"}]}, "invalid_request", "tools[1].name"),
        ({"tools": [{"type": "function", "name": ["f"]}]}, "invalid_request", "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 7}]}, "invalid_request", "tools[0].parameters"),
        ({"tools": [{"type": "custom", "name": ""}]}, "invalid_request", "tools[0].name"),
        ({"tools": [{"type": "custom", "name": "f", "format": "x"}]}, "invalid_request", "tools[0].format"),
        ({"tools": [WEATHER, {"type": "custom", "name": "weather"}]}, "invalid_request", "tools[1].name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": 7}]}, "invalid_request", "tools[0].tools"),
        ({"tools": [AGENTS, AGENTS, AGENTS]}, "invalid_request", "tools[2].tools[0].name"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
            "invalid_request",
            "tools[0].tools[0].name",
        ),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]},
            "unsupported_parameter",
            "tools[0].tools[0].type",
        ),
        ({"tools": [WEATHER], "tool_choice": "x"}, "invalid_request", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "invalid_request", "tool_choice.tools"),
        ({"tools": [WEATHER], "tool_choice": allowed("none", WEATHER)}, "invalid_request", "tool_choice.mode"),
        ({"tools": [WEATHER], "tool_choice": allowed("auto", PATCH)}, "invalid_request", "tool_choice.tools"),
        ({"tools": [WEATHER], "tool_choice": allowed("auto", {})}, "invalid_request", "tool_choice.tools[0].type"),
        (
            {"tools": [AGENTS], "tool_choice": allowed("auto", AGENTS)},
            "unsupported_parameter",
            "tool_choice.tools[0].type",
        ),
        (
            {"tools": [SEARCH, WEATHER], "tool_choice": allowed("required", SEARCH)},
            "unsupported_parameter",
            "tool_choice",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "invalid_request", "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "lost"}}, "invalid_request", "tool_choice"),
        ({"input": [USER, {"type": "item_reference", "id": None}]}, "invalid_request", "input[1].id"),
        ({"input": [USER, {"type": "item_reference"}]}, "invalid_request", "input[1].id"),
        ({"parallel_tool_calls": 7}, "invalid_request", "parallel_tool_calls"),
    ],
)
async def test_an_invalid_tool_is_refused_by_name(
    open_api, scripted, fields, code, param, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, scripted, **fields) == (code, param)


async def test_a_thousand_tools_pass(open_api, scripted, autojump_clock: MockClock) -> None:
    tools = [{"type": "function", "name": f"f{number}"} for number in range(1_000)]
    assert len((await asked(open_api, scripted, tools=tools)).parameters.tools) == 1_000


# Items


def reasoning(text: str) -> dict[str, object]:
    return {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": text}]}


def said(text: str) -> dict[str, object]:
    part = {"type": "output_text", "text": text, "annotations": [{"type": "x"}], "logprobs": []}
    return {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}


def part(kind: str, **fields: object) -> dict[str, object]:
    return {"role": "user", "content": [{"type": kind} | fields]}


MADE = ToolCall("c1", "weather", "{}")
ASKED = Message("user", "Why?")
GOT = Message("tool", "31", tool_call_id="c1")


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([CALL, RESULT], [Message("assistant", tool_calls=(MADE,)), GOT]),
        (
            [reasoning("Hm"), said("Wait."), CALL, RESULT],
            [Message("assistant", "Wait.", tool_calls=(MADE,), reasoning="Hm"), GOT],
        ),
        # Text after a call belongs to the same turn: a server wants the result right after the message with the call.
        ([CALL, said("Wait."), RESULT], [Message("assistant", "Wait.", tool_calls=(MADE,)), GOT]),
        ([said("A"), CALL, said("B"), RESULT], [Message("assistant", "AB", tool_calls=(MADE,)), GOT]),
        (
            [CALL, CALL | {"call_id": "c2"}, RESULT, RESULT | {"call_id": "c2", "output": None}],
            [
                Message("assistant", tool_calls=(MADE, ToolCall("c2", "weather", "{}"))),
                GOT,
                Message("tool", None, tool_call_id="c2"),
            ],
        ),
        (
            [reasoning("A"), CALL, RESULT, reasoning("B"), said("Hot.")],
            [
                Message("assistant", tool_calls=(MADE,), reasoning="A"),
                GOT,
                Message("assistant", "Hot.", reasoning="B"),
            ],
        ),
        ([reasoning("A"), said("Hel"), reasoning("B"), said("lo")], [Message("assistant", "Hello", reasoning="AB")]),
        ([said("One."), said("Two.")], [Message("assistant", "One."), Message("assistant", "Two.")]),
        ([reasoning("cut"), USER], [ASKED]),
        ([CALL | {"status": "incomplete", "arguments": '{"ci'}, USER], [ASKED]),
        ([CALL | {"status": "incomplete"}, RESULT], [Message("assistant", tool_calls=(MADE,)), GOT]),
        ([RESULT], [GOT]),  # the upstream's to judge
        (
            [
                {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a "b"', "id": "ctc_1"},
                {"type": "custom_tool_call_output", "call_id": "c1", "output": "31"},
            ],
            [Message("assistant", tool_calls=(ToolCall("c1", "patch", '{"input":"a \\"b\\""}'),)), GOT],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "phase": "final_answer"}],
            [Message("assistant", "No.")],
        ),
        ([{"role": "assistant", "content": "Hm", "made_up": 1, "provider_data": {}}], [Message("assistant", "Hm")]),
        (
            [RESULT | {"output": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PNG}]}],
            [Message("tool", (TextPart("a"), ImagePart(PNG)), tool_call_id="c1")],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": PNG, "detail": "low", "file_id": None},
                        {"type": "input_file", "file_data": "data:text/plain;base64,AA", "filename": "a.txt"},
                        {"type": "input_file", "file_url": "https://example.org/b.pdf"},
                        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
                    ],
                }
            ],
            [
                Message(
                    "user",
                    (
                        ImagePart(PNG, "low"),
                        FilePart("data:text/plain;base64,AA", "a.txt"),
                        FilePart("https://example.org/b.pdf"),
                        AudioPart("AA", "wav"),
                    ),
                )
            ],
        ),
    ],
)
async def test_items_become_messages(open_api, scripted, items, messages, autojump_clock: MockClock) -> None:
    request = await asked(open_api, scripted, input=[USER, *items])
    assert list(request.messages) == [ASKED, *messages]


async def test_tools_in_the_input_are_tools(open_api, scripted, autojump_clock: MockClock) -> None:
    more = {"type": "additional_tools", "role": "developer", "tools": [AGENTS]}
    request = await asked(open_api, scripted, input=[more, USER], tools=[WEATHER])
    assert [tool.name for tool in request.parameters.tools] == ["weather", "agents__close", "agents__shout"]
    assert request.messages == (ASKED,)


async def test_an_unknown_field_of_a_result_is_named_and_refused_by_a_setting(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    known = {"id": "fc_1", "status": "completed"}
    for strict, status, param, header in ((False, 200, None, "input[].zz"), (True, 400, "input[2].zz", None)):
        async with open_api(engine=scripted("Hi", capabilities=Capabilities(tools=True)), strict_fields=strict) as api:
            answer = await api.post(PATH, {"input": [USER, CALL | {"zz": 1}, RESULT | known | {"zz": 1}]})
            assert answer.status == status, answer.body
            assert answer.headers.get("crucible-ignored") == header
            if param:
                assert (answer.error["code"], answer.error["param"]) == ("unknown_parameter", param)


async def test_a_trace_goes_only_to_a_model_that_takes_it(open_api, scripted, autojump_clock: MockClock) -> None:
    async with open_api(engine=scripted("Hi", capabilities=Capabilities(tools=True))) as api:
        answer = await api.post(PATH, {"input": [USER, reasoning("Hm"), CALL, RESULT]})
        assert answer.status == 200, answer.body
        [request] = api.engine.requests
    assert request.messages[1] == Message("assistant", tool_calls=(MADE,))


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({"type": "additional_tools", "tools": 7}, "invalid_request", "tools"),
        ({"type": "additional_tools", "tools": [{}]}, "invalid_request", "tools[0].type"),
        (CALL | {"call_id": None}, "invalid_request", "call_id"),
        (CALL | {"call_id": ""}, "invalid_request", "call_id"),
        (CALL | {"name": "n" * 257}, "invalid_request", "name"),
        (CALL | {"arguments": {}}, "invalid_request", "arguments"),
        (RESULT | {"call_id": ["c"]}, "invalid_request", "call_id"),
        (RESULT | {"output": 7}, "invalid_request", "output"),
        (RESULT | {"output": [{"type": "x"}]}, "unsupported_parameter", "output[0].type"),
        (part("input_image"), "invalid_request", "content[0].image_url"),
        (part("input_image", file_id="f"), "unsupported_parameter", "content[0].file_id"),
        (part("input_file"), "invalid_request", "content[0].file_data"),
        *((part("input_image", image_url=url), "invalid_request", "content[0].image_url") for url in NO_URLS),
        *((part("input_file", file_data=url), "invalid_request", "content[0].file_data") for url in NO_URLS),
        *((part("input_file", file_url=url), "invalid_request", "content[0].file_url") for url in NO_URLS),
        (part("input_audio", input_audio={}), "invalid_request", "content[0].input_audio.data"),
        ({"type": "function"}, "unsupported_parameter", "type"),
    ],
)  # fmt: skip
async def test_an_invalid_item_is_refused_by_name(
    open_api, scripted, item, code, param, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, scripted, input=[USER, item]) == (code, f"input[1].{param}")


# Formats and the rest


@pytest.mark.parametrize(
    ("wanted", "expected", "echoed"),
    [
        (None, None, {"type": "text"}),
        ({"type": "text"}, TextFormat(), {"type": "text"}),
        ({"type": "json_object"}, JsonObjectFormat(), {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "description": None},
            JsonSchemaFormat("n", SCHEMA),
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "description": None, "strict": False},
        ),
        (
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True, "description": "d"},
            JsonSchemaFormat("n", SCHEMA, True, "d"),
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True, "description": "d"},
        ),
    ],
)
async def test_a_text_format_reaches_the_engine_and_is_repeated(
    open_api, scripted, wanted, expected, echoed, autojump_clock: MockClock
) -> None:
    can = Capabilities(structured_output=True, sampling=frozenset({"verbosity"}))
    async with open_api(engine=scripted("{}", capabilities=can)) as api:
        answer = await api.post(PATH, {"input": "Why?", "text": {"format": wanted, "verbosity": "low"}})
        [request] = api.engine.requests
    assert request.parameters == Parameters(response_format=expected, verbosity="low")
    assert answer.json["text"] == {"format": echoed, "verbosity": "low"}
    assert not answer.has_header("crucible-ignored")


async def test_log_probabilities_and_penalties_reach_the_engine(open_api, scripted, autojump_clock: MockClock) -> None:
    request = await asked(open_api, scripted, include=["message.output_text.logprobs"], presence_penalty=0.5)
    assert (request.parameters, request.sampling) == (Parameters(logprobs=True), Sampling(presence_penalty=0.5))
    request = await asked(open_api, scripted, top_logprobs=3, frequency_penalty=-1)
    assert request.parameters == Parameters(logprobs=True, top_logprobs=3)
    assert request.sampling == Sampling(frequency_penalty=-1)


async def test_the_response_has_every_field_that_open_responses_requires(open_api, autojump_clock) -> None:
    async with open_api("Hi") as api:
        bare = (await api.post(PATH, {"input": "Why?"})).json
        named = {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "max_tool_calls": 2}
        assert (await api.post(PATH, {"input": "Why?"} | named)).json.items() >= named.items()
    required = (
        "id object created_at completed_at status incomplete_details model previous_response_id instructions output "
        "error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty "
        "top_logprobs temperature reasoning user usage max_output_tokens max_tool_calls store background service_tier "
        "metadata safety_identifier prompt_cache_key"
    )
    assert bare.keys() >= set(required.split())
    for name in ("created_at", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature"):
        assert isinstance(bare[name], (int, float)), name
    defaults = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "truncation": "disabled"}
    assert bare.items() >= defaults.items()


@pytest.mark.parametrize("path", ["/v1/streams", "/v1/chat/completions"])
async def test_a_response_that_another_api_started_shows_its_tools(
    open_api, scripted, path, autojump_clock: MockClock
) -> None:
    parameters = {
        "tools": [{"name": "weather", "parameters": SCHEMA, "strict": True}],
        "tool_choice": {"name": "weather"},
    }
    wrapped = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}
    bodies = {
        "/v1/streams": {"input": "Why?", "parameters": parameters},
        "/v1/chat/completions": {
            "messages": [USER],
            "tools": [wrapped],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    }
    async with open_api(engine=scripted("Hi", capabilities=ABLE)) as api:
        answer = await api.post(path, bodies[path], Idempotency_Key="k")
        shown = await api.get(f"{PATH}/{answer.header('location').rpartition('/')[2].replace('str_', 'resp_')}")
    assert shown.json["tools"] == [WEATHER | {"description": None}]
    assert shown.json["tool_choice"] == {"type": "function", "name": "weather"}
