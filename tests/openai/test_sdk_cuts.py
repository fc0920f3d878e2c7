"""OpenAI's SDK on a network that cuts: background responses arrive whole, with event numbers without gaps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
import trio

from crucible_trio import sse
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.records import Usage
from crucible_trio.testing import CUTS, Gate, ScriptedEngine, Treatment, open_chaos_proxy

pytestmark = pytest.mark.slow

STEPS: list[Any] = [
    *[Reasoning(piece, 0) for piece in ("First", ", ", "wägen", ".\n")],
    *[Reasoning(piece, 1) for piece in ("Then", " ", "\U0001f98a", ".")],
    *[f"{number}ß\u2028" for number in range(40)],
    Reasoning("Again.", 2),
    *[f"{number}. " for number in range(10)],
    Finish(usage=Usage(3, 63, 9)),
]
# A short pause after each piece, so that cuts hit live events as well as replayed ones.
LIVE = [step for piece in STEPS for step in ((piece, 0.002) if not isinstance(piece, Finish) else (piece,))]
ASK: dict[str, Any] = {"model": "scripted", "input": "Why?", "background": True, "stream": True}
KEY = {"Idempotency-Key": "key"}  # a cut before the first event must not start a second response
ENDS = {"response.completed", "response.incomplete", "response.failed"}


def cut_later_each_time(connection: int) -> Treatment:
    """Each connection lives longer than the previous one, so the last one reaches the end. The kind of cut varies."""
    return Treatment(cut_after=150 * connection, cut=CUTS[connection % len(CUTS)])


def follow(client: openai.OpenAI) -> list[Any]:
    """Start a response in the background, and read it to its end across all cuts."""
    seen: list[Any] = []
    while not seen or seen[-1].type not in ENDS:
        try:
            if seen:
                after = seen[-1].sequence_number
                stream = client.responses.retrieve(seen[0].response.id, stream=True, starting_after=after)
            else:
                stream = client.responses.create(**ASK, extra_headers=KEY)
            with stream:
                for event in stream:
                    seen.append(event)  # noqa: PERF402 - one by one, so a cut loses no earlier event
        except openai.APIConnectionError:
            continue
        assert seen[-1].type in ENDS, "the body ended normally before the response did"
    return seen


async def follow_async(client: openai.AsyncOpenAI) -> list[Any]:
    """`follow` with the asynchronous client."""
    seen: list[Any] = []
    while not seen or seen[-1].type not in ENDS:
        try:
            if seen:
                after = seen[-1].sequence_number
                stream = await client.responses.retrieve(seen[0].response.id, stream=True, starting_after=after)
            else:
                stream = await client.responses.create(**ASK, extra_headers=KEY)
            async with stream:
                async for event in stream:
                    seen.append(event)  # noqa: PERF401 - as above
        except openai.APIConnectionError:
            continue
        assert seen[-1].type in ENDS, "the body ended normally before the response did"
    return seen


async def read_natively(port: int, path: str) -> list[dict[str, Any]]:
    """Read a stream natively as a browser's EventSource does: request the same URL until it answers 204."""
    records: list[dict[str, Any]] = []
    last_id: str | None = None
    async with httpx.AsyncClient(timeout=20) as client:
        while True:
            headers = {"Last-Event-ID": last_id} if last_id else {}
            decoder = sse.Decoder()
            try:
                async with client.stream("GET", f"http://127.0.0.1:{port}{path}", headers=headers) as answer:
                    if answer.status_code == 204:
                        return records
                    assert answer.status_code == 200
                    async for chunk in answer.aiter_bytes():
                        records += [json.loads(event.data or "") for event in decoder.feed(chunk)]
                        last_id = decoder.last_event_id or last_id
            except httpx.TransportError:
                continue


@asynccontextmanager
async def native_reader(served: Any, gate: Gate) -> AsyncIterator[list[dict[str, Any]]]:
    """Hold the engine at a gate until a native reader follows the stream, over another network that cuts."""
    records: list[dict[str, Any]] = []

    async def run() -> None:
        await gate.wait_reached()
        [stream] = await served.pipeline.list()
        async with open_chaos_proxy(served.port, cut_later_each_time) as proxy:
            gate.open()
            records.extend(await read_natively(proxy.port, f"/v1/streams/{stream.id}/events"))
            assert len(proxy.connections) > 5

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield records


async def check(served: Any, seen: list[Any], native_records: list[dict[str, Any]]) -> None:
    """Check that both readers got the text of the native snapshot."""
    [stream] = await served.pipeline.list()
    snapshot = stream.snapshot()
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].type == "response.completed"
    assert snapshot.output == "".join(step for step in STEPS if isinstance(step, str))
    for texts in (
        "".join(event.delta for event in seen if event.type == "response.output_text.delta"),
        "".join(event.text for event in seen if event.type == "response.output_text.done"),
        seen[-1].response.output_text,
        "".join(record["delta"] for record in native_records if record["type"] == "output.delta"),
    ):
        assert texts == snapshot.output
    parts = [part.text for item in seen[-1].response.output if item.type == "reasoning" for part in item.summary]
    assert parts == snapshot.trace
    assert "".join(event.delta for event in seen if "summary_text.delta" in event.type) == "".join(parts)
    assert [record["seq"] for record in native_records] == list(range(1, snapshot.last_seq + 1))


async def test_a_background_response_cut_repeatedly_arrives_whole(serving, with_sync_client) -> None:
    engine = ScriptedEngine(gate := Gate(), *LIVE)
    async with serving(engine) as served, open_chaos_proxy(served.port, cut_later_each_time) as proxy:
        async with native_reader(served, gate) as records:
            seen = await with_sync_client(dataclasses.replace(served, port=proxy.port), follow)
        await check(served, seen, records)
        assert len(proxy.connections) > 5, proxy
        assert engine.calls == 1


async def test_a_background_response_cut_repeatedly_arrives_whole_with_the_async_client(
    serving, with_async_client
) -> None:
    engine = ScriptedEngine(gate := Gate(), *LIVE)
    async with serving(engine) as served, open_chaos_proxy(served.port, cut_later_each_time) as proxy:
        async with native_reader(served, gate) as records:
            seen = await with_async_client(dataclasses.replace(served, port=proxy.port), follow_async)
        await check(served, seen, records)
        assert len(proxy.connections) > 5, proxy
        assert engine.calls == 1


@pytest.mark.parametrize("cut", ["fin", "rst", "half_close_answer"])
@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_cut_never_looks_like_an_end(serving, with_async_client, api, cut) -> None:
    """Without `background` a client does not resume. It raises at every cut."""
    engine = ScriptedEngine("a" * 100, 0.05, "b" * 100)
    finished = []

    async def use(client: openai.AsyncOpenAI) -> None:
        try:
            if api == "chat":
                messages = [{"role": "user", "content": "Why?"}]
                stream = await client.chat.completions.create(model="scripted", messages=messages, stream=True)
            else:
                stream = await client.responses.create(model="scripted", input="Why?", stream=True)
            async for item in stream:
                last = item
        except openai.APIConnectionError:
            return
        finished.append(last)

    async with serving(engine) as served:
        for cut_after in (0, 300, 500, 700, 900):
            async with open_chaos_proxy(served.port, [Treatment(cut_after=cut_after, cut=cut)]) as proxy:
                await with_async_client(dataclasses.replace(served, port=proxy.port), use)
                assert proxy.connections[0].outcome == "cut", proxy
    assert finished == []


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_cut_answer_without_stream_raises_and_a_retry_with_a_key_gets_it(
    serving, with_sync_client, api
) -> None:
    engine = ScriptedEngine("a", 0.02, "b")

    def use(client: openai.OpenAI) -> str:
        if api == "chat":
            messages = [{"role": "user", "content": "Why?"}]
            answer = client.chat.completions.create(model="scripted", messages=messages, extra_headers=KEY)
            return answer.choices[0].message.content
        return client.responses.create(model="scripted", input="Why?", extra_headers=KEY).output_text

    async with serving(engine) as served:
        cuts = [Treatment(cut_after=0), Treatment(cut_after=200), Treatment(cut_after=400, cut="fin")]
        async with open_chaos_proxy(served.port, cuts) as proxy:
            proxied = dataclasses.replace(served, port=proxy.port)
            for _ in cuts:
                with pytest.raises(openai.APIConnectionError):
                    await with_sync_client(proxied, use)
            # The SDK retries a request that was cut. With a key, the retry starts no second generation.
            assert await with_sync_client(proxied, use, max_retries=2) == "ab"
        assert engine.calls == 1
