"""Our upstream engine with our chat completions as its upstream: two servers in a row, also on a bad network."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from crucible_trio import Request, open_pipeline
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream import open_upstream
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.snapshot import Snapshot
from crucible_trio.testing import ScriptedEngine, Treatment, open_chaos_proxy

pytestmark = pytest.mark.slow

DEEP = ("1. First, ", "the wärm ", "water.\n", "2. Then \U0001f375.")


def inner(*more: Any) -> ScriptedEngine:
    """An engine that reasons only in deep mode, as a model does."""
    return ScriptedEngine(
        lambda request: [Reasoning(piece) for piece in DEEP] if request.mode == "deep" else [],
        "Hel",
        "lo.",
        *more,
        Finish(usage=Usage(3, 9, 4)),
        models=["small"],
    )


async def answer_of(base_url: str, mode: Any) -> Snapshot:
    """The final snapshot of a stream whose upstream is the server at `base_url`."""
    async with open_upstream(base_url) as engine, open_pipeline(engine) as pipeline:
        stream = await pipeline.start(Request("Why?", mode=mode))
        async with stream.attach() as reader:
            async for _ in reader:
                pass
        return stream.snapshot()


@pytest.mark.parametrize("mode", ["standard", "deep"])
async def test_a_stream_arrives_whole(serving, mode) -> None:
    engine = inner()
    async with serving(engine) as served:
        snapshot = await answer_of(served.base_url, mode)
        assert (snapshot.status, snapshot.output, snapshot.usage) == ("completed", "Hello.", Usage(3, 9, 4))
        assert snapshot.trace == (["1. First, the wärm water.\n", "2. Then \U0001f375."] if mode == "deep" else [])
        assert snapshot.model == "small"
        assert engine.runs[0].request.mode == mode


@pytest.mark.parametrize("mode", ["standard", "deep"])
@pytest.mark.parametrize("cut", ["fin", "rst", "half_close_answer"])
async def test_a_cut_between_the_two_servers_is_a_failure_at_any_byte(serving, mode, cut) -> None:
    whole = "".join(DEEP) * (mode == "deep") + "Hello."
    # The engine first lists the models, on the connection that the completion then uses too.
    async with serving(inner()) as served:
        async with open_chaos_proxy(served.port) as proxy:
            await answer_of(f"http://127.0.0.1:{proxy.port}/v1", mode)
            [connection] = proxy.connections
        failed = 0
        for cut_after in range(800, connection.answer_bytes - 20, 130):
            async with open_chaos_proxy(served.port, [Treatment(cut_after=cut_after, cut=cut)]) as proxy:
                snapshot = await answer_of(f"http://127.0.0.1:{proxy.port}/v1", mode)
                assert snapshot.status in {"failed", "completed"}, proxy
                text = "".join(snapshot.trace) + snapshot.output
                if snapshot.status == "completed":  # cut after the finish reason, where only `[DONE]` is missing
                    assert text == whole, proxy
                else:
                    failed += 1
                    assert snapshot.error is not None
                    assert snapshot.error.code == "upstream_ended_early", proxy
                    assert whole.startswith(text), proxy
        assert failed


async def test_an_upstream_failure_arrives_as_a_failure(serving) -> None:
    async with serving(inner(EngineError("model_failed", "It broke."))) as served:
        snapshot = await answer_of(served.base_url, "standard")
    assert (snapshot.status, snapshot.output) == ("failed", "Hello.")
    assert snapshot.error is not None
    assert snapshot.error.code == "upstream_error"


@pytest.mark.parametrize("cut_after", [None, 800])
async def test_an_sdk_at_the_outer_server_gets_the_whole_answer_or_an_error(
    serving, with_sync_client, cut_after
) -> None:
    def chat(client: openai.OpenAI) -> tuple[str, str]:
        messages: Any = [{"role": "user", "content": "Why?"}]
        stream = client.chat.completions.create(model="small", messages=messages, reasoning_effort="high", stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        trace = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
        return trace, "".join(delta.content or "" for delta in deltas)

    def responses(client: openai.OpenAI) -> tuple[str, str, str]:
        asked: Any = {"model": "small:deep", "input": "Why?"}
        *_, last = client.responses.create(**asked, stream=True)
        parts = [part.text for item in last.response.output if item.type == "reasoning" for part in item.summary]
        return last.response.status, "".join(parts), last.response.output_text

    trace = "".join(DEEP)
    async with (
        serving(inner()) as served,
        open_chaos_proxy(served.port, lambda _: Treatment(cut_after=cut_after)) as proxy,
        open_upstream(f"http://127.0.0.1:{proxy.port}/v1", model="small") as engine,
        serving(engine) as outer,
    ):
        if cut_after is None:
            assert await with_sync_client(outer, chat) == (trace, "Hello.")
            assert await with_sync_client(outer, responses) == ("completed", trace, "Hello.")
        else:
            for ask in (chat, responses):
                with pytest.raises(openai.APIError, match="was lost") as caught:
                    await with_sync_client(outer, ask)
                assert caught.value.code == "upstream_ended_early"
