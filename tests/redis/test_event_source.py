"""Chromium's own EventSource reads one stream from two `crucible serve` processes, with no code that reconnects."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import pytest
import trio

from tests.browser import RelayedServer

pytestmark = pytest.mark.slow

OpenServed: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]


class Relay(RelayedServer):
    """A relay that can change the process to which it passes new connections."""

    def send_to(self, url: str) -> None:
        self.target = int(url.rpartition(":")[2])

    async def connect(self, near: trio.SocketStream) -> None:
        await self.relay(self.target, near)


@asynccontextmanager
async def open_relay(url: str) -> AsyncIterator[Relay]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        relay = Relay(None, listener.socket.getsockname()[1])
        relay.send_to(url)
        nursery.start_soon(trio.serve_listeners, relay.connect, [listener])
        yield relay
        nursery.cancel_scope.cancel()


async def test_a_native_event_source_is_cut_and_resumed_on_another_process(
    serve_process: OpenServed,
    chromium: Callable[[], AbstractAsyncContextManager[Any]],
    event_stream: type[Any],
) -> None:
    speed, retry = ("--replay-speed", "2"), {"CRUCIBLE_RETRY_MILLISECONDS": "10"}
    with trio.fail_after(90):
        async with (
            serve_process(*speed, **retry) as a,
            serve_process(*speed, **retry) as b,
            open_relay(a.url) as relay,
            chromium() as browser,
        ):
            page = await browser.open(relay.url)
            await page.evaluate("""void (() => {
                window.received = [];
                window.source = new EventSource("/v1/generate?prompt=x&idempotency_key=k");
                source.onmessage = (event) => received.push([event.lastEventId, event.data]);
            })()""")
            for count, server in ((20, b), (40, a), (60, b)):
                await page.until(f"received.length >= {count}")
                relay.send_to(server.url)
                relay.reset()
            # After the last record the server answers 204, which closes an EventSource.
            await page.until("source.readyState === EventSource.CLOSED")
            received = await page.evaluate("received")
            whole = event_stream()
            await whole.read(a.url, f"/v1/streams/{received[0][0].partition('.')[0]}/events")
            assert [json.loads(data) for _, data in received] == whole.events
            assert [event["seq"] for event in whole.events] == list(range(1, len(received) + 1))
            assert whole.events[-1]["type"] == "stream.completed"
            assert len(received) > 60
