"""The body of a request: the page's messages, and the options that a page adds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crucible_trio.apis.kit.errors import ModelNotFoundError, UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.apis.ui.requests import NAMES, UIRequest, read_request
from crucible_trio.engine import Capabilities
from crucible_trio.engines.upstream.request_body import UPSTREAM_CAPABILITIES
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    NamedTool,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
)
from crucible_trio.settings import ApiSettings
from crucible_trio.testing import ScriptedEngine

ALL = Capabilities(
    tools=True,
    images=True,
    files=True,
    audio=True,
    reasoning_input=True,
    sampling=UPSTREAM_CAPABILITIES.sampling,
)
USER = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Why?"}]}


def read(*messages: object, can: Capabilities = ALL, strict: bool = False, **fields: object) -> UIRequest:
    engine = ScriptedEngine(models=["small", "large"], capabilities=can)
    builder = RequestBuilder(engine, ApiSettings(strict_fields=strict), 1000, NAMES)
    body = {"messages": list(messages or [USER])} | fields
    return read_request(json.dumps(body).encode(), builder, strict=strict)


def messages_of(*parts: dict[str, Any], role: str = "user", can: Capabilities = ALL) -> tuple[Message, ...]:
    read_messages = read({"id": "m", "role": role, "parts": list(parts)}, USER, can=can).engine_request.input
    assert isinstance(read_messages, tuple)
    assert read_messages[-1] == Message("user", "Why?")
    return read_messages[:-1]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "state": "done", "providerMetadata": {"x": {}}}


def reasoning(words: str) -> dict[str, Any]:
    return {"type": "reasoning", "text": words, "id": "1"}


def file(media_type: str, url: str, **more: str) -> dict[str, Any]:
    return {"type": "file", "mediaType": media_type, "url": url} | more


def call(state: str, **more: Any) -> dict[str, Any]:
    return {"type": "tool-weather", "toolCallId": "c1", "state": state, "input": {"city": "Rome"}} | more


CALL = ToolCall("c1", "weather", '{"city":"Rome"}')


def answered(result: str | None, *, tool_call: ToolCall = CALL) -> tuple[Message, ...]:
    return Message("assistant", tool_calls=(tool_call,)), Message("tool", result, tool_call_id="c1")


@pytest.mark.parametrize(
    ("role", "parts", "expected"),
    [
        pytest.param("user", [text("One"), text("Two")], (Message("user", "One\nTwo"),), id="texts"),
        pytest.param("system", [text("Be brief.")], (Message("system", "Be brief."),), id="system"),
        pytest.param(
            "user",
            [
                {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA==", "filename": "a"},
                text("?"),
            ],
            (Message("user", (ImagePart("data:image/png;base64,AA=="), TextPart("?"))),),
            id="image",
        ),
        pytest.param(
            "user",
            [file("application/pdf", "https://x/a.pdf", filename="a.pdf")],
            (Message("user", (FilePart("https://x/a.pdf", "a.pdf"),)),),
            id="file",
        ),
        pytest.param(
            "user",
            [file("audio/mpeg", "data:audio/mpeg;base64,QQ==")],
            (Message("user", (AudioPart("QQ==", "mp3"),)),),
            id="audio",
        ),
        pytest.param(
            "user",
            [{"type": "data-mood", "data": 1}, {"type": "source-url", "url": "x"}, {"type": "new"}, {}, text("")],
            (),
            id="parts without content for the model",
        ),
        pytest.param(
            "assistant",
            [
                {"type": "step-start"},
                {"type": "reasoning", "text": "Hm. "},
                {"type": "reasoning", "text": "So."},
                text("A"),
            ],
            (Message("assistant", "A", reasoning="Hm. So."),),
            id="trace and answer",
        ),
        pytest.param("assistant", [reasoning("Hm.")], (), id="a trace alone"),
        pytest.param(
            "assistant",
            [text("A"), file("image/png", "x"), {"type": "source-document"}],
            (Message("assistant", "A"),),
            id="files and sources of an answer",
        ),
        pytest.param("assistant", [call("input-streaming")], (), id="half a call"),
        pytest.param("assistant", [call("input-available")], (), id="a call without a result"),
        pytest.param("assistant", [call("approval-requested", approval={"id": "a"})], (), id="a call nobody approved"),
        pytest.param("assistant", [call("output-available", output="Warm.")], answered("Warm."), id="text result"),
        pytest.param("assistant", [call("output-available", output=["ü", 1])], answered('["ü",1]'), id="JSON result"),
        pytest.param("assistant", [call("output-available", output="")], answered(None), id="empty result"),
        pytest.param("assistant", [call("output-error", errorText="No.")], answered("No."), id="failed call"),
        pytest.param(
            "assistant",
            [call("output-error", input=None, rawInput="{no", errorText="")],
            answered("The tool failed.", tool_call=ToolCall("c1", "weather", "{no")),
            id="arguments that were no JSON",
        ),
        pytest.param(
            "assistant",
            [call("output-denied", approval={"id": "a", "approved": False, "reason": "Not now."})],
            answered("Not now."),
            id="denied",
        ),
        pytest.param(
            "assistant",
            [call("approval-responded", approval={"id": "a", "approved": False})],
            answered("Tool call execution denied."),
            id="denied on the page alone",
        ),
        pytest.param(
            "assistant",
            [call("output-available", type="dynamic-tool", toolName="other", output=1)],
            answered("1", tool_call=ToolCall("c1", "other", '{"city":"Rome"}')),
            id="dynamic tool",
        ),
        pytest.param(
            "assistant",
            [
                {"type": "step-start"},
                text("Let me see."),
                call("output-available", output=1),
                call("output-available", toolCallId="c2", input=None, output=2),
                {"type": "step-start"},
                text("Done."),
            ],
            (
                Message("assistant", "Let me see.", tool_calls=(CALL, ToolCall("c2", "weather", "{}"))),
                Message("tool", "1", tool_call_id="c1"),
                Message("tool", "2", tool_call_id="c2"),
                Message("assistant", "Done."),
            ),
            id="two steps",
        ),
    ],
)
def test_a_message_of_a_page_becomes_messages_for_the_model(role: str, parts: Any, expected: object) -> None:
    assert messages_of(*parts, role=role) == expected


def test_a_trace_is_left_out_where_the_model_does_not_take_it() -> None:
    parts = reasoning("Hm."), text("A")
    assert messages_of(*parts, role="assistant", can=Capabilities()) == (Message("assistant", "A"),)


@pytest.mark.parametrize(
    ("part", "role"),
    [
        (file("image/png", "data:image/png;base64,AA=="), "user"),
        (file("text/plain", "data:text/plain,x"), "user"),
        (file("audio/wav", "data:audio/wav;base64,AA=="), "user"),
        (file("image/png", "x"), "system"),
        (call("output-available", output=1), "assistant"),
    ],
)
def test_content_that_the_model_does_not_take_is_refused_by_its_place(part: dict[str, Any], role: str) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        messages_of(text("x"), part, role=role, can=Capabilities())
    assert caught.value.param == "messages[0].parts[1]"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (7, "messages[0]"),
        ({"role": "tool", "parts": []}, "messages[0].role"),
        ({"role": "user"}, "messages[0].parts"),
        ({"role": "user", "parts": [7]}, "messages[0].parts[0]"),
        ({"role": "user", "parts": [{"type": "text", "text": 7}]}, "messages[0].parts[0].text"),
        ({"role": "user", "parts": [{"type": "file", "url": "x"}]}, "messages[0].parts[0].mediaType"),
        ({"role": "user", "parts": [{"type": "file", "mediaType": "x", "url": ""}]}, "messages[0].parts[0].url"),
        ({"role": "user", "parts": [file("image/png", "file:///x")]}, "messages[0].parts[0].url"),
        ({"role": "user", "parts": [file("text/css", "blob:http://x/1")]}, "messages[0].parts[0].url"),
        ({"role": "assistant", "parts": [{"type": "reasoning"}]}, "messages[0].parts[0].text"),
        ({"role": "assistant", "parts": [{"type": "tool-x", "state": "x"}]}, "messages[0].parts[0].toolCallId"),
        ({"role": "assistant", "parts": [call("output-error", type="tool-")]}, "messages[0].parts[0].type"),
        ({"role": "assistant", "parts": [call("output-error", type="dynamic-tool")]}, "messages[0].parts[0].toolName"),
        ({"role": "assistant", "parts": []}, "messages"),
        ({"role": "user", "parts": [{"type": "data-mood", "data": 1}]}, "messages"),
    ],
)
def test_an_invalid_message_is_refused_by_its_place(message: object, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(message)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("topP", 0, "topP"),
        ("presencePenalty", 5, "presencePenalty"),
        ("stopSequences", ["a"] * 17, "stopSequences"),
        ("stopSequences", ["a", "b" * 1000], "stopSequences[1]"),
        ("temperature", 5, "temperature"),
    ],
)
def test_an_invalid_option_is_refused_by_the_pages_name(name: str, value: object, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**{name: value})
    assert caught.value.param == param
    assert f"`$.{name}" in str(caught.value)


def test_the_options_have_the_names_of_stream_text() -> None:
    asked = read(
        model="large",
        system="Be brief.",
        reasoning="high",
        maxOutputTokens=5000,
        temperature=0.5,
        topP=0.9,
        topK=5,
        presencePenalty=0.1,
        frequencyPenalty=0.2,
        seed=7,
        stopSequences=["\n"],
        tools={
            "weather": {"description": "d", "inputSchema": {"type": "object"}, "strict": True, "title": "x", "z": 1}
        },
        toolChoice={"type": "tool", "toolName": "weather"},
        onDisconnect="cancel",
        id="chat 1",
        trigger="regenerate-message",
        messageId="m1",
    )
    request = asked.engine_request
    assert (request.model, request.mode, request.max_output_tokens) == ("large", "deep", 1000)
    assert request.input == (Message("system", "Be brief."), Message("user", "Why?"))
    assert request.sampling == Sampling(
        temperature=0.5, top_p=0.9, top_k=5, presence_penalty=0.1, frequency_penalty=0.2, seed=7, stop=("\n",)
    )
    assert request.parameters.tools == (Tool("weather", "d", {"type": "object"}, strict=True),)
    assert request.parameters.tool_choice == NamedTool("weather")
    assert request.on_disconnect == "cancel"
    assert (asked.chat_id, asked.ignored, asked.continued) == ("chat 1", (), None)


@pytest.mark.parametrize(
    ("reasoning", "mode"), [(None, "standard"), ("provider-default", "standard"), ("none", "standard"), ("max", "deep")]
)
def test_reasoning_selects_the_mode(reasoning: str | None, mode: str) -> None:
    assert read(reasoning=reasoning).engine_request.mode == mode


@pytest.mark.parametrize("choice", ["auto", "none", "required"])
def test_a_tool_choice_can_be_a_word(choice: str) -> None:
    parameters = read(tools={"f": {}}, toolChoice=choice).engine_request.parameters
    assert parameters.tool_choice == choice


def test_fields_of_the_application_are_ignored_and_named_unless_strict() -> None:
    asked = read(sessionId="s", temperature=0.5, can=Capabilities())
    assert asked.ignored == ("sessionId", "temperature")
    with pytest.raises(UnknownParameterError) as unknown:
        read(sessionId="s", strict=True)
    assert unknown.value.param == "sessionId"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {"f": {}}}, "tools"),
        ({"toolChoice": "required"}, "toolChoice"),
        ({"stopSequences": ["x"]}, "stopSequences"),
    ],
)
def test_an_option_that_the_answer_depends_on_is_refused_by_its_own_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameterError) as caught:
        read(can=Capabilities(), **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"toolChoice": "any"}, "toolChoice"),
        ({"toolChoice": {"type": "tool"}}, "toolChoice.toolName"),
        ({"tools": {"f": {"inputSchema": 7}}}, "tools.f.inputSchema"),
        ({"tools": {"": {}}}, "tools"),
        ({"maxOutputTokens": 0}, "maxOutputTokens"),
        ({"temperature": 9}, "temperature"),
        ({"reasoning": "much"}, "reasoning"),
        ({"onDisconnect": "stay"}, "onDisconnect"),
        ({"messages": []}, "messages"),
    ],
)
def test_an_invalid_option_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    assert caught.value.param == param


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ModelNotFoundError):
        read(model="none")


def test_the_answer_belongs_to_the_last_message_if_that_is_the_assistants_and_has_an_id() -> None:
    answer = {"id": "m1", "role": "assistant", "parts": [call("output-available", output=1)]}
    asked = read(USER, answer)
    assert asked.continued is not None
    assert asked.continued.message_id == "m1"
    assert read(answer, USER).continued is None
    assert read(USER, {**answer, "id": ""}).continued is None
    del answer["id"]
    assert read(USER, answer).continued is None
