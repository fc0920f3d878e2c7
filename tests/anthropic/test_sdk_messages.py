"""Anthropic's SDK for Python against the real server: raw and with its helper, synchronous and asynchronous."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
import trio

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.request import ImagePart, Message, TextPart, ToolCall
from crucible_trio.testing import CUTS, CallTool, ScriptedEngine, Treatment, open_chaos_proxy

anthropic = pytest.importorskip("anthropic")

ASK: dict[str, Any] = {"model": "scripted", "max_tokens": 100, "messages": [{"role": "user", "content": "Why?"}]}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
STEPS: list[Any] = [
    Reasoning("First, ", 0),
    Reasoning("wägen. \U0001f98a", 1),
    "Because",
    " it\u2028is 茶.",
    Finish(usage=Usage(3, 9, 4)),
]
TEXT = "Because it\u2028is 茶."
TRACE = "First, wägen. \U0001f98a"
CAPABLE = Capabilities(tools=True, images=True, reasoning_input=True, structured_output=True)
TOOLS = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"name": "now", "input_schema": {"type": "object"}},
]
CALLS: list[Any] = [
    Reasoning("Look.", 0),
    "I look.",
    CallTool("weather", ['{"ci', 'ty": "Ro', 'me"}'], id="call_1"),
    CallTool("now", [], id="call_2"),
    Finish("tool_calls"),
]


def raw(client: Any, **fields: Any) -> list[Any]:
    with client.messages.create(**ASK, stream=True, **fields) as stream:
        return list(stream)


def helped(client: Any, **fields: Any) -> Any:
    with client.messages.stream(**ASK, **fields) as stream:
        return stream.get_final_message()


async def helped_async(client: Any, **fields: Any) -> Any:
    async with client.messages.stream(**ASK, **fields) as stream:
        return await stream.get_final_message()


def kinds(message: Any) -> list[str]:
    return [block.type for block in message.content]


async def test_a_stream_raw(serving: Callable, with_sync_client: Callable) -> None:
    async with serving(ScriptedEngine(*STEPS)) as served:
        events = await with_sync_client(served, lambda client: raw(client, **THINK))
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert "".join(delta.thinking for delta in deltas if delta.type == "thinking_delta") == TRACE
    assert "".join(delta.text for delta in deltas if delta.type == "text_delta") == TEXT
    assert [event.type for event in events][-2:] == ["message_delta", "message_stop"]
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == ("end_turn", 9)


async def test_the_helper_and_a_whole_message_are_equal(serving: Callable, with_sync_client: Callable) -> None:
    async with serving(ScriptedEngine(*STEPS)) as served:
        streamed = await with_sync_client(served, lambda client: helped(client, **THINK))
        whole = await with_sync_client(served, lambda client: client.messages.create(**ASK, **THINK))
    for message in (streamed, whole):
        assert kinds(message) == ["thinking", "text"]
        assert (message.content[0].thinking, message.content[1].text) == (TRACE, TEXT)
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 9)
    assert whole._request_id == whole.id
    assert streamed.content[0].signature == whole.content[0].signature


async def test_the_asynchronous_client_on_trio_and_asyncio(serving: Callable, with_async_client: Callable) -> None:
    async def use(client: Any) -> tuple[Any, list[str]]:
        message = await helped_async(client, **THINK)
        stream = await client.messages.create(**ASK, stream=True)
        return message, [event.type async for event in stream]

    async with serving(ScriptedEngine(*STEPS)) as served:
        message, types = await with_async_client(served, use)
    assert (message.content[0].thinking, message.content[1].text) == (TRACE, TEXT)
    assert types[-1] == "message_stop"


async def test_a_program_that_did_not_ask_for_a_trace_finds_the_answer_in_block_0(
    serving: Callable, with_sync_client: Callable
) -> None:
    async with serving(ScriptedEngine(*STEPS)) as served:
        message = await with_sync_client(served, lambda client: client.messages.create(**ASK))
        assert message.content[0].text == TEXT
        assert await with_sync_client(served, lambda client: "".join(text_of(client))) == TEXT


def text_of(client: Any) -> list[str]:
    with client.messages.stream(**ASK) as stream:
        return list(stream.text_stream)


async def test_pings_are_harmless(serving: Callable, with_sync_client: Callable) -> None:
    engine = ScriptedEngine(0.2, Reasoning("Hm.", 0), 0.2, "Because.")
    async with serving(engine, heartbeat_seconds=0.02) as served:
        events = await with_sync_client(served, lambda client: raw(client, **THINK))
        message = await with_sync_client(served, lambda client: helped(client, **THINK))
    assert "ping" not in {event.type for event in events}
    assert message.content[1].text == "Because."


async def test_a_turn_with_tools_there_and_back(serving: Callable, with_sync_client: Callable) -> None:
    engine = ScriptedEngine(
        lambda request: STEPS if any(message.role == "tool" for message in request.messages) else CALLS,
        capabilities=CAPABLE,
    )

    def use(client: Any) -> tuple[Any, Any]:
        asked = helped(client, tools=TOOLS, **THINK)
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "31", "is_error": block.name == "now"}
            for block in asked.content
            if block.type == "tool_use"
        ]
        turns = [*ASK["messages"], asked.to_param(), {"role": "user", "content": results}]
        return asked, client.messages.create(**ASK | {"messages": turns}, tools=TOOLS, **THINK)

    async with serving(engine, token_secret="secret") as served:
        asked, answered = await with_sync_client(served, use)
        assert served.pipeline.metrics.unverified_traces == 0
    assert (kinds(asked), asked.stop_reason) == (["thinking", "text", "tool_use", "tool_use"], "tool_use")
    assert [(call.id, call.name, call.input) for call in asked.content[2:]] == [
        ("call_1", "weather", {"city": "Rome"}),
        ("call_2", "now", {}),
    ]
    assert answered.content[1].text == TEXT
    assert engine.runs[1].request.messages == (
        Message("user", "Why?"),
        Message(
            "assistant",
            "I look.",
            tool_calls=(ToolCall("call_1", "weather", '{"city":"Rome"}'), ToolCall("call_2", "now", "{}")),
            reasoning="Look.",
        ),
        Message("tool", "31", tool_call_id="call_1"),
        Message("tool", "The tool call failed.\n31", tool_call_id="call_2"),
    )


async def test_a_call_that_broke_off_is_no_tool_use(serving: Callable, with_sync_client: Callable) -> None:
    engine = ScriptedEngine(CallTool("weather", ['{"city": "Ro', Finish("length")]), capabilities=CAPABLE)
    async with serving(engine) as served:
        events = await with_sync_client(served, lambda client: raw(client, tools=TOOLS))
        streamed = await with_sync_client(served, lambda client: helped(client, tools=TOOLS))
        whole = await with_sync_client(served, lambda client: client.messages.create(**ASK, tools=TOOLS))
    assert "content_block_stop" not in {event.type for event in events}
    assert (streamed.stop_reason, whole.stop_reason, whole.content) == ("max_tokens", "max_tokens", [])


async def test_images_reach_the_model(serving: Callable, with_sync_client: Callable) -> None:
    engine = ScriptedEngine(*STEPS, capabilities=CAPABLE)
    data = base64.b64encode(b"png").decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]
    asked = ASK | {"messages": [{"role": "user", "content": content}]}
    async with serving(engine) as served:
        await with_sync_client(served, lambda client: client.messages.create(**asked))
    [message] = engine.runs[0].request.messages
    assert message.content == (TextPart("What?"), ImagePart(f"data:image/png;base64,{data}"))


async def test_the_form_of_the_answer_is_a_schema(serving: Callable, with_sync_client: Callable) -> None:
    engine = ScriptedEngine('{"city": "Rome"}', capabilities=CAPABLE)
    output = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    async with serving(engine) as served:
        await with_sync_client(served, lambda client: client.messages.create(**ASK, output_config=output))
    assert engine.runs[0].request.parameters.response_format is not None


def resumed(client: Any) -> list[Any]:
    """Read a message to its end across all cuts, with the SDK's own requests."""
    seen: list[tuple[str, Any]] = []
    while not seen or seen[-1][1]["type"] != "message_stop":
        headers = {"Last-Event-ID": seen[-1][0]} if seen else {"Idempotency-Key": "key"}
        request = {**ASK, **THINK, "stream": True}
        try:
            with client.messages.with_streaming_response.create(**request, extra_headers=headers) as answer:
                for event in anthropic.Stream.raw_events(answer.http_response):
                    if event.id and event.id not in {event_id for event_id, _ in seen}:
                        seen.append((event.id, event.json()))
        except (anthropic.APIConnectionError, anthropic.APIResponseValidationError):
            continue
        except Exception as error:  # the SDK lets its transport's errors through
            if not type(error).__module__.startswith("httpx"):
                raise
    return [event for _, event in seen]


@pytest.mark.slow
async def test_a_client_that_resumes_reads_the_same_message_across_cuts(
    serving: Callable, with_sync_client: Callable
) -> None:
    steps = [step for piece in STEPS[:-1] * 5 for step in (piece, 0.002)]
    steps = [Reasoning("Hm.", 0), *[step for step in steps if not isinstance(step, Reasoning)], STEPS[-1]]
    engine = ScriptedEngine(*steps)

    def treat(connection: int) -> Treatment:
        return Treatment(cut_after=300 * (connection + 1), cut=CUTS[connection % len(CUTS)])

    async with serving(engine) as served, open_chaos_proxy(served.port, treat) as proxy:
        through = type(served)(served.pipeline, proxy.port)
        events = await with_sync_client(through, resumed)
        assert engine.calls == 1
        assert len(proxy.connections) > 3
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == TEXT * 5


@pytest.mark.parametrize(
    ("error", "kind", "posts"),
    [
        (EngineError("upstream_refused", "Busy.", retryable=True, status=429, retry_after=0.1), "RateLimitError", 3),
        pytest.param(
            EngineError("upstream_refused", "Busy.", retryable=True, status=503, retry_after=0.1),
            "OverloadedError",
            3,
            marks=pytest.mark.slow,
        ),
        (EngineError("upstream_rejected", "No.", status=400), "BadRequestError", 1),
        (EngineError("upstream_unauthorized", "No.", status=401), "AuthenticationError", 1),
        (EngineError("upstream_rejected", "No.", status=413), "ContentTooLargeError", 1),
        (EngineError("engine_error", "No."), "InternalServerError", 1),
    ],
)
async def test_a_failure_is_an_exception_and_is_repeated_only_if_that_may_help(
    error: EngineError, kind: str, posts: int, serving: Callable, with_sync_client: Callable
) -> None:
    engine = ScriptedEngine(error)
    async with serving(engine) as served:

        def use(client: Any) -> Any:
            with pytest.raises(anthropic.APIStatusError) as caught:
                client.messages.create(**ASK)
            return caught.value

        raised = await with_sync_client(served, use, max_retries=2)
    assert type(raised).__name__ == kind
    assert engine.calls == posts
    assert raised.body["error"]["type"] == raised.type


async def test_a_failure_in_the_stream_raises_in_every_reader(serving: Callable, with_sync_client: Callable) -> None:
    engine = ScriptedEngine("Be", EngineError("upstream_error", "Lost.", retryable=True))
    async with serving(engine) as served:
        for read in (raw, helped):

            def use(client: Any, read: Any = read) -> Any:
                with pytest.raises(anthropic.APIStatusError) as caught:
                    read(client)
                return caught.value

            raised = await with_sync_client(served, use)
            assert raised.body["error"]["type"] == "overloaded_error"


async def test_a_cut_is_never_a_clean_end(serving: Callable, with_sync_client: Callable) -> None:
    gate = trio.Event()

    def use(client: Any) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - its transport's, which is not the SDK's
            raw(client)
        return type(caught.value).__name__

    async with (
        serving(ScriptedEngine("Be", 0.05, gate), heartbeat_seconds=0.01) as served,
        open_chaos_proxy(served.port, [Treatment(cut_after=900, cut="fin")]) as proxy,
    ):
        name = await with_sync_client(type(served)(served.pipeline, proxy.port), use)
    assert name in {"RemoteProtocolError", "APIConnectionError", "ReadError"}


async def test_models_and_a_count_of_tokens(serving: Callable, with_sync_client: Callable) -> None:
    def use(client: Any) -> tuple[list[str], str]:
        names = [model.id for model in client.models.list()]
        assert client.models.retrieve(names[0]).display_name == names[0]
        with pytest.raises(anthropic.NotFoundError) as caught:
            client.messages.count_tokens(model=names[0], messages=ASK["messages"])
        return names, caught.value.type

    async with serving(ScriptedEngine("a", models=["scripted", "other"])) as served:
        assert await with_sync_client(served, use, max_retries=2) == (["scripted", "other"], "not_found_error")


@pytest.mark.parametrize("header", ["api_key", "auth_token"])
async def test_both_ways_of_sending_a_key(header: str, serving: Callable, with_sync_client: Callable) -> None:
    keys = {"alice": "alice-key"}
    async with serving(ScriptedEngine(*STEPS), keys=keys) as served:

        def use(client: Any) -> str:
            return client.messages.create(**ASK).content[0].text

        assert await with_sync_client(served, use, **{"api_key": None, header: "alice-key"}) == TEXT
        with pytest.raises(anthropic.AuthenticationError):
            await with_sync_client(served, use, **{"api_key": None, header: "wrong"})
