"""`crucible serve` processes with one Redis: readers move between them, and some of them die."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

import httpx
import pytest
import trio

pytestmark = pytest.mark.slow

OpenServed: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]
Until: TypeAlias = Callable[[Callable[[], object]], Awaitable[None]]

# The others see the death of a process after its lease, and end its streams after their own.
SHORT_LEASE = {"CRUCIBLE_LOG_LEASE_SECONDS": "2"}


class RedisServer(Protocol):
    """See `conftest.py`."""

    url: str

    def command(self, *words: str) -> str: ...

    def kill(self) -> None: ...

    def start(self) -> None: ...

    def frozen(self) -> AbstractAsyncContextManager[None]: ...


async def status_of(url: str, path: str) -> int:
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{url}{path}")).status_code


async def test_a_stream_is_started_on_one_process_and_cut_and_resumed_on_another(
    serve_process: OpenServed, event_stream: type[Any]
) -> None:
    async with serve_process("--replay-speed", "10") as a, serve_process("--replay-speed", "10") as b:
        whole, cut = event_stream(), event_stream()
        await whole.read(a.url, prompt="x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: cut.read(a.url, prompt="x"))
            await cut.has(20)
            nursery.cancel_scope.cancel()
        stream_id = cut.last_id.partition(".")[0]
        await cut.read(b.url, f"/v1/streams/{stream_id}/events")
        assert not cut.is_reset
        assert [event["seq"] for event in cut.events] == list(range(1, len(cut.events) + 1))
        assert cut.text == whole.text
        assert cut.events[-1]["type"] == "stream.completed"


async def test_a_killed_process_ends_its_stream_on_another_as_producer_lost(
    serve_process: OpenServed, event_stream: type[Any]
) -> None:
    async with (
        serve_process("--replay-speed", "0.5", **SHORT_LEASE) as a,
        serve_process(**SHORT_LEASE) as b,
        serve_process(**SHORT_LEASE) as c,
    ):
        at_a, at_b = event_stream(), event_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: at_a.read(a.url, prompt="x"))
            await at_a.has(5)
            path = f"/v1/streams/{at_a.last_id.partition('.')[0]}/events"
            nursery.start_soon(lambda: at_b.read(b.url, path))
            await at_b.has(8)
            await a.kill()
        assert at_a.is_reset
        assert not at_b.is_reset
        assert at_b.events[-1]["type"] == "stream.failed"
        assert at_b.events[-1]["error"]["code"] == "producer_lost"
        assert at_b.text.startswith(at_a.text)
        # The reader of the dead process comes back to a third one and gets the same end.
        await at_a.read(c.url, path)
        assert at_a.events == at_b.events


async def test_the_death_of_a_process_that_nobody_read_is_seen_when_its_stream_is_asked_for(
    serve_process: OpenServed, until: Until, redis: RedisServer
) -> None:
    async with serve_process("--replay-speed", "0.1", **SHORT_LEASE) as a, serve_process(**SHORT_LEASE) as b:
        async with httpx.AsyncClient() as http:
            stream = (await http.post(f"{a.url}/v1/streams", json={"input": "x"})).json()
        await a.kill()
        await until(lambda: redis.command("EXISTS", f"{{crucible:{stream['id']}}}:lease") == ":0")
        async with httpx.AsyncClient() as http:
            shown = (await http.get(f"{b.url}/v1/streams/{stream['id']}")).json()
        assert shown["status"] == "failed"
        assert shown["error"]["code"] == "producer_lost"


async def test_a_process_that_was_stopped_for_longer_than_its_lease_accepts_the_end(
    serve_process: OpenServed, event_stream: type[Any]
) -> None:
    async with serve_process("--replay-speed", "0.5", **SHORT_LEASE) as a, serve_process(**SHORT_LEASE) as b:
        at_a, at_b = event_stream(), event_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: at_a.read(a.url, prompt="x"))
            await at_a.has(5)
            path = f"/v1/streams/{at_a.last_id.partition('.')[0]}/events"

            async def read_at_b() -> None:
                await at_b.read(b.url, path)
                a.process.send_signal(signal.SIGCONT)

            nursery.start_soon(read_at_b)
            await at_b.has(5)
            a.process.send_signal(signal.SIGSTOP)
        assert not at_a.is_reset
        assert at_a.events == at_b.events
        assert at_a.events[-1]["error"]["code"] == "producer_lost"
        assert await status_of(a.url, "/readyz") == 200


async def test_a_terminated_process_hands_its_readers_over(serve_process: OpenServed, event_stream: type[Any]) -> None:
    async with serve_process("--replay-speed", "0.5", CRUCIBLE_DRAIN_SECONDS="0") as a, serve_process() as b:
        reading, other = event_stream(), event_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: reading.read(a.url, prompt="x"))
            await reading.has(5)
            path = f"/v1/streams/{reading.last_id.partition('.')[0]}/events"
            nursery.start_soon(lambda: other.read(b.url, path))
            await other.has(5)
            a.process.send_signal(signal.SIGTERM)
        assert await a.process.wait() == 0
        assert reading.events == other.events
        assert (other.events[-1]["type"], other.events[-1]["by"]) == ("stream.cancelled", "shutdown")


async def test_during_a_long_outage_streams_fail_with_a_reset_and_requests_get_503(
    serve_process: OpenServed, event_stream: type[Any], redis: RedisServer
) -> None:
    async with (
        serve_process("--replay-speed", "0.5", CRUCIBLE_LOG_OUTAGE_SECONDS="0.5") as a,
        serve_process("--replay-speed", "inf", CRUCIBLE_LOG_OUTAGE_SECONDS="0.5") as b,
    ):
        at_a, at_b = event_stream(), event_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: at_a.read(a.url, prompt="x"))
            await at_a.has(5)
            path = f"/v1/streams/{at_a.last_id.partition('.')[0]}/events"
            nursery.start_soon(lambda: at_b.read(b.url, path))
            await at_b.has(5)
            redis.kill()
        assert at_a.is_reset
        assert at_b.is_reset
        async with httpx.AsyncClient() as http:
            for url in (a.url, b.url):
                assert await status_of(url, "/readyz") == 503
                assert await status_of(url, "/healthz") == 200
                refused = await http.post(f"{url}/v1/streams", json={"input": "x"})
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
                assert refused.json()["error"]["code"] == "log_unavailable"
        redis.start()
        for server in (a, b):
            with trio.fail_after(30):
                while await status_of(server.url, "/readyz") != 200:
                    await trio.sleep(0.05)
        again = event_stream()
        await again.read(b.url, prompt="x")
        assert again.events[-1]["type"] == "stream.completed"
        for server in (a, b):
            assert b"Traceback" not in server.stderr
            assert b"secret" not in server.stderr


@pytest.mark.parametrize(
    ("options", "mentions"),
    [
        (("--maxmemory-policy", "allkeys-lru"), b"maxmemory-policy is allkeys-lru"),
        (("--cluster-enabled", "yes", "--cluster-port", "a free port"), b"cluster-enabled"),
        (("--requirepass", "the-secret"), b"cannot use the Redis that log_url names: Authentication"),
    ],
)
async def test_a_redis_that_does_not_fit_is_refused_at_start(
    serve_process: OpenServed, new_redis: Callable[..., RedisServer], options: tuple[str, ...], mentions: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    redis = new_redis(*(option.replace("a free port", port) for option in options))
    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True, allow_unwrapped=True) as failure:
        async with serve_process(url=redis.url):
            pass
    log = str(failure.value.exceptions[0] if isinstance(failure.value, BaseExceptionGroup) else failure.value)
    assert mentions.decode() in log
    assert "Traceback" not in log
    assert redis.url not in log


async def test_workers_serve_one_stream_behind_one_port(serve_process: OpenServed, event_stream: type[Any]) -> None:
    async with serve_process("--workers", "2", "--replay-speed", "2") as served:
        reading = event_stream()
        started = 0
        while not reading.events or reading.events[-1]["type"] != "stream.completed":
            path = f"/v1/streams/{reading.last_id.partition('.')[0]}/events" if reading.last_id else ""
            wanted = len(reading.events) + 30
            async with trio.open_nursery() as nursery:

                async def read(path: str = path, scope: trio.CancelScope = nursery.cancel_scope) -> None:
                    await reading.read(served.url, path, **({} if path else {"prompt": "x"}))
                    scope.cancel()  # the stream has ended

                nursery.start_soon(read)
                await reading.has(wanted)
                nursery.cancel_scope.cancel()
            started += 1
        assert [event["seq"] for event in reading.events] == list(range(1, len(reading.events) + 1))
        assert started > 3
        # While one of the two is stopped, only the other one can have answered.
        workers = [int(pid) for pid in re.findall(rb"worker \d is process (\d+)", served.stderr)]
        assert len(workers) == 2
        for stopped in workers:
            os.kill(stopped, signal.SIGSTOP)
            try:
                whole = event_stream()
                await whole.read(served.url, f"/v1/streams/{reading.last_id.partition('.')[0]}/events")
            finally:
                os.kill(stopped, signal.SIGCONT)
            assert whole.events == reading.events
        served.process.send_signal(signal.SIGTERM)
        assert await served.process.wait() == 0
        assert b"Traceback" not in served.stderr
