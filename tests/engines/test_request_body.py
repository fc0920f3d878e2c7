"""The body of a request to an upstream server carries everything that a request can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from crucible_trio.checks import check_request
from crucible_trio.config import Settings
from crucible_trio.engine import Capabilities, EngineInfo
from crucible_trio.engines.upstream.engine import THINKING
from crucible_trio.engines.upstream.request_body import (
    UPSTREAM_CAPABILITIES,
    ReasoningField,
    RequestBody,
    upstream_capabilities,
)
from crucible_trio.errors import InvalidRequestError
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

ALWAYS = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
SCHEMA = {"type": "object"}
PNG = "data:image/png;base64,AA"


def body(
    request: Request,
    *,
    extra_body: Mapping[str, object] | None = None,
    thinking: Mapping[Any, Mapping[str, object]] | None = None,
    reasoning_field: ReasoningField | None = None,
) -> dict[str, object]:
    made = RequestBody(
        thinking=thinking or {}, extra_body=extra_body or {}, limit_field="max_tokens", reasoning_field=reasoning_field
    )
    return made.fields(request, "m")


def messages(*given: Message, reasoning_field: ReasoningField | None = None) -> object:
    return body(Request(given), reasoning_field=reasoning_field)["messages"]


def fields(request: Request) -> dict[str, object]:
    """The fields besides those of every request."""
    return {name: value for name, value in body(request).items() if name not in {*ALWAYS, "messages"}}


def test_a_plain_request_has_no_further_fields() -> None:
    assert body(Request("Hi")) == ALWAYS | {"messages": [{"role": "user", "content": "Hi"}]}


def test_every_sampling_field_is_passed_on() -> None:
    sampling = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ("END",),
        "top_k": 3,
        "min_p": 0.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"5": 1.0},
    }
    request = Request("Hi", max_output_tokens=5, sampling=Sampling(**sampling), parameters=Parameters(verbosity="low"))
    assert fields(request) == sampling | {"max_tokens": 5, "verbosity": "low"}
    assert {*sampling, "verbosity"} == UPSTREAM_CAPABILITIES.sampling == {*Sampling.__struct_fields__, "verbosity"}


def test_tools_are_passed_on() -> None:
    tools = (Tool("f"), Tool("g", "What it does.", SCHEMA, True))
    expected = [
        {"type": "function", "function": {"name": "f"}},
        {
            "type": "function",
            "function": {"name": "g", "description": "What it does.", "parameters": SCHEMA, "strict": True},
        },
    ]
    assert fields(Request("Hi", parameters=Parameters(tools))) == {"tools": expected}
    assert fields(Request("Hi", parameters=Parameters(tools, "required", parallel_tool_calls=False))) == {
        "tools": expected,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    named = fields(Request("Hi", parameters=Parameters(tools, NamedTool("g"))))["tool_choice"]
    assert named == {"type": "function", "function": {"name": "g"}}


def test_without_tools_nothing_is_said_about_them() -> None:
    assert fields(Request("Hi", parameters=Parameters(tool_choice="none", parallel_tool_calls=True))) == {}


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (TextFormat(), {"type": "text"}),
        (JsonObjectFormat(), {"type": "json_object"}),
        (JsonSchemaFormat("n", SCHEMA), {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}),
        (
            JsonSchemaFormat("n", SCHEMA, False, "d"),
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": SCHEMA, "strict": False, "description": "d"},
            },
        ),
    ],
)
def test_the_response_format_is_passed_on(wanted: Any, sent: object) -> None:
    assert fields(Request("Hi", parameters=Parameters(response_format=wanted))) == {"response_format": sent}


def test_log_probabilities_are_asked_for() -> None:
    assert fields(Request("Hi", parameters=Parameters(logprobs=True))) == {"logprobs": True}
    asked = Parameters(logprobs=True, top_logprobs=3)
    assert fields(Request("Hi", parameters=asked)) == {"logprobs": True, "top_logprobs": 3}


def test_calls_and_results_of_earlier_turns_are_passed_on() -> None:
    assert messages(
        Message("user", "Hot?"),
        Message("assistant", tool_calls=(ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", ""))),
        Message("tool", "31", tool_call_id="c1"),
        Message("tool", tool_call_id="c2"),
        Message("assistant", "Wait.", tool_calls=(ToolCall("c3", "f", "{}"),)),
    ) == [
        {"role": "user", "content": "Hot?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ],
        },
        {"role": "tool", "content": "31", "tool_call_id": "c1"},
        {"role": "tool", "content": "", "tool_call_id": "c2"},
        {
            "role": "assistant",
            "content": "Wait.",
            "tool_calls": [{"id": "c3", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
    ]


def test_parts_are_passed_on_and_texts_alone_are_one_text() -> None:
    assert messages(Message("user", (TextPart("a"), TextPart("b")))) == [{"role": "user", "content": "a\nb"}]
    parts = (
        TextPart("What?"),
        ImagePart(PNG),
        ImagePart(PNG, "low"),
        FilePart("data:,x"),
        FilePart("data:,x", "x.txt"),
        AudioPart("AA", "wav"),
    )
    assert messages(Message("user", parts)) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "image_url", "image_url": {"url": PNG}},
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                {"type": "file", "file": {"file_data": "data:,x"}},
                {"type": "file", "file": {"file_data": "data:,x", "filename": "x.txt"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ],
        }
    ]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_the_reasoning_of_earlier_turns_goes_back_in_the_chosen_field(field: ReasoningField) -> None:
    answer = Message("assistant", "Yes.", reasoning="Hm")
    sent = messages(answer, reasoning_field=field)
    assert sent == [{"role": "assistant", "content": "Yes.", field: "Hm"}]
    assert upstream_capabilities(field).reasoning_input
    assert not upstream_capabilities(None).reasoning_input


def test_the_requests_fields_win_over_the_modes_and_never_over_those_of_every_request() -> None:
    extra = {"top_p": 0.1, "w": 1, "x": 1, "z": 1, "o": {"a": 1, "b": 1, "c": 1}, "model": "other"}
    sent = body(
        Request("Hi", mode="deep", sampling=Sampling(top_k=3), extra=extra),
        extra_body={"top_k": 1, "x": 2, "y": 3, "z": 4, "o": {"a": 2, "b": 2}},
        thinking={"deep": {"w": 5, "z": 6, "o": {"b": 3}}},
    )
    assert {name: sent[name] for name in ("top_k", "top_p", "w", "x", "y", "z", "o", "model")} == {
        "top_k": 1,
        "top_p": 0.1,
        "w": 1,
        "x": 2,
        "y": 3,
        "z": 6,
        "o": {"a": 2, "b": 3, "c": 1},
        "model": "m",
    }


def test_template_arguments_of_the_request_join_those_of_the_mode() -> None:
    request = Request("Hi", extra={"chat_template_kwargs": {"x": 1}})
    assert body(request, thinking=THINKING)["chat_template_kwargs"] == {"enable_thinking": False, "x": 1}
    request = Request("Hi", extra={"chat_template_kwargs": "x"})
    assert body(request, thinking=THINKING)["chat_template_kwargs"] == "x"


EVERYTHING: dict[str, Request] = {
    "tools": Request("Hi", parameters=Parameters((Tool("f"),))),
    "images": Request((Message("user", (ImagePart(PNG),)),)),
    "files": Request((Message("user", (FilePart(PNG),)),)),
    "audio": Request((Message("user", (AudioPart("AA", "wav"),)),)),
    "structured_output": Request("Hi", parameters=Parameters(response_format=JsonObjectFormat())),
    "logprobs": Request("Hi", parameters=Parameters(logprobs=True)),
    "unknown_fields": Request("Hi", extra={"x": 1}),
    "reasoning_input": Request((Message("assistant", "Yes.", reasoning="Hm"),)),
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_native_request_for_anything_is_taken_or_refused_as_declared(name: str) -> None:
    info = EngineInfo(name="e", models=("m",), capabilities=upstream_capabilities("reasoning"))
    check_request(EVERYTHING[name], info, Settings())
    with pytest.raises(InvalidRequestError):
        check_request(EVERYTHING[name], EngineInfo(name="e", models=("m",), capabilities=Capabilities()), Settings())
    assert set(EVERYTHING) | {"sampling"} == set(Capabilities.__dataclass_fields__)
