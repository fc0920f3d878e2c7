"""Chat completions with the unmodified openai SDK: sync, on asyncio and on trio, with our server on a real socket."""

from __future__ import annotations

from functools import partial
from typing import Any

import openai
import pytest
import trio

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.testing import CallTool, Gate, ScriptedEngine

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "Why?"}]
DEEP = (Reasoning("First, ", 0), Reasoning("then.", 1), "Hel", "lo.", Finish(usage=Usage(3, 9, 4)))
ASK: dict[str, Any] = {"model": "small:deep", "messages": MESSAGES}
LIVE: dict[str, Any] = ASK | {"stream": True, "stream_options": {"include_usage": True}}


def engine(*steps: Any) -> ScriptedEngine:
    return ScriptedEngine(*steps, models=["small"])


def check_chunks(chunks: list[Any]) -> None:
    """Check the chunks that raw iteration over the deep stream gives."""
    assert len({chunk.id for chunk in chunks}) == 1
    *pieces, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert "".join(delta.content or "" for delta in deltas) == "Hello."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "First, then."
    assert not any(hasattr(delta, "reasoning") for delta in deltas)
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens, usage.usage.total_tokens) == (3, 9, 12)
    assert usage.usage.completion_tokens_details.reasoning_tokens == 4


def check_completion(completion: Any) -> None:
    """Check the content of the whole completion, and that its types are those the SDK expects."""
    type(completion).model_validate(completion.model_dump(), strict=True)
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello.", "stop")
    assert choice.message.reasoning_content == "First, then."
    assert completion.usage.total_tokens == 12


async def test_the_sync_client(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> None:
        with client.chat.completions.create(**LIVE) as stream:
            chunks = list(stream)
        for chunk in chunks:
            type(chunk).model_validate(chunk.model_dump(), strict=True)
        check_chunks(chunks)
        with client.chat.completions.stream(**ASK) as helper:
            kinds = [event.type for event in helper]
            check_helper(kinds, helper.get_final_completion())
        check_completion(client.chat.completions.create(**ASK))
        assert [model.id for model in client.models.list()] == ["small"]
        assert client.models.retrieve("small:deep").created == 0

    async with serving(engine(*DEEP)) as served:
        await with_sync_client(served, use)
        assert {stream.request.mode for stream in await served.pipeline.list()} == {"deep"}


def check_helper(kinds: list[str], completion: Any) -> None:
    assert kinds.count("content.done") == 1
    assert "content.delta" in kinds
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello.", "stop")


async def test_the_async_client(serving, with_async_client) -> None:
    async def use(client: openai.AsyncOpenAI) -> None:
        async with await client.chat.completions.create(**LIVE) as stream:
            check_chunks([chunk async for chunk in stream])
        async with client.chat.completions.stream(**ASK) as helper:
            kinds = [event.type async for event in helper]
            check_helper(kinds, await helper.get_final_completion())
        check_completion(await client.chat.completions.create(**ASK))
        assert [model.id async for model in client.models.list()] == ["small"]

    async with serving(engine(*DEEP)) as served:
        await with_async_client(served, use)


async def test_silence_and_drain_raise_nothing(serving, with_async_client) -> None:
    gate = Gate()

    async def use(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(**LIVE)
        text = ""
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        return text

    async def drain_then_open(served: Any) -> None:
        await gate.wait_reached()
        served.pipeline.draining = True
        (await served.pipeline.list())[0].log.wake()
        await trio.sleep(0.1)  # longer than the heartbeat interval, so that heartbeats are sent
        gate.open()

    async with serving(engine("a", gate, "b"), heartbeat_seconds=0.02) as served, trio.open_nursery() as nursery:
        nursery.start_soon(drain_then_open, served)
        assert await with_async_client(served, use) == "ab"


async def test_keep_alives_change_nothing_for_the_helper(serving, with_sync_client) -> None:
    gates = [Gate(), Gate(), Gate()]
    first, second, third = gates
    steps = (Reasoning("Hm", 0), first, "Hel", second, "lo", CallTool("weather", ('{"ci', third, 'ty": 1}')))
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

    def use(client: openai.OpenAI) -> Any:
        closed = list(gates)
        with client.chat.completions.stream(**ASK, tools=[tool]) as helper:
            for event in helper:
                if event.type == "chunk" and closed and closed[0].waiting:
                    [choice] = event.chunk.choices
                    if not choice.delta.to_dict() and choice.finish_reason is None:
                        trio.from_thread.run_sync(closed.pop(0).open)  # the silence lasts until a chunk has filled it
            assert not closed
            return helper.get_final_completion()

    tools = ScriptedEngine(*steps, models=["small"], capabilities=Capabilities(tools=True))
    async with serving(tools, heartbeat_seconds=0.01) as served:
        completion = await with_sync_client(served, use)
    [choice] = completion.choices
    [made] = choice.message.tool_calls
    assert (choice.message.content, choice.finish_reason) == ("Hello", "tool_calls")
    assert (made.function.name, made.function.arguments) == ("weather", '{"city": 1}')


# Failures: the client raises, and never takes a partial answer for a whole one


@pytest.mark.parametrize(
    ("steps", "code"),
    [([EngineError("model_failed", "It broke.")], "model_failed"), ([1000], "idle_deadline")],
)
async def test_a_failing_stream_raises_after_its_partial_text(serving, with_async_client, steps, code) -> None:
    text = ""

    async def use(client: openai.AsyncOpenAI) -> None:
        nonlocal text
        async for chunk in await client.chat.completions.create(**LIVE):
            text += chunk.choices[0].delta.content or ""

    async with serving(engine("Hel", *steps), idle_seconds=0.1) as served:
        with pytest.raises(openai.APIError) as caught:
            await with_async_client(served, use)
    assert text == "Hel"
    assert (caught.value.code, caught.value.type) == (code, "server_error")


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (EngineError("upstream_refused", "Busy.", retryable=True), 2),
        (EngineError("model_failed", "It broke."), 1),
    ],
)
async def test_the_sdk_retries_only_retryable_errors(serving, with_sync_client, error, calls) -> None:
    """The SDK waits as long as `Retry-After` says before a retry, so one retry is enough for this test."""
    waits: list[float] = []

    def use(client: openai.OpenAI) -> None:
        client._sleep_for_retry = partial(no_sleep, client, waits)  # type: ignore[method-assign]
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**ASK)
        assert (caught.value.status_code, caught.value.code) == (503 if error.retryable else 400, error.code)

    failing = engine("a", error)
    async with serving(failing) as served:
        await with_sync_client(served, use, max_retries=1)
    assert failing.calls == calls
    assert len(waits) == calls - 1
    assert all(4 <= seconds <= 6 for seconds in waits)


def no_sleep(client: openai.OpenAI, waits: list[float], *, retries_taken, max_retries, options, response) -> None:
    headers = response.headers if response is not None else None
    waits.append(client._calculate_retry_timeout(max_retries - retries_taken, options, headers))


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"n": 2}, openai.BadRequestError, "n"),
        ({"extra_body": {"x": 1}}, openai.BadRequestError, "x"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model"),
    ],
)
async def test_a_refusal_names_the_field(serving, with_sync_client, fields, error, param) -> None:
    def use(client: openai.OpenAI) -> None:
        with pytest.raises(error) as caught:
            client.chat.completions.create(**ASK | fields)
        assert caught.value.param == param
        assert caught.value.type == "invalid_request_error"

    async with serving(engine("a")) as served:
        await with_sync_client(served, use)


async def test_a_stream_cancelled_from_elsewhere_raises_and_is_not_retried(serving, with_async_client) -> None:
    waiting = engine("a", gate := Gate())

    async def use(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**ASK)
        assert (caught.value.status_code, caught.value.code) == (400, "cancelled")

    async def cancel(served: Any) -> None:
        await gate.wait_reached()
        (await served.pipeline.list())[0].cancel()

    async with serving(waiting) as served, trio.open_nursery() as nursery:
        nursery.start_soon(cancel, served)
        await with_async_client(served, use, max_retries=2)
        assert waiting.calls == 1


async def test_a_wrong_key_is_an_authentication_error(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> None:
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(**ASK)
        check_completion(client.with_options(api_key="key").chat.completions.create(**ASK))

    async with serving(engine(*DEEP), keys={"alice": "key"}) as served:
        await with_sync_client(served, use)


# The client leaves


async def test_closing_the_stream_stops_the_engine(serving, with_async_client) -> None:
    waiting = engine("a", Gate())

    async def use(client: openai.AsyncOpenAI) -> None:
        async with await client.chat.completions.create(**LIVE) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content == "a":
                    break

    async with serving(waiting) as served:
        await with_async_client(served, use)
        await waiting.runs[0].ended.wait()
        assert waiting.runs[0].end == "cancelled"


async def test_with_a_key_a_second_call_gets_the_whole_answer_of_the_first(serving, with_async_client) -> None:
    waiting = engine("a", gate := Gate(), "b")
    headers = {"Idempotency-Key": "key"}

    async def use(client: openai.AsyncOpenAI) -> None:
        async with await client.chat.completions.create(**LIVE, extra_headers=headers) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content == "a":
                    break
        trio_token.run_sync_soon(gate.open)
        raw = await client.chat.completions.with_raw_response.create(**ASK, extra_headers=headers)
        assert raw.headers["crucible-replayed"] == "true"
        assert raw.parse().choices[0].message.content == "ab"

    async with serving(waiting) as served:
        trio_token = trio.lowlevel.current_trio_token()
        await with_async_client(served, use)
        assert waiting.calls == 1
