"""The client against the real application on the real server, directly and through a proxy that cuts."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import cycle

import pytest
import trio

from crucible_trio.client import open_client
from crucible_trio.engine import Finish
from crucible_trio.errors import ServerRefusedError, StreamNotFoundError
from crucible_trio.pipeline import Pipeline, open_pipeline
from crucible_trio.records import OutputDelta, ReasoningDelta, ReasoningDone, StreamCancelled, StreamCompleted, Usage
from crucible_trio.request import Request
from crucible_trio.server import Config, serve
from crucible_trio.settings import load_settings
from crucible_trio.testing import ChaosProxy, Treatment, open_chaos_proxy
from crucible_trio.web.app import create_app

TRACE = [f"step {n} \u2028 ä" for n in range(20)]
ANSWER = [f"word-{n} 🜁 " for n in range(40)]
USAGE = Usage(1, 40, 20)


class RepeatingEngine:
    """Writes the same text to every stream, and counts its calls and cancellations."""

    def __init__(self) -> None:
        self.calls = 0
        self.stopped = 0

    async def generate(self, request, output):
        self.calls += 1
        try:
            for n, text in enumerate(TRACE):
                await output.reasoning(text, n // 5)
            if request.input == "think endlessly":
                await trio.sleep_forever()
            for text in ANSWER:
                await output.delta(text)
        except trio.Cancelled:
            self.stopped += 1
            raise
        return Finish(usage=USAGE)


@asynccontextmanager
async def serving(engine, **settings) -> AsyncIterator[tuple[Pipeline, str]]:
    values = load_settings({}, retry_milliseconds=1, **settings)
    async with (
        open_pipeline(engine.generate, values.pipeline) as pipeline,
        trio.open_nursery() as nursery,
    ):
        config = Config()
        config.bind = ["127.0.0.1:0"]
        [url] = await nursery.start(partial(serve, create_app(pipeline, values.apis), config))
        yield pipeline, url
        nursery.cancel_scope.cancel()


def cutting_proxy(url: str, seed: int) -> AbstractAsyncContextManager[ChaosProxy]:
    """Cuts each connection after a few records. The headers take 400 bytes, so some connections carry no record."""
    draw = random.Random(seed)
    cuts = cycle(["fin", "rst"])
    return open_chaos_proxy(
        int(url.rpartition(":")[2]), lambda _: Treatment(cut_after=draw.randrange(200, 2500), cut=next(cuts))
    )


async def read_all(stream):
    return [record async for record in stream]


def trace_of(records):
    return "".join(record.delta for record in records if isinstance(record, ReasoningDelta))


def answer_of(records):
    return "".join(record.delta for record in records if isinstance(record, OutputDelta))


@pytest.mark.slow
async def test_a_stream_cut_at_random_bytes_is_complete_and_was_generated_once():
    engine = RepeatingEngine()
    reconnects = 0
    draw = random.Random(20240607)
    with trio.fail_after(120):
        async with (
            serving(engine) as (_, url),
            cutting_proxy(url, 20240607) as proxy,
            open_client(proxy.url, retry_seconds=0, max_attempts=100, max_first_attempts=100) as client,
        ):
            for _ in range(20):
                async with client.start(Request("Why?", mode=draw.choice(["deep", "standard"]))) as stream:
                    records = await read_all(stream)
                assert trace_of(records) == "".join(TRACE)
                assert answer_of(records) == "".join(ANSWER)
                assert [record.seq for record in records] == list(range(1, len(records) + 1))
                assert isinstance(stream.terminal, StreamCompleted)
                assert stream.terminal.usage == USAGE
                reconnects += stream.reconnects
    assert engine.calls == 20
    assert reconnects > 20


@pytest.mark.parametrize("trace", ["final", "none"])
async def test_a_cut_stream_without_its_trace_is_complete_too(trace):
    with trio.fail_after(60):
        async with (
            serving(RepeatingEngine()) as (_, url),
            cutting_proxy(url, 7) as proxy,
            open_client(proxy.url, retry_seconds=0, max_attempts=100, max_first_attempts=100) as client,
            client.start(Request("Why?", mode="deep", trace=trace)) as stream,
        ):
            records = await read_all(stream)
    assert trace_of(records) == ""
    assert answer_of(records) == "".join(ANSWER)
    done = [record for record in records if isinstance(record, ReasoningDone)]
    assert ["".join(record.trace) for record in done] == (["".join(TRACE)] if trace == "final" else [])


async def test_a_stream_can_be_read_again_from_any_offset():
    with trio.fail_after(30):
        async with serving(RepeatingEngine()) as (_, url), open_client(url) as client:
            async with client.start(Request("Why?")) as stream:
                records = await read_all(stream)
            for after in range(len(records) + 1):
                async with client.read(stream.id, after=after) as again:
                    assert await read_all(again) == records[after:]
            snapshot = await client.snapshot(stream.id)
            assert (snapshot["status"], snapshot["last_seq"]) == ("completed", stream.last_seq)
            models = await client.models()
            assert [model["id"] for model in models["data"]] == ["generate"]
            with pytest.raises(StreamNotFoundError):
                await client.snapshot("str_" + "x" * 22)
            with pytest.raises(ServerRefusedError, match="cursor_ahead"):
                async with client.read(stream.id, after=len(records) + 1):
                    pass


async def test_cancelling_stops_the_engine_and_ends_the_reading():
    engine = RepeatingEngine()
    with trio.fail_after(30):
        async with serving(engine) as (_, url), open_client(url) as client:
            async with client.start(Request("think endlessly")) as stream:
                seen = []
                async for record in stream:
                    seen.append(record)
                    if trace_of(seen) == "".join(TRACE):
                        await stream.cancel()
                assert isinstance(stream.terminal, StreamCancelled)
                assert stream.terminal.by == "client"
                await stream.cancel()  # the second cancel changes nothing
            assert (engine.calls, engine.stopped) == (1, 1)


async def test_leaving_does_not_stop_a_stream_with_on_disconnect_continue():
    with trio.fail_after(30):
        async with serving(RepeatingEngine()) as (_, url), open_client(url) as client:
            async with client.start(Request("Why?", on_disconnect="continue")) as stream:
                await anext(stream)
                await anext(stream)
            assert stream.last_seq == 2
            async with client.read(stream.id, after=2) as rest:
                assert answer_of(await read_all(rest)) == "".join(ANSWER)


async def test_leaving_stops_a_stream_with_on_disconnect_cancel():
    engine = RepeatingEngine()
    with trio.fail_after(30):
        async with serving(engine) as (_, url), open_client(url) as client:
            async with client.start(Request("think endlessly", on_disconnect="cancel")) as stream:
                await anext(stream)
                await anext(stream)
            async with client.read(stream.id, after=2) as rest:
                await read_all(rest)
            assert rest.terminal.by == "disconnect"


async def test_one_reader_too_many_waits_for_its_turn():
    with trio.fail_after(30):
        async with (
            serving(RepeatingEngine(), max_readers_per_stream=1) as (_, url),
            open_client(url, retry_seconds=0) as client,
        ):
            seen = []
            async with trio.open_nursery() as nursery:
                async with client.start(Request("think endlessly")) as first:
                    await anext(first)

                    async def read_second() -> None:
                        async with client.read(first.id) as second:
                            seen.extend(await read_all(second))
                            assert second.reconnects == 0

                    nursery.start_soon(read_second)
                    await trio.sleep(0.3)  # the server answers busy a few times
                    assert seen == []
                await client.cancel(first.id)
    assert isinstance(seen[-1], StreamCancelled)
    assert trace_of(seen) == "".join(TRACE)


async def test_a_draining_server_lets_its_readers_finish_and_refuses_new_ones():
    with trio.fail_after(30):
        async with (
            serving(RepeatingEngine(), heartbeat_seconds=0.05) as (pipeline, url),
            open_client(url, max_first_attempts=1) as client,
            trio.open_nursery() as nursery,
            client.start(Request("think endlessly")) as stream,
        ):
            await anext(stream)
            nursery.start_soon(pipeline.drain, 1)
            while not pipeline.draining:
                await trio.lowlevel.checkpoint()
            with pytest.raises(ServerRefusedError, match="503 draining"):
                await client.start(Request("Why?")).__aenter__()
            await read_all(stream)
            assert stream.terminal.by == "shutdown"
            assert stream.reconnects == 0


async def test_a_wrong_key_is_refused_without_retries():
    with trio.fail_after(30):
        async with serving(RepeatingEngine(), keys={"alice": "right"}) as (_, url):
            async with open_client(url, key="wrong") as client:
                with pytest.raises(ServerRefusedError, match="401"):
                    async with client.start(Request("Why?")):
                        pass
            async with open_client(url, key="right") as client, client.start(Request("Why?")) as stream:
                assert answer_of(await read_all(stream)) == "".join(ANSWER)
