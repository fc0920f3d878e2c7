"""A body that is passed on to a sink: directly from a socket, and through the stream of any other connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from crucible_trio.http import ConnectionLostError, HttpClient, InvalidResponseError

from .conftest import URL, MemoryServer, ServerEnd, answering, fetch, socket_pair

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=[memory_stream_pair, socket_pair])
def pair(server: MemoryServer, request: pytest.FixtureRequest) -> None:
    server.pair = request.param


pytestmark = pytest.mark.usefixtures("pair")


class Sink:
    """Keeps what it takes, and stops at some parts."""

    def __init__(self, *stops: bytes, then: Callable[[], None] = lambda: None) -> None:
        self.taken: list[bytes] = []
        self.stops = stops
        self.then = then

    def take(self, data: bytes) -> bool:
        self.taken.append(data)
        self.then()
        return data not in self.stops


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_sink_gets_the_whole_body_and_its_connection_can_be_used_again(
    server: MemoryServer, client: HttpClient
) -> None:
    async def script(end: ServerEnd) -> None:
        await end.request()
        await end.send(HEAD + chunk(b"a"))
        for part in (chunk(b"b"), b"1\r", b"\nc\r\n", b"0\r\n\r\n"):
            await wait_all_tasks_blocked(0.01)
            await end.send(part)
        await end.request()
        await end.send(HEAD + chunk(b"next") + b"0\r\n\r\n")

    server.scripts = [script]
    sink = Sink()
    with trio.fail_after(20):
        async with await client.send("GET", URL) as response:
            assert await response.pass_on(sink)
        assert sink.taken == [b"a", b"b", b"c"]
        assert await fetch(client) == (200, b"next")
    assert len(server.ends) == 1


async def test_a_sink_may_stop_and_go_on(server: MemoryServer, client: HttpClient) -> None:
    async def script(end: ServerEnd) -> None:
        await end.request()
        await end.send(HEAD + chunk(b"a"))
        for part in (b"b", b"c", b"d"):
            await wait_all_tasks_blocked(0.01)
            await end.send(chunk(part))
        await end.send(b"0\r\n\r\n")

    server.scripts = [script]
    sink = Sink(b"a", b"c")
    with trio.fail_after(20):
        async with await client.send("GET", URL) as response:
            assert not await response.pass_on(sink)
            assert sink.taken == [b"a"]
            assert not await response.pass_on(sink)
            assert sink.taken == [b"a", b"b", b"c"]
            assert await response.read() == b"d"
            assert await response.pass_on(sink)
            assert await response.pass_on(sink)  # the body has still ended
    assert sink.taken == [b"a", b"b", b"c"]


async def test_a_sink_that_stops_with_the_last_bytes_is_not_called_again(
    server: MemoryServer, client: HttpClient
) -> None:
    server.scripts = [answering(HEAD + chunk(b"a") + b"0\r\n\r\n")]
    sink = Sink(b"a")
    with trio.fail_after(20):
        async with await client.send("GET", URL) as response:
            assert not await response.pass_on(sink)
            assert await response.pass_on(sink)
    assert sink.taken == [b"a"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("rest", "error"), [(b"", ConnectionLostError), (b"no length\r\n", InvalidResponseError)])
async def test_a_sink_gets_everything_before_a_fault(
    server: MemoryServer, client: HttpClient, rest: bytes, error: type[Exception], *, late: bool
) -> None:
    async def script(end: ServerEnd) -> None:
        await end.request()
        if late:
            await end.send(HEAD)
            await wait_all_tasks_blocked(0.01)
            await end.send(chunk(b"a") + rest)
        else:
            await end.send(HEAD + chunk(b"a") + rest)
        if rest:
            await end.wait_for_close()

    server.scripts = [script]
    sink = Sink()
    with trio.fail_after(20):
        async with await client.send("GET", URL) as response:
            with pytest.raises(error):
                await response.pass_on(sink)
    assert sink.taken == [b"a"]


async def test_an_error_of_the_sink_is_raised(server: MemoryServer, client: HttpClient) -> None:
    async def script(end: ServerEnd) -> None:
        await end.request()
        await end.send(HEAD)
        await wait_all_tasks_blocked(0.01)
        await end.send(chunk(b"a"))
        await end.wait_for_close()

    def fail() -> None:
        raise KeyError("sink")

    server.scripts = [script]
    with trio.fail_after(20):
        async with await client.send("GET", URL) as response:
            with pytest.raises(KeyError):
                await response.pass_on(Sink(then=fail))


async def test_a_cancellation_loses_nothing(server: MemoryServer, client: HttpClient) -> None:
    go_on = trio.Event()

    async def script(end: ServerEnd) -> None:
        await end.request()
        await end.send(HEAD + chunk(b"a"))
        await go_on.wait()
        await end.send(chunk(b"b") + b"0\r\n\r\n")

    server.scripts = [script]
    sink = Sink()
    with trio.fail_after(20):
        async with await client.send("GET", URL) as response:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(response.pass_on, sink)
                await wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            go_on.set()
            assert await response.read() == b"b"
    assert sink.taken == [b"a"]


async def test_a_connection_that_is_closed_meanwhile_ends_it(server: MemoryServer, client: HttpClient) -> None:
    async def script(end: ServerEnd) -> None:
        await end.request()
        await end.send(HEAD)
        await end.wait_for_close()

    server.scripts = [script]
    response = await client.send("GET", URL)

    async def pass_on() -> None:
        with pytest.raises((trio.ClosedResourceError, ConnectionLostError)):  # streams in memory end
            await response.pass_on(Sink())

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on)
            await wait_all_tasks_blocked(0.01)
            await client._pool.aclose()
    await response.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await response.pass_on(Sink())
