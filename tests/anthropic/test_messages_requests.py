"""The body of `POST /v1/messages`: the request for the engine, and the fields that are ignored or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from trio.testing import MockClock

from crucible_trio.apis.anthropic.fold import UNPARSED
from crucible_trio.apis.anthropic.requests import NAMES, MessagesRequest, read_request
from crucible_trio.apis.kit.errors import ModelNotFoundError, UnsupportedParameterError
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.kit.sealed import Seals
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import (
    FilePart,
    ImagePart,
    JsonSchemaFormat,
    Message,
    NamedTool,
    TextPart,
    Tool,
    ToolCall,
)
from crucible_trio.settings import ApiSettings
from crucible_trio.testing import ScriptedEngine

Json = dict[str, Any]

SEAL = Seals("secret").of("alice")
ALL = Capabilities(
    tools=True,
    images=True,
    files=True,
    structured_output=True,
    reasoning_input=True,
    sampling=frozenset({"temperature", "top_p", "top_k", "stop"}),
)
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBO"}
A_FILE = {"type": "file", "file_id": "x"}
CITED = {"type": "document", "source": {"type": "text", "data": "a"}, "citations": {"enabled": True}}
WRONG_CALL = {"type": "tool_use", "id": "a", "name": "b", "input": "x"}
TOOL = {"name": "weather", "description": "Ask.", "input_schema": {"type": "object"}}
MEANT = Tool("weather", "Ask.", {"type": "object"})


def read(capabilities: Capabilities = ALL, settings: Json | None = None, **fields: Any) -> MessagesRequest:
    engine = ScriptedEngine("a", models=["tiny"], capabilities=capabilities)
    builder = RequestBuilder(engine, ApiSettings(**(settings or {})), 1000, NAMES)
    body = {"model": "tiny", "max_tokens": 100, "messages": [{"role": "user", "content": "Why?"}]} | fields
    return read_request(json.dumps(body).encode(), builder, SEAL)


def messages_of(*messages: Json, system: Any = "", capabilities: Capabilities = ALL) -> tuple[Message, ...]:
    return read(capabilities, messages=list(messages), system=system).engine_request.messages


def user(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def answer(*blocks: Json) -> Json:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> Json:
    return {"type": "text", "text": words} | more


def test_a_small_request() -> None:
    asked = read()
    assert asked.engine_request.messages == (Message("user", "Why?"),)
    assert (asked.engine_request.model, asked.engine_request.mode) == ("tiny", "standard")
    assert asked.engine_request.max_output_tokens == 100
    assert (asked.stream, asked.ignored, asked.facts.view) == (False, (), "hidden")


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("Be short.", "Be short."),
        ([text("Be short.", cache_control={"type": "ephemeral"}), text("Be kind.")], "Be short.\nBe kind."),
    ],
)
def test_a_system_prompt_is_the_first_message(system: Any, expected: str) -> None:
    assert messages_of(user(text("Why?")), system=system) == (Message("system", expected), Message("user", "Why?"))


def test_an_empty_system_prompt_is_left_out_and_a_later_one_stays_in_its_place() -> None:
    read_messages = messages_of(user(text("a")), {"role": "system", "content": "b"}, user(text("c")), system=[])
    assert [(message.role, message.content) for message in read_messages] == [
        ("user", "a"),
        ("system", "b"),
        ("user", "c"),
    ]


def test_parts_of_the_user() -> None:
    [message] = messages_of(
        user(
            text("Look:"),
            {"type": "image", "source": PIXEL},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            {"type": "document", "source": PIXEL | {"media_type": "application/pdf"}, "title": "a.pdf"},
            {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
            {"type": "document", "source": {"type": "text", "data": "Plain."}, "title": "T", "context": "C"},
            {"type": "document", "source": {"type": "content", "content": [text("a"), text("b")]}},
            {"type": "document", "source": {"type": "content", "content": "c"}, "citations": {"enabled": False}},
            {"type": "search_result", "title": "T", "source": "S", "content": [text("found")]},
        )
    )
    assert message.content == (
        TextPart("Look:"),
        ImagePart("data:image/png;base64,iVBO"),
        ImagePart("https://example.org/a.png"),
        FilePart("data:application/pdf;base64,iVBO", "a.pdf"),
        FilePart("https://example.org/a.pdf"),
        TextPart("T\nC\nPlain."),
        TextPart("a\nb"),
        TextPart("c"),
        TextPart("T\nS\nfound"),
    )


def test_results_become_messages_of_their_own_before_the_rest() -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}}
    read_messages = messages_of(
        user(text("Why?")),
        answer(text("I look."), call, call | {"id": "call_2", "input": {}}),
        user(
            {"type": "tool_result", "tool_use_id": "call_1", "content": "31"},
            text("Well?"),
            {
                "type": "tool_result",
                "tool_use_id": "call_2",
                "content": [
                    text("a"),
                    {"type": "image", "source": PIXEL},
                ],
            },
            {"type": "tool_result", "tool_use_id": "call_3"},
        ),
    )
    calls = (ToolCall("call_1", "weather", '{"city":"Rome"}'), ToolCall("call_2", "weather", "{}"))
    assert read_messages == (
        Message("user", "Why?"),
        Message("assistant", "I look.", tool_calls=calls),
        Message("tool", "31", tool_call_id="call_1"),
        Message("tool", (TextPart("a"), ImagePart("data:image/png;base64,iVBO")), tool_call_id="call_2"),
        Message("tool", tool_call_id="call_3"),
        Message("user", "Well?"),
    )


def test_the_model_is_told_which_tools_it_may_call_from_now_on() -> None:
    asked = read(
        tools=[TOOL, TOOL | {"name": "later"}],
        messages=[
            user(found_tool("weather")),
            {"role": "system", "content": [changed("tool_addition", "later"), changed("tool_removal", "later")]},
        ],
    )
    assert asked.engine_request.messages == (
        Message("tool", "The tool weather can be called now.", tool_call_id="call_1"),
        Message("system", "The tool later can be called now.\nThe tool later cannot be called any more."),
    )
    assert asked.ignored == ()
    inline = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": TOOL}}
    with pytest.raises(UnsupportedParameterError) as caught:
        messages_of(user(text("Why?")), {"role": "system", "content": [inline]})
    assert caught.value.param == "messages[1].content[0].tool.type"


@pytest.mark.parametrize("name", ["gone", "search"])
def test_the_model_is_not_told_of_a_tool_that_it_is_not_offered(name: str) -> None:
    asked = read(
        tools=[TOOL, {"type": "web_search_20260101", "name": "search"}],
        messages=[
            user(found_tool(name)),
            {"role": "system", "content": [changed("tool_addition", name), changed("tool_removal", name)]},
        ],
    )
    assert asked.engine_request.messages == (Message("tool", tool_call_id="call_1"),)
    assert asked.ignored[-3:] == tuple(
        f"messages[].content[].{kind}" for kind in ("tool_reference", "tool_addition", "tool_removal")
    )


def found_tool(name: str) -> Json:
    found = {"type": "tool_reference", "tool_name": name}
    return {"type": "tool_result", "tool_use_id": "call_1", "content": [found]}


def changed(kind: str, name: str) -> Json:
    return {"type": kind, "tool": {"type": "tool_reference", "name": name}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("No such city.", "The tool call failed.\nNo such city."),
        ("", "The tool call failed."),
        (
            [{"type": "image", "source": PIXEL}],
            (TextPart("The tool call failed."), ImagePart("data:image/png;base64,iVBO")),
        ),
    ],
)
def test_the_model_is_told_that_a_tool_failed(content: Any, expected: Any) -> None:
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": content, "is_error": True}
    assert messages_of(user(result)) == (Message("tool", expected, tool_call_id="call_1"),)


def test_arguments_that_were_no_json_go_back_as_the_model_wrote_them() -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {UNPARSED: "{oops"}}
    [message] = messages_of(answer(call))
    assert message.tool_calls == (ToolCall("call_1", "weather", "{oops"),)


def thinking(trace: str, signature: str | None = None) -> Json:
    return {"type": "thinking", "thinking": trace, "signature": signature or SEAL.signature(trace)}


def test_a_signed_trace_goes_back_to_the_model() -> None:
    for block in (thinking("Hm."), thinking("", SEAL.sign("Hm."))):
        asked = read(messages=[answer(block, text("Because."))])
        assert asked.engine_request.messages == (Message("assistant", "Because.", reasoning="Hm."),)
        assert asked.unverified == 0


@pytest.mark.parametrize(
    "block",
    [
        thinking("Hm.", SEAL.signature("Other.")),
        thinking("Hm.", Seals("secret").of("bob").signature("Hm.")),
        thinking("Hm.", SEAL.sign("Hm.")),
        {"type": "thinking", "thinking": "Hm."},
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "thinking", "thinking": 1, "signature": 2},
        {"type": "redacted_thinking", "data": "EmwKAhgB"},
    ],
)
def test_a_trace_that_is_not_ours_is_left_out_and_counted(block: Json) -> None:
    asked = read(messages=[answer(block, text("Because."))])
    assert asked.engine_request.messages == (Message("assistant", "Because."),)
    assert asked.unverified == 1


def test_a_model_that_reads_no_traces_gets_none() -> None:
    asked = read(Capabilities(), messages=[answer(thinking("Hm."), text("Because."))])
    assert asked.engine_request.messages == (Message("assistant", "Because."),)
    assert asked.unverified == 0


def test_a_turn_with_nothing_but_a_trace_is_left_out() -> None:
    assert messages_of(user(text("Why?")), answer(thinking("Hm."))) == (Message("user", "Why?"),)


def test_what_a_server_did_in_an_earlier_turn_is_left_out_by_name() -> None:
    blocks = [{"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}}, text("Found.")]
    asked = read(messages=[user(text("Why?")), answer(*blocks)])
    assert asked.engine_request.messages[1] == Message("assistant", "Found.")
    assert asked.ignored == ("messages[].content[].server_tool_use",)


@pytest.mark.parametrize(
    ("thinking", "output", "mode", "view"),
    [
        (None, None, "standard", "hidden"),
        ({"type": "enabled", "budget_tokens": 1024}, None, "deep", "shown"),
        ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, None, "deep", "omitted"),
        ({"type": "enabled", "budget_tokens": 1024, "display": "summarized"}, {"effort": "low"}, "deep", "shown"),
        ({"type": "adaptive"}, None, "deep", "shown"),
        ({"type": "adaptive"}, {"effort": "low"}, "standard", "shown"),
        ({"type": "adaptive"}, {"effort": "max"}, "deep", "shown"),
        ({"type": "between_tools"}, None, "deep", "shown"),
        ({"type": "disabled"}, {"effort": "max"}, "standard", "hidden"),
        (None, {"effort": "high"}, "deep", "hidden"),
        (None, {"effort": "low"}, "standard", "hidden"),
    ],
)
def test_thinking_and_effort_pick_the_mode_and_the_view(
    thinking: Json | None, output: Json | None, mode: str, view: str
) -> None:
    asked = read(thinking=thinking, output_config=output)
    assert (asked.engine_request.mode, asked.facts.view) == (mode, view)
    is_named = "budget_tokens" in (thinking or {})
    assert asked.ignored == (("thinking.budget_tokens",) if is_named else ())


def test_a_name_with_the_suffix_is_deep_even_without_thinking() -> None:
    assert read(model="tiny:deep", thinking={"type": "disabled"}).engine_request.mode == "deep"
    assert read(settings={"openai_models": {"claude": "tiny"}}, model="claude").engine_request.model == "tiny"


def test_sampling_and_limits() -> None:
    asked = read(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["END"], max_tokens=128_000)
    sampling = asked.engine_request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop) == (0.5, 0.9, 40, ("END",))
    assert asked.engine_request.max_output_tokens == 1000  # this server's maximum


def test_a_model_without_sampling_ignores_it_by_name_and_refuses_stops() -> None:
    asked = read(Capabilities(), temperature=0.5, top_p=1, top_k=40)
    assert asked.ignored == ("temperature", "top_k")
    with pytest.raises(UnsupportedParameterError) as caught:
        read(Capabilities(), stop_sequences=["END"])
    assert caught.value.param == "stop_sequences"
    with pytest.raises(UnsupportedParameterError) as caught:
        read(Capabilities(), settings={"strict_fields": True}, temperature=0.5)
    assert caught.value.param == "temperature"


def test_a_json_schema_is_the_form_of_the_answer() -> None:
    wanted = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    asked = read(output_config=wanted)
    assert asked.engine_request.parameters.response_format == JsonSchemaFormat("answer", {"type": "object"}, True)
    with pytest.raises(UnsupportedParameterError) as caught:
        read(Capabilities(), output_config=wanted)
    assert caught.value.param == "output_config.format"


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, None, None),
        ({"type": "auto"}, "auto", None),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any", "disable_parallel_tool_use": False}, "required", True),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "weather"}, NamedTool("weather"), None),
    ],
)
def test_tools_and_the_choice_among_them(choice: Json | None, expected: Any, parallel: bool | None) -> None:
    extras = {"cache_control": {"type": "ephemeral"}, "type": "custom", "eager_input_streaming": True}
    parameters = read(tools=[TOOL | extras], tool_choice=choice).engine_request.parameters
    assert parameters.tools == (MEANT,)
    assert (parameters.tool_choice, parameters.parallel_tool_calls) == (expected, parallel)


@pytest.mark.parametrize("strict", [True, False])
def test_a_tool_may_be_strict(strict: bool) -> None:
    [tool] = read(tools=[TOOL | {"strict": strict}]).engine_request.parameters.tools
    assert tool.strict is strict


async def test_tools_that_only_anthropic_runs_are_not_offered_and_fail_nothing(
    open_api: Callable, scripted: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    hosted = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "bash_20250124", "name": "bash"}]
    body = {"model": "scripted", "max_tokens": 9, "messages": [user(text("Why?"))], "tools": [TOOL, *hosted]}
    engine = scripted("a", capabilities=ALL)
    with caplog.at_level(logging.INFO):
        async with open_api(engine=engine) as api:
            for _ in range(2):
                reply = await api.post("/v1/messages", body)
                assert reply.status == 200
                assert reply.headers["crucible-ignored"] == "tools.web_search_20250305, tools.bash_20250124"
    assert engine.requests[0].parameters.tools == (MEANT,)
    lines = [record.message for record in caplog.records if "is not offered" in record.message]
    assert lines == [
        f"the hosted tool {kind!a} does not exist here and is not offered to models"
        for kind in ("web_search_20250305", "bash_20250124")
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"metadata": {"user_id": "x"}, "service_tier": "auto", "cache_control": {}, "inference_geo": "eu"}, ()),
        ({"context_management": {"edits": []}}, ("context_management",)),
        ({"betas": ["x"], "depth": 3, "empty": None}, ("betas", "depth")),
        ({"thinking": {"type": "adaptive", "depth": 3}}, ("thinking.depth",)),
        ({"output_config": {"task_budget": {"total": 9}}}, ("output_config.task_budget",)),
        ({"mcp_servers": [], "container": None, "fallbacks": []}, ()),
        ({"tools": [TOOL | {"input_examples": [{}]}]}, ("tools[].input_examples",)),
        ({"messages": [user(text("a", mood="x")) | {"id": "msg"}]}, ("messages[].id", "messages[].content[].mood")),
        ({"messages": [user({"type": "image", "source": PIXEL | {"x": 1}})]}, ("messages[].content[].source.x",)),
    ],
)
def test_fields_that_change_nothing_and_fields_that_are_ignored_by_name(fields: Json, expected: tuple) -> None:
    asked = read(**fields)
    assert asked.ignored == expected
    assert asked.engine_request.extra == {}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"container": {"skills": []}}, "container"),
        ({"thread": {"id": "x"}}, "thread"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "lost"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": [user({"type": "video"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "image", "source": A_FILE})]}, "messages[0].content[0].source.type"),
        ({"messages": [user({"type": "document", "source": A_FILE})]}, "messages[0].content[0].source.type"),
        ({"messages": [user(CITED)]}, "messages[0].content[0].citations.enabled"),
        ({"system": [{"type": "image", "source": PIXEL}]}, "system[0].type"),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(fields: Json, param: str) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"messages": [user({"type": "image", "source": PIXEL})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "document", "source": PIXEL})]}, "messages[0].content[0].source.type"),
        ({"messages": [answer({"type": "tool_use", "id": "a", "name": "b"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "tool_result", "tool_use_id": "a"})]}, "messages[0].content[0].type"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(fields: Json, param: str) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        read(Capabilities(), **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "Why?"}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [user()]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages"),
        ({"messages": [user({"text": "a"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [answer({"type": []})]}, "messages[0].content[0].type"),
        ({"messages": [answer({"type": "tool_use", "id": "", "name": "b"})]}, "messages[0].content[0].id"),
        (
            {"messages": [answer(WRONG_CALL)]},
            "messages[0].content[0].input",
        ),
        ({"messages": [user({"type": "tool_result"})]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [user({"type": "image", "source": {"type": "base64"}})]}, "messages[0].content[0].source"),
        ({"messages": [user({"type": "document", "source": {"type": "text"}})]}, "messages[0].content[0].source"),
        ({"messages": [user({"type": "image", "source": "x"})]}, "messages[0].content[0].source"),
        (
            {"messages": [user({"type": "image", "source": {"type": "url", "url": "file:///x"}})]},
            "messages[0].content[0].source.url",
        ),
        (
            {"messages": [user({"type": "document", "source": {"type": "url", "url": "file:///x"}})]},
            "messages[0].content[0].source.url",
        ),
        (
            {
                "messages": [
                    user({"type": "image", "source": {"type": "base64", "media_type": "text/css", "data": "A"}})
                ]
            },
            "messages[0].content[0].source.media_type",
        ),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"temperature": 3}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": 1}]}, "tools[0].type"),
        ({"tool_choice": {"type": "often"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {}}, "tool_choice.type"),
    ],
)
def test_a_value_that_is_invalid_is_refused_by_name(fields: Json, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    assert caught.value.param == param


def test_a_request_without_a_model_means_the_first_and_one_that_does_not_exist_is_refused() -> None:
    assert read(model=None).engine_request.model == "tiny"
    with pytest.raises(ModelNotFoundError):
        read(model="claude-opus-4-6")


async def test_the_header_for_betas_is_ignored_by_name(open_api: Callable, autojump_clock: MockClock) -> None:
    body = {"model": "scripted", "max_tokens": 9, "messages": [user(text("Why?"))]}
    async with open_api("a") as api:
        reply = await api.post("/v1/messages?beta=true", body | {"top_k": 3}, Anthropic_Beta="a-1,b-2")
        assert reply.headers["crucible-ignored"] == "top_k, anthropic-beta"
