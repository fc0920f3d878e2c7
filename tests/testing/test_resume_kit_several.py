"""The resume kit at several addresses of one service: each reconnect goes to the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from crucible_trio import Finish, Output, Pipeline, Request, open_pipeline
from crucible_trio.errors import ConfigError
from crucible_trio.server import Config, serve
from crucible_trio.settings import ApiSettings
from crucible_trio.testing.resume import Report, Stage, WireFormat, check, command_again
from crucible_trio.web import create_app

NATIVE = WireFormat(body='{"input": "{key}", "mode": "deep"}')
RESPONSES = WireFormat(
    path="/v1/responses",
    headers={"Content-Type": "application/json", "Idempotency-Key": "{key}"},
    body='{"model": "engine", "input": "{key}", "background": true, "reasoning": {"effort": "high"}}',
    events="/v1/responses/{json:id}?stream=true",
    channel=("output_index", "content_index", "summary_index"),
    terminal=("response.completed", "response.incomplete", "response.failed"),
    id="sequence_number",
    resume="starting_after",
)


def engine_on(stage: Stage) -> Any:
    async def engine(request: Request, output: Output) -> Finish:
        key = request.messages[-1].text
        for number in range(12):
            await stage.turn(key)
            await output.reasoning(f"Gedanke {number} é. ", number // 6)
        for number in range(30):
            await stage.turn(key)
            await output.delta(f"Wört {number} 茶 ")
        return Finish()

    return engine


@asynccontextmanager
async def two_ports(pipeline: Pipeline) -> AsyncIterator[list[str]]:
    """Two applications over one pipeline."""
    async with trio.open_nursery() as nursery:
        urls = []
        for _ in range(2):
            config = Config()
            config.bind = ["127.0.0.1:0"]
            # The applications share no state. Tokens would have to be signed with one secret.
            app = create_app(pipeline, ApiSettings())
            urls += await nursery.start(partial(serve, app, config))
        yield urls
        nursery.cancel_scope.cancel()


async def check_two_ports(wire: WireFormat, **options: Any) -> tuple[Report, list[str]]:
    stage = Stage()
    with trio.fail_after(120):
        async with open_pipeline(engine_on(stage)) as pipeline, two_ports(pipeline) as urls:
            return await check(urls, wire, stage=stage, **options), urls


@pytest.mark.slow
@pytest.mark.parametrize("wire", [NATIVE, RESPONSES], ids=["native", "responses"])
async def test_a_stream_that_is_cut_at_one_address_goes_on_at_the_other(wire: WireFormat) -> None:
    report, urls = await check_two_ports(wire, log_cuts=60, live_cuts=60)
    print(report)
    assert report.ok
    assert {row.phase for row in report.rows} == {"log", "live"}
    for row in report.rows:
        assert row.checked == 60
        # Nearly every cut has one connection before it and one behind it. A few fall behind the end of their stream.
        assert set(row.connections) == set(urls)
        assert min(row.connections.values()) >= 50
    assert f"checked {', '.join(urls)} (seed 0)" in str(report)
    total = sum((row.connections for row in report.rows), Counter[str]())
    assert f"connections: {', '.join(f'{total[url]:,} to {url}' for url in sorted(urls))}" in str(report)


async def test_addresses_that_are_not_one_service_are_found(open_small_server: Any) -> None:
    async with open_small_server() as one, open_small_server() as other:
        other.events = [(kind, text.upper()) for kind, text in one.events]
        with trio.fail_after(60):
            report = await check([one.url, other.url], one.wire, phases=["log"], clients=["httpx-sse"], cuts=[300])
    # The start reached the first one, and a second uncut reader asks the second one.
    [failure] = report.failures
    assert failure.finding.message == "a second uncut reader received different ids or a different text"


async def test_a_failure_names_the_address_of_each_connection(open_small_server: Any) -> None:
    # Both servers have the log, and the second one has a bug.
    async with open_small_server() as one, open_small_server("skips one") as other:
        other.runs = one.runs
        with trio.fail_after(60):
            report = await check(
                [one.url, other.url],
                one.wire,
                phases=["log"],
                clients=["httpx-sse"],
                cuts=[384],
                again=command_again([one.url, other.url], Path("a wire")),
            )
    [failure] = report.failures
    assert failure.servers == (one.url, other.url)
    assert f"connections: {one.url}, {other.url}\n" in str(report)
    again = f"repeat: crucible check {one.url} {other.url} --wire 'a wire' --phase log --client httpx-sse --cut 384 "
    assert again in str(report)


async def test_the_addresses_of_one_service_have_one_path() -> None:
    with pytest.raises(ConfigError, match="must have the same path"):
        await check(["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"])


async def post(url: str, path: str, body: object, *, cut_at: int | None = None) -> bytes:
    """The body of the answer, or its first bytes if the connection is cut. Over HTTP/1.0, so without framing."""
    data = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
        await stream.send_all(f"{head}Host: 127.0.0.1\r\nIdempotency-Key: k\r\n\r\n".encode() + data)
        received = b""
        while cut_at is None or len(received) < cut_at:
            if not (more := bytes(await stream.receive_some())):
                break
            received += more
    return received.partition(b"\r\n\r\n")[2]


async def test_a_chat_completion_is_replayed_at_the_other_address_byte_for_byte() -> None:
    stage = Stage()
    body = {"model": "engine", "messages": [{"role": "user", "content": "key"}], "stream": True}
    with trio.fail_after(60):
        async with open_pipeline(engine_on(stage)) as pipeline, two_ports(pipeline) as (one, other):
            for _ in range(10):
                stage.more("key")
            cut = [await post(url, "/v1/chat/completions", body, cut_at=900) for url in (one, other, one)]
            stage.release("key")
            whole = [await post(url, "/v1/chat/completions", body) for url in (other, one)]
            assert len(await pipeline.list()) == 1
    assert whole[0] == whole[1]
    assert whole[0].endswith(b"data: [DONE]\n\n")
    assert all(text and whole[0].startswith(text) for text in cut)
