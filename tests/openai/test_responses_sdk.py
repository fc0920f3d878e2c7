"""The responses API with OpenAI's unmodified SDK: raw iteration, its helpers, and resuming after a cut."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities, Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.testing import CallTool, Gate, Repeat, ScriptedEngine

pytestmark = pytest.mark.slow

openai = pytest.importorskip("openai")

DEEP = (Reasoning("First, ", 0), Reasoning("then.", 1), "Hel", "lo", Finish(usage=Usage(3, 9, 4)))
AGAIN = ("Hel", Reasoning("Hm", 0), Reasoning("so", 0), "lo", Finish(usage=Usage(3, 9, 4)))
ASK: dict[str, Any] = {"model": "scripted", "input": "Why?"}


def text_in(events: list[Any], kind: str = "response.output_text.delta") -> str:
    return "".join(event.delta for event in events if event.type == kind)


def numbers_in(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


@pytest.mark.parametrize("steps", [DEEP, AGAIN])
async def test_raw_events_are_read_to_the_end(steps: tuple[Any, ...], serving, with_sync_client) -> None:
    async with serving(ScriptedEngine(*steps)) as served:
        events = await with_sync_client(served, lambda client: list(client.responses.create(**ASK, stream=True)))
    assert numbers_in(events) == list(range(len(events)))
    assert text_in(events) == events[-1].response.output_text == "Hello"
    trace = text_in(events, "response.reasoning_summary_text.delta")
    assert trace == "".join(part.text for item in events[-1].response.output for part in getattr(item, "summary", []))
    assert (events[-1].type, events[-1].response.usage.total_tokens) == ("response.completed", 12)


async def test_raw_events_are_read_by_the_asynchronous_client(serving, with_async_client) -> None:
    async def use(client: Any) -> list[Any]:
        return [event async for event in await client.responses.create(**ASK, stream=True)]

    async with serving(ScriptedEngine(*DEEP)) as served:
        events = await with_async_client(served, use)
    assert numbers_in(events) == list(range(len(events)))
    assert text_in(events) == "Hello"


@pytest.mark.parametrize("steps", [DEEP, AGAIN])
async def test_the_stream_helper_accumulates_the_final_response(
    steps: tuple[Any, ...], serving, with_sync_client
) -> None:
    def use(client: Any) -> tuple[list[str], Any]:
        with client.responses.stream(**ASK) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
            return snapshots, stream.get_final_response()

    async with serving(ScriptedEngine(*steps)) as served:
        snapshots, final = await with_sync_client(served, use)
    assert snapshots[-1] == final.output[-1].content[0].text
    assert final.output_text == "Hello"
    kinds = ["message", "reasoning", "message"] if steps is AGAIN else ["reasoning", "message"]
    assert [item.type for item in final.output] == kinds


async def test_the_async_stream_helper_accumulates_the_final_response_and_resumes_by_id(
    serving, with_async_client
) -> None:
    async def use(client: Any) -> tuple[Any, list[Any], Any]:
        async with client.responses.stream(**ASK) as stream:
            first = await stream.get_final_response()
        async with client.responses.stream(response_id=first.id, starting_after=5) as stream:
            return first, [event async for event in stream], await stream.get_final_response()

    async with serving(ScriptedEngine(*DEEP)) as served:
        first, events, again = await with_async_client(served, use)
    assert first.output_text == again.output_text == "Hello"
    assert numbers_in(events) == list(range(6, 6 + len(events)))


async def test_a_response_can_be_created_without_streaming(serving, with_async_client) -> None:
    async def use(client: Any) -> tuple[Any, Any]:
        created = await client.responses.create(**ASK, reasoning={"effort": "high", "summary": "auto"})
        return created, await client.responses.retrieve(created.id)

    async with serving(ScriptedEngine(*DEEP)) as served:
        created, retrieved = await with_async_client(served, use)
    assert (created.status, created.output_text) == ("completed", "Hello")
    assert [part.text for part in created.output[0].summary] == ["First, ", "then."]
    assert retrieved == created


async def test_a_background_response_is_polled_until_it_is_done(serving, with_async_client) -> None:
    gate = Gate()

    async def use(client: Any) -> list[Any]:
        seen = [await client.responses.create(**ASK, background=True)]
        while seen[-1].status in {"queued", "in_progress"}:
            seen.append(await client.responses.retrieve(seen[0].id))
            if len(seen) == 3:
                trio_token.run_sync_soon(gate.open)
        return seen

    async with serving(ScriptedEngine("Hel", gate, "lo")) as served:
        trio_token = trio.lowlevel.current_trio_token()
        seen = await with_async_client(served, use)
    assert seen[-1].output_text == "Hello"
    assert {response.id for response in seen} == {seen[0].id}


async def test_a_cut_background_stream_resumes_after_every_event_number(serving, with_sync_client) -> None:
    def cut(client: Any) -> tuple[list[Any], list[Any]]:
        whole: list[Any] = []
        with client.responses.create(**ASK, background=True, stream=True) as stream:
            for event in stream:
                whole.append(event)
                if event.type == "response.output_text.delta":
                    break
        response_id = whole[0].response.id
        with client.responses.retrieve(response_id, stream=True, starting_after=whole[-1].sequence_number) as stream:
            whole += stream
        return whole, [
            list(client.responses.retrieve(response_id, stream=True, starting_after=number))
            for number in numbers_in(whole)
        ]

    async with serving(ScriptedEngine(*DEEP[:-2], 0.01, *DEEP[-2:])) as served:
        whole, tails = await with_sync_client(served, cut)
    assert numbers_in(whole) == list(range(len(whole)))
    assert text_in(whole) == whole[-1].response.output_text == "Hello"
    for number, tail in enumerate(tails):
        assert tail == whole[number + 1 :]


async def test_the_stream_helper_resumes_by_id(serving, with_sync_client) -> None:
    def use(client: Any) -> tuple[Any, list[Any], Any]:
        created = client.responses.create(**ASK, background=True)
        with client.responses.stream(response_id=created.id, starting_after=5) as stream:
            return created, list(stream), stream.get_final_response()

    async with serving(ScriptedEngine(*DEEP)) as served:
        created, events, final = await with_sync_client(served, use)
    assert numbers_in(events)[0] == 6
    assert (final.id, final.output_text) == (created.id, "Hello")


async def test_a_second_client_cancels_a_response_that_the_first_one_reads(serving, with_sync_client) -> None:
    engine = ScriptedEngine("Hel", Repeat(0.01))

    def use(client: Any) -> tuple[list[Any], Any, Any]:
        events: list[Any] = []
        cancelled = None
        with client.responses.create(**ASK, stream=True) as stream:
            for event in stream:
                events.append(event)
                if event.type == "response.output_text.delta":
                    # Another client on another connection, as on another device.
                    with openai.OpenAI(base_url=client.base_url, api_key="none") as other:
                        cancelled = other.responses.cancel(events[0].response.id)
        return events, cancelled, client.responses.retrieve(events[0].response.id)

    async with serving(engine) as served:
        events, cancelled, retrieved = await with_sync_client(served, use)
    assert events[-1].type == "response.incomplete"
    assert [response.status for response in (events[-1].response, cancelled, retrieved)] == ["cancelled"] * 3
    assert events[-1].response == retrieved
    assert engine.runs[0].end == "cancelled"


async def test_a_second_client_cancels_a_response_that_the_first_one_awaits_whole(serving, with_async_client) -> None:
    engine = ScriptedEngine("Hel", gate := Gate())

    async def use(client: Any) -> Any:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.responses.create(**ASK)
        return caught.value

    async def cancel(served: Any, with_client: Any) -> None:
        await gate.wait_reached()
        [stream] = await served.pipeline.list()
        response_id = stream.id.replace("str_", "resp_")
        cancelled = await with_client(served, lambda client: client.responses.cancel(response_id))
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "Hel")

    async with serving(engine) as served, trio.open_nursery() as nursery:
        nursery.start_soon(cancel, served, with_async_client)
        error = await with_async_client(served, use, max_retries=2)
    assert (error.status_code, error.code) == (400, "cancelled")
    assert (engine.calls, engine.runs[0].end) == (1, "cancelled")


async def test_a_deleted_response_is_not_found(serving, with_sync_client) -> None:
    def use(client: Any) -> None:
        created = client.responses.create(**ASK)
        client.responses.delete(created.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(created.id)

    async with serving(ScriptedEngine(*DEEP)) as served:
        await with_sync_client(served, use)
        assert await served.pipeline.list() == []


async def test_closing_the_stream_stops_the_engine_of_a_response(serving, with_sync_client) -> None:
    engine = ScriptedEngine("Hel", Repeat(["word ", 0.001]))

    def use(client: Any) -> None:
        with client.responses.create(**ASK, stream=True) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    break

    async with serving(engine) as served:
        await with_sync_client(served, use)
        await engine.runs[0].ended.wait()
    assert engine.runs[0].end == "cancelled"


async def test_a_failed_response_raises_and_is_not_retried_if_a_retry_cannot_help(serving, with_sync_client) -> None:
    engine = ScriptedEngine("Hel", EngineError("upstream_timeout", "Too slow."))

    def use(client: Any) -> str:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**ASK)
        return caught.value.code

    async with serving(engine) as served:
        assert await with_sync_client(served, use, max_retries=2) == "upstream_timeout"
    assert engine.calls == 1


async def test_a_failed_stream_raises_its_error_and_can_be_retrieved(serving, with_sync_client) -> None:
    def streamed(client: Any) -> Any:
        return client.responses.create(**ASK, stream=True)

    def helped(client: Any) -> Any:
        with client.responses.stream(**ASK) as stream:
            yield from stream

    def read(events: Any, into: list[Any]) -> None:
        for event in events:
            into.append(event)  # noqa: PERF402 (`extend` would lose all of them)

    def use(client: Any) -> Any:
        for events in (streamed(client), helped(client)):
            seen: list[Any] = []
            with pytest.raises(openai.APIError, match="Too slow") as caught:
                read(events, seen)
            assert caught.value.code == "upstream_timeout"
            assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == "Hel"
        return client.responses.retrieve(seen[0].response.id)

    async with serving(ScriptedEngine("Hel", EngineError("upstream_timeout", "Too slow."))) as served:
        response = await with_sync_client(served, use)
    assert (response.status, response.error.code, response.output_text) == ("failed", "upstream_timeout", "Hel")


async def test_a_refusal_names_the_parameter(serving, with_sync_client) -> None:
    def use(client: Any) -> Any:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**ASK, tools=[{"type": "function", "name": "f"}])
        return caught.value

    async with serving(ScriptedEngine(*DEEP)) as served:
        error = await with_sync_client(served, use)
    assert (error.param, error.code, error.type) == ("tools", "unsupported_parameter", "invalid_request_error")


# The second one makes an event that is too large for one write.
@pytest.mark.parametrize("description", ["", "x" * 50_000])
async def test_keep_alives_change_nothing_for_the_helper(serving, with_sync_client, description) -> None:
    gates = [Gate(), Gate(), Gate()]
    first, second, third = gates
    steps = (Reasoning("Hm", 0), first, "Hel", second, "lo", CallTool("weather", ('{"ci', third, 'ty": 1}')))

    def use(client: Any) -> Any:
        numbers: list[int] = []
        closed = list(gates)
        tool = {"type": "function", "name": "weather", "description": description}
        with client.responses.stream(**ASK, tools=[tool]) as helper:
            for event in helper:
                if event.type == "response.in_progress" and event.sequence_number in numbers and closed:
                    trio.from_thread.run_sync(closed.pop(0).open)  # the silence lasts until an event has filled it
                numbers.append(event.sequence_number)
            return helper.get_final_response()

    engine = ScriptedEngine(*steps, capabilities=Capabilities(tools=True))
    async with serving(engine, heartbeat_seconds=0.01) as served:
        response = await with_sync_client(served, use)
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert (response.output_text, response.output[2].arguments) == ("Hello", '{"city": 1}')
