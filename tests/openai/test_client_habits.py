"""Fields that programs send with every request: none is refused, and an upstream gets those it understands.

Each row was seen in the requests of a real program.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from crucible_trio.engines.upstream import open_upstream
from crucible_trio.testing import ScriptedEngine

from .upstream_cases import open_scripted_upstream

CHUNKS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi."}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
STREAM = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in CHUNKS) + b"data: [DONE]\n\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(STREAM), STREAM)

USER = {"role": "user", "content": "hi"}
# The body for the upstream, without the fields of the row.
PLAIN = {"model": "m", "messages": [USER], "stream": True, "stream_options": {"include_usage": True}}


def tool(name: str) -> dict[str, object]:
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    return {"type": "function", "function": {"name": name, "description": "Finds.", "parameters": parameters}}


TOOLS = [tool(f"tool_{number}") for number in range(26)]
SCHEMA = {"name": "answer", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}, "strict": True}
PART = {"type": "text", "text": "Yes.", "role": "assistant", "refusal": None, "reasoning_content": "Hm"}


def history(message: dict[str, object]) -> dict[str, object]:
    return {"messages": [USER, {"role": "assistant"} | message, USER]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


UNDERSTOOD: dict[str, dict[str, object]] = {
    "Open WebUI, 26 tools with a greeting": {"tools": TOOLS, "tool_choice": "auto"},
    "tools that are switched off": {"tools": TOOLS[:1], "tool_choice": "none"},
    "one call at a time": {"tools": TOOLS[:2], "parallel_tool_calls": False},
    "generateObject of the AI SDK": {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    "instructor": {"response_format": {"type": "json_object"}},
    "llama-index": {"temperature": 0.1},
    "aider": {"temperature": 0},
    "penalties": {"frequency_penalty": 0.5, "presence_penalty": -0.5},
    "log probabilities": {"logprobs": True, "top_logprobs": 3},
    "biased tokens": {"logit_bias": {"50256": -100.0}},
    "verbosity": {"verbosity": "low"},
    "vLLM's sampling": {"top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True},
    "llama.cpp's cache": {"cache_prompt": True},
    "DeepSeek's template": {"chat_template_kwargs": {"thinking": True}},
    "Qwen's thinking": {"enable_thinking": True},
    "OpenRouter": {"reasoning": {"effort": "low"}, "provider": {"order": ["x"]}},
    "a prompt of 300 KB": {"messages": [USER | {"content": "word " * 60_000}]},
    "an image": {"messages": [USER | {"content": [{"type": "text", "text": "hi"}, IMAGE]}]},
}
# They are taken, and no upstream needs them.
HARMLESS: dict[str, dict[str, object]] = {
    "Codex": {"client_metadata": {"x": "y"}},
    "labels": {"metadata": {"x": "y"}, "store": True, "user": "ann"},
    "vLLM's usage in every chunk": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
}
HISTORY: dict[str, dict[str, object]] = {
    "@openai/agents": {"content": [PART]},
    "LiteLLM": {"content": "Yes.", "provider_specific_fields": {"reasoning": "Hm"}, "thinking_blocks": []},
    "OpenRouter": {"content": "Yes.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}]},
    "a message with its id": {"content": "Yes.", "id": "msg_1", "annotations": []},
    "a refusal": {"content": [{"type": "refusal", "refusal": "Yes."}]},
}


async def send(
    serving: Any,
    engine: Any,
    fields: dict[str, object],
    *,
    stream: bool,
    api: str = "chat/completions",
    **settings: Any,
) -> httpx.Response:
    """Ask for a completion or a response, and check that there is one."""
    turn = {"messages": [USER]} if api == "chat/completions" else {"input": [USER]}
    body = {"model": engine.info.models[0], "stream": stream} | turn | fields
    if not stream:
        body.pop("stream_options", None)
    async with serving(engine, **settings) as served, httpx.AsyncClient(timeout=30, verify=False) as client:
        answer = await client.post(f"{served.base_url}/{api}", json=body)
    assert answer.status_code == 200, answer.text
    assert "Hi." in answer.text
    return answer


async def received(
    serving: Any, fields: dict[str, object], *, stream: bool, ignored: str | None = None, **settings: Any
) -> Any:
    """The body of the one request that the upstream gets. Checks which fields this server says that it ignores."""
    async with (
        open_scripted_upstream(ANSWER) as upstream,
        open_upstream(upstream.url, model="m", thinking={}) as engine,
    ):
        answer = await send(serving, engine, fields, stream=stream, **settings)
    assert answer.headers.get("crucible-ignored") == ignored
    [(_, _, body)] = upstream.requests
    return json.loads(body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("row", UNDERSTOOD)
async def test_the_upstream_gets_the_fields_as_the_client_sent_them(serving, row, stream) -> None:
    assert await received(serving, UNDERSTOOD[row], stream=stream) == PLAIN | UNDERSTOOD[row]


@pytest.mark.parametrize("row", HARMLESS)
async def test_harmless_fields_are_taken_and_stay_here(serving, row) -> None:
    assert await received(serving, HARMLESS[row], stream=True) == PLAIN


@pytest.mark.parametrize("row", HISTORY)
async def test_an_earlier_answer_comes_back_in_any_form(serving, row) -> None:
    body = await received(serving, history(HISTORY[row]), stream=False)
    assert body == PLAIN | {"messages": [USER, {"role": "assistant", "content": "Yes."}, USER]}


async def test_a_limit_over_the_servers_is_lowered(serving) -> None:
    body = await received(serving, {"max_tokens": 10**6}, stream=False, max_output_tokens=32_768)
    assert body == PLAIN | {"max_tokens": 32_768}


async def test_the_message_that_this_server_sent_comes_back(serving) -> None:
    """LiteLLM and others send a whole message back as they got it, the trace included."""
    async with (
        open_scripted_upstream(ANSWER) as upstream,
        open_upstream(upstream.url, model="m", thinking={}) as engine,
    ):
        message = (await send(serving, engine, {}, stream=False)).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hi.", "refusal": None}
    body = await received(serving, history(message | {"reasoning_content": "Hm"}), stream=False)
    assert body["messages"][1] == {"role": "assistant", "content": "Hi."}


# An engine without tools and sampling takes what asks for nothing, and names the fields that it does not honour.


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"temperature": 0.1}, "temperature"),
        ({"temperature": 0, "top_k": 20}, "temperature, top_k"),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"client_metadata": {"x": "y"}, "store": True}, None),
    ],
)
async def test_an_engine_without_capabilities_answers_too(serving, fields, ignored) -> None:
    answer = await send(serving, ScriptedEngine("Hi."), fields, stream=False)
    assert answer.headers.get("crucible-ignored") == ignored


# Responses. An upstream speaks chat completions, so it gets the same in that form.

FLAT_TOOL = {"type": "function"} | tool("find")["function"]  # type: ignore[operator]
FORMAT = {"type": "json_schema"} | SCHEMA
FIND_CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
CODEX = [
    {"role": "system", "content": "Be short."},
    {"role": "system", "content": "Be kind."},
    USER,
    {"role": "assistant", "content": None, "tool_calls": [FIND_CALL]},
    {"role": "tool", "content": "31", "tool_call_id": "c1"},
]
RESPONSES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "a tool": ({"tools": [FLAT_TOOL], "tool_choice": "auto"}, {"tools": [tool("find")], "tool_choice": "auto"}),
    "tools that are switched off": (
        {"tools": [FLAT_TOOL], "tool_choice": "none"},
        {"tools": [tool("find")], "tool_choice": "none"},
    ),
    "one call at a time": (
        {"tools": [FLAT_TOOL], "parallel_tool_calls": False},
        {"tools": [tool("find")], "parallel_tool_calls": False},
    ),
    "structured output": (
        {"text": {"format": FORMAT}},
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    ),
    "JSON mode": ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
    "verbosity": ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
    "log probabilities": (
        {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 3},
    ),
    "sampling": ({"temperature": 0.1, "top_p": 0.5}, {"temperature": 0.1, "top_p": 0.5}),
    "penalties": ({"frequency_penalty": 0.5, "presence_penalty": -0.5},) * 2,
    "a limit": ({"max_output_tokens": 5}, {"max_tokens": 5}),
    "a prompt of 300 KB": (
        {"input": "word " * 60_000},
        {"messages": [USER | {"content": "word " * 60_000}]},
    ),
    "an image": (
        {
            "input": [
                USER
                | {
                    "content": [
                        {"type": "input_text", "text": "hi"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
                    ]
                }
            ]
        },
        {"messages": [USER | {"content": [{"type": "text", "text": "hi"}, IMAGE]}]},
    ),
    "Codex": (
        {
            "instructions": "Be short.",
            "tools": [FLAT_TOOL],
            "tool_choice": "auto",
            "parallel_tool_calls": False,
            "reasoning": {"summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": "k",
            "client_metadata": {"x": "y"},
            "input": [
                {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "31"},
            ],
        },
        {"tools": [tool("find")], "tool_choice": "auto", "parallel_tool_calls": False, "messages": CODEX},
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("row", RESPONSES)
async def test_the_upstream_gets_the_fields_of_a_response_as_chat_completions_have_them(serving, row, stream) -> None:
    fields, expected = RESPONSES[row]
    assert await received(serving, fields, stream=stream, api="responses") == PLAIN | expected


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools.web_search"),
        ({"service_tier": "flex", "safety_identifier": "s", "user": "ann", "metadata": {"x": "y"}}, None),
    ],
)
async def test_fields_of_a_response_that_no_upstream_needs_stay_here(serving, fields, ignored) -> None:
    assert await received(serving, fields, stream=True, api="responses", ignored=ignored) == PLAIN
