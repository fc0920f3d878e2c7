"""The promises under OpenAI's SDK on real sockets: a slow client, an internal error, a server that shuts down."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_trio.apis.openai.chat.fold import ChatDialect
from crucible_trio.apis.openai.responses.fold import ResponseFold
from crucible_trio.records import OutputDelta
from crucible_trio.testing import Gate, Repeat, ScriptedEngine

pytestmark = pytest.mark.slow

APIS = ("chat", "responses")


async def start(api: str, client: openai.AsyncOpenAI, **fields: Any) -> Any:
    """Start a stream of events on one of the APIs."""
    if api == "responses":
        return await client.responses.create(model="scripted", input="Why?", stream=True, **fields)
    messages = [{"role": "user", "content": "Why?"}]
    return await client.chat.completions.create(model="scripted", messages=messages, stream=True, **fields)


def text_of(api: str, event: Any) -> str:
    if api == "responses":
        return event.delta if event.type == "response.output_text.delta" else ""
    return event.choices[0].delta.content or ""


@pytest.mark.parametrize("api", APIS)
async def test_a_client_that_stops_reading_pauses_the_engine_and_later_gets_everything(
    serving, with_async_client, api
) -> None:
    piece = "x" * 1000
    total = 4000
    engine = ScriptedEngine(Repeat(piece, total))
    made_while_stalled: list[int] = []

    async def use(client: openai.AsyncOpenAI) -> str:
        text = ""
        async with await start(api, client) as stream:
            async for event in stream:
                text += text_of(api, event)
                if text and not made_while_stalled:
                    made_while_stalled.append(await in_trio(wait_until_engine_pauses))
        return text

    async def wait_until_engine_pauses() -> int:
        before = -1
        while len(engine.made) != before:
            before = len(engine.made)
            await trio.sleep(0.1)
        return before

    async def in_trio(function: Any) -> int:
        if trio.lowlevel.in_trio_run():
            return await function()
        # This blocks the asyncio loop in its thread, so the client stalls too.
        return trio.from_thread.run(function, trio_token=trio_token)

    async with serving(engine, max_output_tokens=total) as served:
        trio_token = trio.lowlevel.current_trio_token()
        text = await with_async_client(served, use)
        # Two buffers, and the pieces that the kernel and the SDK hold: far fewer than all pieces.
        assert made_while_stalled[0] <= 2 * served.pipeline.settings.buffer_tokens + 1 + 1500
        assert text == piece * total


@pytest.mark.parametrize(("api", "fold"), [("chat", (ChatDialect, "_one")), ("responses", (ResponseFold, "feed"))])
async def test_an_internal_error_never_looks_like_an_end(
    serving, with_async_client, monkeypatch: pytest.MonkeyPatch, api, fold
) -> None:
    kind, method = fold
    original = getattr(kind, method)

    def breaks(self: Any, record: Any) -> Any:
        if isinstance(record, OutputDelta) and record.delta == "y":
            message = "an internal bug"
            raise RuntimeError(message)
        return original(self, record)

    text = ""

    async def use(client: openai.AsyncOpenAI) -> None:
        nonlocal text
        async for event in await start(api, client):
            text += text_of(api, event)

    async def is_alive(client: openai.AsyncOpenAI) -> bool:
        return bool([model async for model in client.models.list()])

    monkeypatch.setattr(kind, method, breaks)
    engine = ScriptedEngine("x", 0.05, "y", 0.05, "z")
    async with serving(engine) as served:
        with pytest.raises(openai.APIConnectionError):
            await with_async_client(served, use)
        assert await with_async_client(served, is_alive)
        await engine.runs[0].ended.wait()
    assert text == "x"


@pytest.mark.parametrize("api", APIS)
async def test_a_draining_server_lets_streams_finish_and_refuses_new_ones(serving, with_async_client, api) -> None:
    engine = ScriptedEngine("a", gate := Gate(), "b")

    async def use(client: openai.AsyncOpenAI) -> str:
        text = ""
        async for event in await start(api, client):
            text += text_of(api, event)
        return text

    async def is_refused(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            await start(api, client)
        assert (caught.value.status_code, caught.value.code) == (503, "draining")
        assert caught.value.response.headers["retry-after"] == "5"
        assert "x-should-retry" not in caught.value.response.headers

    async def drain(served: Any) -> None:
        await gate.wait_reached()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.pipeline.drain, 20)
            await wait_all_tasks_blocked()
            await with_async_client(served, is_refused)
            gate.open()

    async with serving(engine) as served, trio.open_nursery() as nursery:
        nursery.start_soon(drain, served)
        assert await with_async_client(served, use) == "ab"
        assert engine.calls == 1


async def test_a_background_response_ended_by_a_shutdown_is_incomplete(serving, with_async_client) -> None:
    engine = ScriptedEngine("a", gate := Gate())

    async def use(client: openai.AsyncOpenAI) -> Any:
        return [event async for event in await start("responses", client, background=True)]

    async def drain(served: Any) -> None:
        await gate.wait_reached()
        await served.pipeline.drain(0)

    async with serving(engine) as served, trio.open_nursery() as nursery:
        nursery.start_soon(drain, served)
        *_, last = await with_async_client(served, use)
    assert (last.type, last.response.status, last.response.output_text) == ("response.incomplete", "cancelled", "a")
    assert last.response.incomplete_details.reason == "cancelled"
