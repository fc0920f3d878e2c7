"""Tools in chat completions: the request that the engine gets, and the answer that the client gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trio.testing import MockClock

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, Finish
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.request import (
    AudioPart,
    FilePart,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    Message,
    NamedTool,
    Parameters,
    TextFormat,
    TextPart,
    Tool,
    ToolCall,
)
from crucible_trio.testing import CallTool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
USER = {"role": "user", "content": "Hot?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "31"}
FAULTY = {"name": "n", "arguments": 7}
PNG = "data:image/png;base64,AAAA"
NO_URLS = ("file:///etc/passwd", "AAAAjunk", "data:text/plain", "http:", "//x/a.png", " https://x/a.png")


async def asked(open_api: Any, scripted: Any, capabilities: Capabilities = UPSTREAM_CAPABILITIES, **fields: Any) -> Any:
    """The request that the engine gets."""
    async with open_api(engine=scripted("a", capabilities=capabilities)) as api:
        answer = await api.chat(**fields)
        assert answer.status == 200, answer.body
        return api.engine.requests[0]


async def refusal(
    open_api: Any, scripted: Any, capabilities: Capabilities = UPSTREAM_CAPABILITIES, **fields: Any
) -> Any:
    """Code and param of the refusal."""
    async with open_api(engine=scripted("a", capabilities=capabilities)) as api:
        answer = await api.chat(**fields)
        assert (answer.status, await api.pipeline.list()) == (400, []), answer.body
        return answer.error["code"], answer.error["param"]


def calls(*entries: object) -> dict[str, object]:
    return {"role": "assistant", "content": None, "tool_calls": list(entries)}


def part(fields: object) -> dict[str, object]:
    return {"role": "user", "content": [fields]}


TIME, NEWS = ({"type": "function", "function": {"name": name}} for name in ("time", "news"))


def allowed(mode: str | None, *names: str) -> dict[str, object]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"tools": tools} | ({} if mode is None else {"mode": mode})}


# Tools


@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({"tools": [WEATHER]}, Parameters(tools=(Tool("weather", None, SCHEMA),))),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "cache_control": {},
                        "function": {
                            "name": "f",
                            "description": "d",
                            "parameters": None,
                            "strict": True,
                        },
                    },
                    WEATHER,
                ],
                "tool_choice": {"type": "function", "function": {"name": "f"}},
                "parallel_tool_calls": False,
            },
            Parameters(
                tools=(Tool("f", "d", None, True), Tool("weather", None, SCHEMA)),
                tool_choice=NamedTool("f"),
                parallel_tool_calls=False,
            ),
        ),
        *[
            (
                {"tools": [WEATHER], "tool_choice": choice},
                Parameters(tools=(Tool("weather", None, SCHEMA),), tool_choice=word),
            )
            for choice, word in (
                ("auto", "auto"),
                ("none", "none"),
                ("required", "required"),
                ("any", "required"),
                ({"type": "auto"}, "auto"),
                ({"type": "function", "name": "weather"}, NamedTool("weather")),
                (None, None),
            )
        ],
        *[
            (
                {"tools": [TIME, WEATHER, NEWS], "tool_choice": allowed(mode, "weather", "time")},
                Parameters(tools=(Tool("time"), Tool("weather", None, SCHEMA)), tool_choice=mode or "auto"),
            )
            for mode in ("auto", "required", None)
        ],
        ({"tools": [WEATHER], "tool_choice": allowed("auto")}, Parameters(tool_choice="auto")),
        ({"tool_choice": "none"}, Parameters(tool_choice="none")),
        ({"tools": [], "tool_choice": "auto"}, Parameters(tool_choice="auto")),
        ({"response_format": {"type": "text"}}, Parameters(response_format=TextFormat())),
        ({"response_format": {"type": "json_object"}}, Parameters(response_format=JsonObjectFormat())),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            Parameters(response_format=JsonSchemaFormat("n", SCHEMA, True)),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "description": "d", "strict": None},
                }
            },
            Parameters(response_format=JsonSchemaFormat("n", {}, description="d")),
        ),
    ],
)
async def test_tools_and_formats_reach_the_engine(
    open_api, scripted, fields, parameters, autojump_clock: MockClock
) -> None:
    assert (await asked(open_api, scripted, **fields)).parameters == parameters


async def test_a_servers_own_response_format_goes_on_unread(open_api, scripted, autojump_clock: MockClock) -> None:
    for wanted in ({"type": "grammar", "grammar": "x"}, {"type": "json_object", "schema": SCHEMA}):
        request = await asked(open_api, scripted, response_format=wanted)
        assert (request.parameters, request.extra) == (Parameters(), {"response_format": wanted})


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": "x"}, "invalid_request", "tools"),
        ({"tools": [7]}, "invalid_request", "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [{"type": ["x"]}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "invalid_request", "tools[0].function"),
        ({"tools": [WEATHER, {"type": "function", "function": {}}]}, "invalid_request", "tools[1].function.name"),
        ({"tools": [{"function": {"name": ""}}]}, "invalid_request", "tools[0].function.name"),
        ({"tools": [{"function": {"name": "n" * 257}}]}, "invalid_request", "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "n", "parameters": "x"}}]},
            "invalid_request",
            "tools[0].function.parameters",
        ),
        ({"tools": [{"function": {"name": "n", "strict": "x"}}]}, "invalid_request", "tools[0].function.strict"),
        ({"tools": [{"function": {"name": "n", "x": 1}}]}, "unknown_parameter", "tools[0].function.x"),
        ({"tools": [{"function": {"name": "n"}, "x": 1}]}, "unknown_parameter", "tools[0].x"),
        ({"tools": [WEATHER], "tool_choice": "x"}, "invalid_request", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": 7}, "invalid_request", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "unsupported_parameter", "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "invalid_request", "tool_choice.function.name"),
        ({"tools": [WEATHER], "tool_choice": {"name": 7}}, "invalid_request", "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"name": "lost"}}, "invalid_request", "tool_choice"),
        ({"top_logprobs": 3}, "invalid_request", "top_logprobs"),
        ({"logit_bias": {"5": "x"}}, "invalid_request", "logit_bias"),
        ({"tools": [WEATHER], "tool_choice": {"function": {}}}, "invalid_request", "tool_choice.function.name"),
        ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": allowed("required")}, "unsupported_parameter", "tool_choice"),
        *[
            ({"tools": [WEATHER], "tool_choice": choice}, code, f"tool_choice.allowed_tools{place}")
            for choice, code, place in (
                ({"type": "allowed_tools"}, "invalid_request", ""),
                (allowed("none", "weather"), "invalid_request", ".mode"),
                (allowed("auto", "weather", "time"), "invalid_request", ".tools"),
                (allowed("auto", ""), "invalid_request", ".tools[0].function.name"),
                ({"type": "allowed_tools", "allowed_tools": {"tools": "x"}}, "invalid_request", ".tools"),
                (
                    {"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "custom"}]}},
                    "unsupported_parameter",
                    ".tools[0].type",
                ),
            )
        ],
        ({"parallel_tool_calls": 7}, "invalid_request", "parallel_tool_calls"),
        ({"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "invalid_request",
            "response_format.json_schema.name",
        ),
        ({"response_format": "json"}, "invalid_request", "response_format"),
    ],
)
async def test_an_invalid_tool_or_format_is_refused_by_name(
    open_api, scripted, fields, code, param, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, scripted, **fields) == (code, param)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"role": "tool", "content": "x"}, "invalid_request", "tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": ""}, "invalid_request", "tool_call_id"),
        (calls(7), "invalid_request", "tool_calls[0]"),
        (calls({}), "invalid_request", "tool_calls[0].function"),
        (calls(CALL, CALL | {"id": None}), "invalid_request", "tool_calls[1].id"),
        (calls(CALL | {"type": "custom"}), "unsupported_parameter", "tool_calls[0].type"),
        (calls(CALL | {"function": FAULTY}), "invalid_request", "tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": 7}, "invalid_request", "tool_calls"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "unsupported_parameter", "function_call"),
        (part({"type": "image_url"}), "invalid_request", "content[0].image_url"),
        (part({"type": "image_url", "image_url": {"url": ""}}), "invalid_request", "content[0].image_url.url"),
        (part({"type": "image_url", "image_url": {"url": PNG, "x": 1}}), "unknown_parameter", "content[0].image_url.x"),
        (part({"type": "file", "file": {"file_id": "f"}}), "unsupported_parameter", "content[0].file.file_id"),
        *(
            (part({"type": "image_url", "image_url": image}), "invalid_request", "content[0].image_url.url")
            for url in (*NO_URLS, "data:text/plain;base64,AA")
            for image in (url, {"url": url})
        ),
        *(
            (part({"type": "file", "file": {"file_data": url}}), "invalid_request", "content[0].file.file_data")
            for url in NO_URLS
        ),
        (part({"type": "file", "file": {"file_data": ""}}), "invalid_request", "content[0].file.file_data"),
        (part({"type": "input_audio", "input_audio": {}}), "invalid_request", "content[0].input_audio.data"),
        (part({"type": ["x"]}), "unsupported_parameter", "content[0].type"),
    ],
)  # fmt: skip
async def test_an_invalid_message_is_refused_by_name(
    open_api, scripted, message, code, param, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, scripted, messages=[USER, message]) == (code, f"messages[1].{param}")


async def test_a_value_that_is_nested_too_deeply_is_refused_by_name(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"x": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    for fields in ({"tools": [tool]}, {"x": deep}, {"response_format": {"type": "x", "y": deep}}):
        assert await refusal(open_api, scripted, **fields) == ("invalid_request", next(iter(fields)))


# An engine that cannot


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}, "messages[1].tool_calls"),
        ({"messages": [USER, RESULT]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
async def test_what_changes_the_answer_is_refused_by_name_if_the_engine_cannot(
    open_api, scripted, fields, param, autojump_clock: MockClock
) -> None:
    assert await refusal(open_api, scripted, Capabilities(), **fields) == ("unsupported_parameter", param)


async def test_tools_that_must_not_be_called_are_no_reason_to_refuse(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    async with open_api(engine=scripted("a", capabilities=Capabilities())) as api:
        answer = await api.chat(tools=[WEATHER], tool_choice="none", parallel_tool_calls=True)
        assert answer.status == 200


# Messages


async def test_calls_and_results_of_earlier_turns_reach_the_engine(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0}]},
        RESULT,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL | {"id": "c2"}, CALL | {"id": "c3"}]},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "tool", "tool_call_id": "c3", "content": "", "name": "weather"},
        {"role": "assistant", "tool_calls": [{"id": "c4", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "assistant", "tool_calls": [{"id": "c5", "function": {"name": "f", "arguments": None}}]},
    ]
    call = ToolCall("c1", "weather", '{"city": "Rome"}')
    assert (await asked(open_api, scripted, messages=messages)).input == (
        Message("user", "Hot?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", "31", tool_call_id="c1"),
        Message(
            "assistant",
            "Let me see.",
            tool_calls=(ToolCall("c2", call.name, call.arguments), ToolCall("c3", call.name, call.arguments)),
        ),
        Message("tool", "a\nb", tool_call_id="c2"),
        Message("tool", tool_call_id="c3"),
        Message("assistant", tool_calls=(ToolCall("c4", "f", '{"a":1}'),)),
        Message("assistant", tool_calls=(ToolCall("c5", "f", ""),)),
    )


HISTORY: dict[str, object] = {
    "id": "msg_1",
    "refusal": None,
    "annotations": [{"type": "url_citation"}],
    "audio": {"id": "a"},
    "provider_specific_fields": {"x": 1},
    "thinking_blocks": [{"type": "thinking", "thinking": "Hm"}],
    "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}],
    "reasoning_content": "Hm",
    "reasoning": {"x": 1},
    "images": [],
    "name": "Ann",
    "tool_call_id": "c9",
}


@pytest.mark.parametrize("name", HISTORY)
async def test_nothing_inside_an_earlier_answer_is_refused(open_api, scripted, name, autojump_clock: MockClock) -> None:
    messages = [USER, {"role": "assistant", "content": "Yes.", name: HISTORY[name]}, USER]
    for capabilities in (UPSTREAM_CAPABILITIES, Capabilities()):
        request = await asked(open_api, scripted, capabilities, messages=messages)
        assert request.input[1] == Message("assistant", "Yes.")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "text", "text": "Yes.", "role": "assistant", "refusal": None, "x": {}}]}, "Yes."),
        ({"content": [{"type": "output_text", "text": "Yes.", "annotations": [], "logprobs": []}]}, "Yes."),
        ({"content": [{"type": "refusal", "refusal": "No.", "x": 1}]}, "No."),
        ({"content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yes."}]}, "Yes."),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": "Yes.", "refusal": "No."}, "Yes."),
    ],
)
async def test_the_content_of_an_earlier_answer_is_read_in_every_form(
    open_api, scripted, message, text, autojump_clock: MockClock
) -> None:
    request = await asked(open_api, scripted, messages=[USER, {"role": "assistant"} | message, USER])
    assert request.input[1] == Message("assistant", text)


@pytest.mark.parametrize(
    "fields", [{"reasoning_content": "Hm"}, {"reasoning": "Hm"}, {"reasoning_content": "Hm", "reasoning": "Hm"}]
)
async def test_the_reasoning_of_an_earlier_answer_reaches_an_engine_that_takes_it(
    open_api, scripted, fields, autojump_clock: MockClock
) -> None:
    messages = [USER, {"role": "assistant", "content": "Yes."} | fields, USER]
    request = await asked(open_api, scripted, Capabilities(reasoning_input=True), messages=messages)
    assert request.input[1] == Message("assistant", "Yes.", reasoning="Hm")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tool_choice": "required"},
            "tool_choice is not supported here: the request has no tools that the model can call",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "lost"}}},
            "tool_choice names 'lost', which is not in tools",
        ),
        ({"tools": [{"type": "function"}]}, "Object missing required field `function`"),
        (
            {"messages": [USER, calls(CALL | {"id": None})]},
            "Object missing required field `id`",
        ),
        ({"response_format": {"type": "json_schema"}}, "Object missing required field `json_schema`"),
        ({"top_logprobs": 3}, "top_logprobs goes with logprobs: true"),
        (
            {"reasoning_effort": "zz"},
            "reasoning_effort is one of: high, low, max, medium, minimal, none, xhigh",
        ),
        ({"reasoning_effort": 7}, "Expected `str | null`, got `int` - at `$.reasoning_effort`"),
        (
            {"messages": [part({"type": "image_url", "image_url": PNG})]},
            "messages[0].content[0].type is not supported here: the model or this API takes no part 'image_url'",
        ),
    ],
)
async def test_a_refusal_says_why(open_api, scripted, fields, message, autojump_clock: MockClock) -> None:
    async with open_api(engine=scripted("a", capabilities=Capabilities(tools=True, structured_output=True))) as api:
        answer = await api.chat(**fields)
    assert (answer.status, answer.error["message"]) == (400, message)


async def test_top_logprobs_of_0_asks_for_nothing(open_api, scripted, autojump_clock: MockClock) -> None:
    request = await asked(open_api, scripted, top_logprobs=0)
    assert not request.parameters.logprobs


async def test_images_files_and_audio_reach_the_engine(open_api, scripted, autojump_clock: MockClock) -> None:
    content = [
        {"type": "text", "text": ""},
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}, "cache_control": {}},
        {"type": "image_url", "image_url": "https://example.org/x.png"},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ]
    request = await asked(open_api, scripted, messages=[{"role": "user", "content": content}])
    assert request.input[0].content == (
        TextPart("What?"),
        ImagePart(PNG, "low"),
        ImagePart("https://example.org/x.png"),
        FilePart("data:application/pdf;base64,AA", "a.pdf"),
        AudioPart("AA", "wav"),
    )


# Answers

SCRIPT = (
    Reasoning("Hm"),
    "Let me see.",
    CallTool("weather", ('{"city": ', '"Rome"}'), "c1"),
    CallTool("time", "{}", "c2"),
)


async def test_calls_leave_in_the_form_that_every_client_reads(open_api, scripted, autojump_clock: MockClock) -> None:
    async with open_api(engine=scripted(*SCRIPT, capabilities=UPSTREAM_CAPABILITIES)) as api:
        *chunks, done = (await api.chat(stream=True, tools=[WEATHER])).events
        whole = (await api.chat(tools=[WEATHER])).json["choices"][0]
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [delta for delta in deltas if "id" in delta] == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "time", "arguments": ""}},
    ]
    rest = [delta for delta in deltas if "id" not in delta]
    assert all(set(delta) == {"index", "function"} and set(delta["function"]) == {"arguments"} for delta in rest)
    assert [delta["index"] for delta in deltas] == sorted(delta["index"] for delta in deltas)
    assert "".join(delta["function"]["arguments"] for delta in rest if delta["index"] == 0) == '{"city": "Rome"}'
    assert b"null" not in json.dumps(deltas).encode()
    assert (chunks[-1]["choices"][0]["finish_reason"], done) == ("tool_calls", "[DONE]")
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "Let me see."
    assert whole["message"]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]


async def test_a_call_that_was_cut_is_not_offered_to_the_client(open_api, scripted, autojump_clock: MockClock) -> None:
    cut = CallTool("weather", ('{"city": ', Finish("length")))
    async with open_api(engine=scripted(cut, capabilities=UPSTREAM_CAPABILITIES)) as api:
        *chunks, _ = (await api.chat(stream=True, tools=[WEATHER])).events
        whole = (await api.chat(tools=[WEATHER])).json["choices"][0]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert (whole["finish_reason"], "tool_calls" in whole["message"]) == ("length", False)


CUT = CallTool("weather", ('{"city": ', Finish("content_filter")))
WHOLE = CallTool("weather", '{"city": "Rome"}')


@pytest.mark.parametrize(
    ("script", "calls"),
    [
        ([CUT], 0),
        ([WHOLE, CUT], 1),
        ([WHOLE, "And", Finish("content_filter")], 1),
    ],
)
async def test_a_content_filter_is_named_and_not_hidden_by_a_call(
    open_api, scripted, script, calls, autojump_clock: MockClock
) -> None:
    async with open_api(engine=scripted(*script, capabilities=UPSTREAM_CAPABILITIES)) as api:
        *chunks, _ = (await api.chat(stream=True, tools=[WEATHER])).events
        whole = (await api.chat(tools=[WEATHER])).json["choices"][0]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "content_filter"
    assert len(whole["message"].get("tool_calls", [])) == calls
