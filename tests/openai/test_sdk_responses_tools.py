"""Tools over the responses API with the unmodified openai SDK, through our server, to a server that answers in bytes.

One turn calls a tool. The next turn sends the call and its result back.
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
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
QUESTION: dict[str, Any] = {"role": "user", "content": "Is it hot in Rome?"}
ASK: dict[str, Any] = {"model": "m", "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False}


def chunk(finish_reason: str | None = None, **delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish_reason}]}).encode() + b"\n\n"


def call(name: str, *pieces: str) -> bytes:
    first = chunk(tool_calls=[{"index": 0, "id": "c1", "function": {"name": name, "arguments": ""}}])
    return first + b"".join(chunk(tool_calls=[{"index": 0, "function": {"arguments": piece}}]) for piece in pieces)


DONE = b"data: [DONE]\n\n"
CALL = call("weather", ARGUMENTS[:8], ARGUMENTS[8:]) + chunk("tool_calls") + DONE
ANSWER = chunk(content="Yes, ") + chunk(content="31.") + chunk("stop") + DONE


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
async def in_front_of(serving: Any, *answers: bytes, **options: Any) -> AsyncIterator[tuple[Any, Upstream]]:
    upstream = Upstream(answers)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, upstream.serve, 0, host="127.0.0.1"))
        upstream.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        async with open_upstream(upstream.url, model="m", **options) as engine, serving(engine) as served:
            yield served, upstream
        nursery.cancel_scope.cancel()


def check_upstream(upstream: Upstream) -> None:
    first, second = upstream.bodies
    tool = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
    for body in (first, second):
        assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([tool], "auto", False)
    assert first["messages"] == [QUESTION]
    function = {"name": "weather", "arguments": ARGUMENTS}
    assert second["messages"] == [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]},
        {"role": "tool", "content": "31", "tool_call_id": "c1"},
    ]


def final(client: openai.OpenAI, form: str, turn: list[Any], **asked: Any) -> Any:
    """The response of a turn: whole, from raw events, or from the stream helper."""
    if form == "whole":
        return client.responses.create(input=turn, **asked)
    if form == "raw":
        events = list(client.responses.create(input=turn, stream=True, **asked))
        assert events[-1].type == "response.completed"
        return events[-1].response
    with client.responses.stream(input=turn, **asked) as helper:
        for _ in helper:
            pass
        return helper.get_final_response()


@pytest.mark.parametrize("form", ["whole", "raw", "helper"])
async def test_a_tool_call_and_its_result_go_through(serving, with_sync_client, form) -> None:
    def use(client: openai.OpenAI) -> str:
        response = final(client, form, [QUESTION], **ASK)
        [made] = response.output
        assert (made.type, made.call_id, made.name, made.arguments) == ("function_call", "c1", "weather", ARGUMENTS)
        assert [tool.name for tool in response.tools] == ["weather"]
        assert (response.tool_choice, response.parallel_tool_calls) == ("auto", False)
        result = {"type": "function_call_output", "call_id": made.call_id, "output": "31"}
        return final(client, form, [QUESTION, made.model_dump(exclude_none=True), result], **ASK).output_text

    async with in_front_of(serving, CALL, ANSWER) as (served, upstream):
        assert await with_sync_client(served, use) == "Yes, 31."
    check_upstream(upstream)


async def test_the_events_of_a_call_on_trio_and_asyncio(serving, with_async_client) -> None:
    async def use(client: openai.AsyncOpenAI) -> list[Any]:
        return [event async for event in await client.responses.create(input="Hot?", stream=True, **ASK)]

    async with in_front_of(serving, CALL) as (served, _):
        events = await with_async_client(served, use)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind in kinds if "delta" not in kind] == [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == ARGUMENTS


async def test_arguments_that_were_cut_are_never_done(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> tuple[list[str], Any]:
        events = list(client.responses.create(input="Hot?", stream=True, **ASK))
        return [event.type for event in events], events[-1].response

    async with in_front_of(serving, call("weather", ARGUMENTS[:8]) + chunk("length") + DONE) as (served, _):
        kinds, response = await with_sync_client(served, use)
    assert kinds[-1] == "response.incomplete"
    assert not any(kind.endswith((".done", "completed")) for kind in kinds)
    assert [item.status for item in response.output] == ["incomplete"]


async def test_a_turn_names_the_response_before_it(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> Any:
        first = client.responses.create(input=[QUESTION], **ASK)
        result: Any = {"type": "function_call_output", "call_id": "c1", "output": "31"}
        second = client.responses.create(input=[result], previous_response_id=first.id, **ASK)
        assert second.previous_response_id == first.id
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(input="And?", previous_response_id="resp_gone", **ASK)
        assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
        assert second.output_text == "Yes, 31."
        return [item.type for item in client.responses.input_items.list(second.id, limit=2, order="asc")]

    async with in_front_of(serving, CALL, ANSWER) as (served, upstream):
        kinds = await with_sync_client(served, use)
    assert kinds == ["message", "function_call", "function_call_output"]
    check_upstream(upstream)


async def test_a_trace_goes_back_to_an_upstream_that_takes_it(serving, with_sync_client) -> None:
    def use(client: openai.OpenAI) -> None:
        options: dict[str, Any] = {"store": False, "include": ["reasoning.encrypted_content"], **ASK}
        first = client.responses.create(input=[QUESTION], **options)
        output: list[Any] = [item.model_dump(exclude_none=True) for item in first.output]
        result: Any = {"type": "function_call_output", "call_id": "c1", "output": "31"}
        client.responses.create(input=[QUESTION, *output, result], **options)

    deep = chunk(reasoning_content="Ask ") + chunk(reasoning_content="the tool.") + CALL
    async with in_front_of(serving, deep, ANSWER, reasoning_field="reasoning_content") as (served, upstream):
        await with_sync_client(served, use)
    assert upstream.bodies[1]["messages"][1]["reasoning_content"] == "Ask the tool."


async def test_structured_output_goes_through(serving, with_sync_client) -> None:
    class Weather(pydantic.BaseModel):
        city: str

    def use(client: openai.OpenAI) -> Any:
        return client.responses.parse(model="m", input="Where?", text_format=Weather).output_parsed

    answer = chunk(content=ARGUMENTS) + chunk("stop") + DONE
    async with in_front_of(serving, answer) as (served, upstream):
        assert await with_sync_client(served, use) == Weather(city="Rome")
    wanted = upstream.bodies[0]["response_format"]
    assert (wanted["type"], wanted["json_schema"]["strict"]) == ("json_schema", True)
    assert wanted["json_schema"]["schema"]["required"] == ["city"]
