"""Tools with the unmodified openai SDK, through our server and our upstream engine, to a server that answers in bytes.

One turn calls a tool. The next turn sends the result back.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import openai
import pydantic
import pytest
import trio

from crucible_trio.engines.upstream import open_upstream

ARGUMENTS = '{"city": "Rome"}'
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
QUESTION: dict[str, Any] = {"role": "user", "content": "Is it hot in Rome?"}


def chunk(finish_reason: str | None = None, **delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish_reason}]}).encode() + b"\n\n"


def call(index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: str = "") -> bytes:
    fields: dict[str, object] = {"id": call_id, "function": {"name": name, "arguments": arguments}}
    return chunk(tool_calls=[fields if index is None else fields | {"index": index}])


END, DONE = chunk("tool_calls"), b"data: [DONE]\n\n"
ANSWER = chunk(content="Yes, ") + chunk(content="31.") + chunk("stop") + DONE
# The same call, as different servers send it.
CALLS = {
    "proper": call(0, "c1", "weather") + call(0, None, None, ARGUMENTS[:8]) + call(0, None, None, ARGUMENTS[8:]) + END,
    "repeated": call(0, "c1", "weather", ARGUMENTS[:8]) + call(0, "c1", "weather", ARGUMENTS[8:]) + chunk("stop"),
    "no index": call(None, "c1", "weather", ARGUMENTS[:8]) + call(None, None, None, ARGUMENTS[8:]) + END,
    "whole": call(0, "c1", "weather", ARGUMENTS) + chunk("stop"),
}  # fmt: skip
IN_TURN = (
    call(0, "c1", "weather")
    + call(0, None, None, ARGUMENTS)
    + call(1, "c2", "weather")
    + call(1, None, None, '{"city":')
    + call(1, None, None, ' "Oslo"}')
    + END
)
TWO_CALLS = (
    call(0, "c1", "weather", ARGUMENTS[:8])
    + call(1, "c2", "weather", '{"city":')
    + call(0, None, None, ARGUMENTS[8:])
    + call(1, None, None, ' "Oslo"}')
    + chunk("tool_calls")
)


class Upstream:
    """Answers the requests in order.

    Attributes:
        url: Its base URL.
        bodies: The bodies of the requests.
    """

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self._answers = list(answers)

    async def serve(self, stream: trio.SocketStream) -> None:
        received = b""
        async with stream:
            while b"\r\n\r\n" not in received:
                received += await stream.receive_some()
            head, _, body = received.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            while len(body) < int(lengths[0].split()[1]):
                body += await stream.receive_some()
            self.bodies.append(json.loads(body))
            answer = self._answers[min(len(self.bodies), len(self._answers)) - 1]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(answer)}".encode()
            await stream.send_all(head + b"\r\nConnection: close\r\n\r\n" + answer)


@asynccontextmanager
async def in_front_of(serving: Any, *answers: bytes) -> AsyncIterator[tuple[Any, Upstream]]:
    upstream = Upstream(answers)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, upstream.serve, 0, host="127.0.0.1"))
        upstream.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        async with open_upstream(upstream.url, model="m") as engine, serving(engine) as served:
            yield served, upstream
        nursery.cancel_scope.cancel()


def second_turn(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [QUESTION, message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "31"}]


def check_upstream(upstream: Upstream) -> None:
    first, second = upstream.bodies
    for body in (first, second):
        assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([TOOL], "auto", False)
    assert first["messages"] == [QUESTION]
    function = {"name": "weather", "arguments": ARGUMENTS}
    assert second["messages"] == [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "content": "31", "tool_call_id": "c1"},
    ]


ASK: dict[str, Any] = {"model": "m", "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}


@pytest.mark.parametrize("form", CALLS)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_tool_call_and_its_result_go_through(serving, with_sync_client, form, is_streamed) -> None:
    def use(client: openai.OpenAI) -> str | None:
        def turn(messages: Any) -> Any:
            if not is_streamed:
                [choice] = client.chat.completions.create(messages=messages, **ASK).choices
                return choice
            with client.chat.completions.stream(messages=messages, **ASK) as events:
                for _ in events:
                    pass
                [choice] = events.get_final_completion().choices
                return choice

        choice = turn([QUESTION])
        assert choice.finish_reason == "tool_calls"
        [made] = choice.message.tool_calls
        assert (made.id, made.function.name, made.function.arguments) == ("c1", "weather", ARGUMENTS)
        return turn(second_turn(choice.message.model_dump())).message.content

    async with in_front_of(serving, CALLS[form] + DONE, ANSWER) as (served, upstream):
        assert await with_sync_client(served, use) == "Yes, 31."
    check_upstream(upstream)


async def test_raw_chunks_of_a_tool_call_on_trio_and_asyncio(serving, with_async_client) -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.chat.completions.create(messages=[QUESTION], stream=True, **ASK)
        return [chunk async for chunk in stream]

    async with in_front_of(serving, CALLS["repeated"] + DONE) as (served, _):
        chunks = await with_async_client(served, use)
    deltas = [made for each in chunks for made in each.choices[0].delta.tool_calls or ()]
    first, *rest = [(made.index, made.id, made.function.name) for made in deltas]
    assert first == (0, "c1", "weather")
    assert set(rest) == {(0, None, None)}
    assert "".join(made.function.arguments for made in deltas) == ARGUMENTS
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("form", ["whole", "raw", "helper"])
async def test_two_calls_in_turn_are_two(serving, with_sync_client, form) -> None:
    def use(client: openai.OpenAI) -> list[tuple[str, str, str]]:
        ask = ASK | {"messages": [QUESTION]}
        if form == "raw":
            return joined(client.chat.completions.create(stream=True, **ask))
        if form == "helper":
            with client.chat.completions.stream(**ask) as events:
                done = [event.arguments for event in events if event.type == "tool_calls.function.arguments.done"]
                message = events.get_final_completion().choices[0].message
            assert done == [made.function.arguments for made in message.tool_calls or ()]
        else:
            message = client.chat.completions.create(**ask).choices[0].message
        return [(made.id, made.function.name, made.function.arguments) for made in message.tool_calls or ()]

    async with in_front_of(serving, IN_TURN + DONE) as (served, _):
        calls = await with_sync_client(served, use)
    assert calls == [("c1", "weather", ARGUMENTS), ("c2", "weather", '{"city": "Oslo"}')]


def joined(chunks: Any) -> list[tuple[str, str, str]]:
    """The calls of raw chunks, put together by their index."""
    calls: dict[int, tuple[str, str, str]] = {}
    for each in chunks:
        for made in each.choices[0].delta.tool_calls or ():
            call_id, name, arguments = calls.get(made.index, (made.id, made.function.name, ""))
            calls[made.index] = (call_id, name, arguments + made.function.arguments)
    return [calls[index] for index in sorted(calls)]


async def test_interleaved_strict_calls_parse_in_the_helper(serving, with_sync_client) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    def use(client: openai.OpenAI) -> list[tuple[str, object]]:
        tool = openai.pydantic_function_tool(Weather, name="weather")
        with client.chat.completions.stream(model="m", messages=[QUESTION], tools=[tool]) as events:
            done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
            assert [event.arguments for event in done] == [ARGUMENTS, '{"city": "Oslo"}']
            message = events.get_final_completion().choices[0].message
        return [(made.id, made.function.parsed_arguments) for made in message.tool_calls or ()]

    async with in_front_of(serving, TWO_CALLS + DONE) as (served, _):
        assert await with_sync_client(served, use) == [("c1", Weather(city="Rome")), ("c2", Weather(city="Oslo"))]


async def test_a_call_that_is_cut_raises_and_is_never_whole(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> None:
        with pytest.raises(openai.APIError) as caught:
            client.chat.completions.create(messages=[QUESTION], **ASK)
        assert caught.value.code == "upstream_ended_early"
        kinds: list[str] = []
        helper = client.chat.completions.stream(messages=[QUESTION], **ASK)
        with pytest.raises(openai.APIError), helper as events:
            kinds.extend(event.type for event in events)
        assert "chunk" in kinds
        assert "tool_calls.function.arguments.done" not in kinds

    body = CALLS["proper"]
    async with in_front_of(serving, body[: body.index(b"Rome")]) as (served, _):
        await with_sync_client(served, use)


async def test_arguments_that_the_limit_cut_are_a_length_finish(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> None:
        [choice] = client.chat.completions.create(messages=[QUESTION], **ASK).choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)
        stream = client.chat.completions.create(messages=[QUESTION], stream=True, **ASK)
        assert [each.choices[0].finish_reason for each in stream][-1] == "length"

    async with in_front_of(serving, call(0, "c1", "weather", ARGUMENTS[:8]) + chunk("tool_calls") + DONE) as (
        served,
        _,
    ):
        await with_sync_client(served, use)
