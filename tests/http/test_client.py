"""Requests and responses over connections in memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from crucible_trio.http import (
    ConnectFailedError,
    ConnectionLostError,
    ConnectTimeoutError,
    HttpClient,
    InvalidResponseError,
    open_http_client,
    parse_url,
)
from crucible_trio.http.client import CONNECT_TIMEOUT
from crucible_trio.http.pool import MAX_IDLE_CONNECTIONS, MAX_IDLE_SECONDS

from .conftest import URL, MemoryServer, ServerEnd, always, answering, fetch

AGENT = b"\r\nUser-Agent: crucible_trio"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nBlue"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# Requests


async def test_a_request_has_its_line_its_headers_and_its_body(server: MemoryServer, client: HttpClient) -> None:
    server.scripts = [always(ANSWER)]
    async with await client.send("POST", URL.join("a b", "q=1"), headers={"X": "y"}, content=b"\r\n\r\n") as response:
        assert (response.status, response.reason, response.is_success) == (200, "OK", True)
    assert await fetch(client) == (200, b"Blue")
    async with await client.send("POST", URL) as response:
        pass
    post, get, empty = server.ends[0].requests
    assert post == (
        b"POST /v1/a%20b?q=1 HTTP/1.1\r\nHost: model.test" + AGENT + b"\r\nX: y\r\nContent-Length: 4",
        b"\r\n\r\n",
    )
    assert get == (b"GET /v1 HTTP/1.1\r\nHost: model.test" + AGENT, b"")
    assert empty == (b"POST /v1 HTTP/1.1\r\nHost: model.test" + AGENT + b"\r\nContent-Length: 0", b"")


async def test_headers_of_a_request_win_over_those_of_the_client(server: MemoryServer) -> None:
    server.scripts = [always(ANSWER)]
    async with (
        open_http_client(URL, headers={"A": "1", "B": "2"}, connect=server.connect) as client,
        await client.send("GET", URL, headers={"B": "3"}),
    ):
        pass
    assert (
        server.ends[0].requests[0][0]
        == b"GET /v1 HTTP/1.1\r\nHost: model.test\r\nUser-Agent: crucible_trio\r\nA: 1\r\nB: 3"
    )


async def test_a_request_to_another_server_is_refused(server: MemoryServer, client: HttpClient) -> None:
    for other in ("http://other.test/v1", "http://model.test:81/v1", "https://model.test/v1"):
        with pytest.raises(ValueError, match="not on the server of this client"):
            await client.send("GET", parse_url(other))
    assert not server.ends


async def test_a_header_that_cannot_be_sent_is_an_error_when_the_client_opens() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        async with open_http_client(URL, headers={"X": "a\r\nY: b"}):
            pass


async def test_a_redirect_is_not_followed(server: MemoryServer, client: HttpClient) -> None:
    server.scripts = [always(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://other.test/\r\nContent-Length: 0\r\n\r\n")]
    async with await client.send("POST", URL, content=b"x") as response:
        assert (response.status, response.headers["location"]) == (307, "http://other.test/")
    assert len(server.ends) == 1


async def test_a_server_that_answers_before_the_whole_body_is_sent_is_heard(
    server: MemoryServer, client: HttpClient
) -> None:
    async def refuse(end: ServerEnd) -> None:
        await end.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        assert isinstance(end.stream, trio.StapledStream)
        await end.stream.receive_stream.aclose()
        await trio.sleep_forever()

    server.scripts = [refuse]
    async with await client.send("POST", URL, content=b"x" * 1000) as response:
        assert (response.status, await response.read_all(100)) == (413, b"no")


# Responses


async def test_a_body_is_read_as_it_comes_and_not_ahead(server: MemoryServer, client: HttpClient) -> None:
    sent = 0

    async def flood(end: ServerEnd) -> None:
        nonlocal sent
        await end.request()
        await end.send(CHUNKED)
        for _ in range(5):
            assert isinstance(end.stream, trio.StapledStream)
            await end.stream.send_all(b"1\r\na\r\n")
            sent += 1
            await more.wait()

    more = trio.Event()
    server.scripts = [flood]
    async with await client.send("GET", URL) as response:
        assert await response.read() == b"a"
        await wait_all_tasks_blocked()
        assert sent == 1
        more.set()
        await wait_all_tasks_blocked()
        assert await response.read() == b"aaaa"
        with pytest.raises(ConnectionLostError):
            await response.read()


async def test_a_silent_server_has_not_failed(
    server: MemoryServer, client: HttpClient, autojump_clock: MockClock
) -> None:
    async def think(end: ServerEnd) -> None:
        await end.request()
        for data in (CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n"):
            await trio.sleep(50_000)
            await end.send(data)

    server.scripts = [think]
    assert await fetch(client) == (200, b"a")
    assert trio.current_time() >= 150_000


async def test_a_read_that_is_cancelled_loses_nothing(
    server: MemoryServer, client: HttpClient, autojump_clock: MockClock
) -> None:
    async def slowly(end: ServerEnd) -> None:
        await end.request()
        for letter in (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n").decode():
            await trio.sleep(1)
            await end.send(letter.encode())

    server.scripts = [slowly]
    body = b""
    async with await client.send("GET", URL) as response:
        while True:
            data = None
            with trio.move_on_after(0.3):
                data = await response.read()
            if data == b"":
                break
            body += data or b""
    assert body == b"abc"


async def test_every_read_is_a_checkpoint(server: MemoryServer, client: HttpClient) -> None:
    server.scripts = [always(ANSWER)]
    async with await client.send("GET", URL) as response:
        for expected in (b"Blue", b"", b""):
            with assert_checkpoints():
                assert await response.read() == expected


async def test_read_all_stops_at_its_limit(server: MemoryServer, client: HttpClient) -> None:
    server.scripts = [always(ANSWER)]
    async with await client.send("GET", URL) as response:
        assert await response.read_all(3) == b"Blu"


async def test_a_closed_response_cannot_be_read(server: MemoryServer, client: HttpClient) -> None:
    server.scripts = [always(ANSWER)]
    response = await client.send("GET", URL)
    await response.aclose()
    await response.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await response.read()


async def test_a_body_that_is_cut_is_an_error_at_every_byte(server: MemoryServer, client: HttpClient) -> None:
    whole = CHUNKED + b"4\r\nBlue\r\n0\r\n\r\n"
    for end in range(1, len(whole)):
        server.scripts = [answering(whole[:end])]
        server.ends.clear()
        with pytest.raises(ConnectionLostError) as caught:
            await fetch(client)
        assert not caught.value.received_nothing
        assert len(server.ends) == 1


async def test_an_invalid_response_is_an_error_and_its_connection_is_closed(
    server: MemoryServer, client: HttpClient
) -> None:
    for bad in (b"SSH-2.0\r\n\r\n", CHUNKED + b"zz\r\n"):
        server.scripts = [always(bad)]
        with pytest.raises(InvalidResponseError):
            await fetch(client)
        await wait_all_tasks_blocked()
        assert server.running == 0


# Connections


async def test_a_connection_is_used_again_after_a_whole_body(server: MemoryServer, client: HttpClient) -> None:
    server.scripts = [always(ANSWER)]
    for _ in range(5):
        assert await fetch(client) == (200, b"Blue")
    assert len(server.ends) == 1


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        ANSWER.replace(b"1.1", b"1.0"),
        ANSWER + b"junk",
        ANSWER + ANSWER,
    ],
)
async def test_a_connection_is_closed_if_its_end_is_not_certain(
    server: MemoryServer, client: HttpClient, answer: bytes
) -> None:
    server.scripts = [always(answer)]
    for _ in range(3):
        assert await fetch(client) == (200, b"Blue")
    assert len(server.ends) == 3
    await wait_all_tasks_blocked()
    assert server.running == 0


async def test_a_body_that_was_not_read_to_its_end_closes_the_connection(
    server: MemoryServer, client: HttpClient
) -> None:
    server.scripts = [always(CHUNKED + b"1\r\na\r\n")]
    for _ in range(2):
        async with await client.send("GET", URL) as response:
            await response.read()
    await wait_all_tasks_blocked()
    assert (len(server.ends), server.running) == (2, 0)


async def test_a_request_on_an_idle_connection_that_ends_is_sent_again_once(
    server: MemoryServer, client: HttpClient
) -> None:
    async def close_at_second(end: ServerEnd) -> None:
        await end.request()
        await end.send(ANSWER)
        await end.request()

    server.scripts = [close_at_second]
    assert await fetch(client) == (200, b"Blue")
    assert await fetch(client) == (200, b"Blue")
    assert [len(end.requests) for end in server.ends] == [2, 1]
    # Both the idle connection and the new one
    server.scripts = [close_at_second, close_at_second, answering()]
    with pytest.raises(ConnectionLostError, match="without a response") as caught:
        await fetch(client)
    assert caught.value.received_nothing
    assert [len(end.requests) for end in server.ends] == [2, 2, 0]


async def test_the_second_attempt_does_not_use_another_idle_connection(
    server: MemoryServer, client: HttpClient
) -> None:
    async def close_at_second(end: ServerEnd) -> None:
        await end.request()
        await end.send(ANSWER)
        await end.request()

    server.scripts = [close_at_second]
    first, second = await client.send("GET", URL), await client.send("GET", URL)
    await first.aclose()
    await second.aclose()
    assert await fetch(client) == (200, b"Blue")
    assert [len(end.requests) for end in server.ends] == [1, 2, 1]


async def test_a_request_of_whose_response_a_byte_came_is_not_sent_again(
    server: MemoryServer, client: HttpClient
) -> None:
    server.scripts = [answering(ANSWER, b"H")]
    assert await fetch(client) == (200, b"Blue")
    with pytest.raises(ConnectionLostError, match="inside the headers"):
        await fetch(client)
    assert len(server.ends) == 1


async def test_a_request_on_a_new_connection_is_not_sent_again(server: MemoryServer, client: HttpClient) -> None:
    async def close(end: ServerEnd) -> None:
        await end.request()

    server.scripts = [close]
    with pytest.raises(ConnectionLostError):
        await fetch(client)
    assert len(server.ends) == 1


async def test_an_old_idle_connection_is_closed(
    server: MemoryServer, client: HttpClient, autojump_clock: MockClock
) -> None:
    server.scripts = [always(ANSWER)]
    await fetch(client)
    await trio.sleep(MAX_IDLE_SECONDS - 0.1)
    await fetch(client)
    assert len(server.ends) == 1
    await trio.sleep(MAX_IDLE_SECONDS + 0.1)
    await fetch(client)
    assert (len(server.ends), server.running) == (2, 1)


async def test_the_number_of_connections_in_use_is_not_limited_but_that_of_idle_ones(
    server: MemoryServer, client: HttpClient
) -> None:
    all_here = trio.Event()
    count = 500

    async def wait_for_all(end: ServerEnd) -> None:
        while True:
            await end.request()
            if len(server.ends) == count:
                all_here.set()
            await all_here.wait()
            await end.send(ANSWER)

    server.scripts = [wait_for_all]
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(fetch, client)
    await wait_all_tasks_blocked()
    assert (len(server.ends), server.running) == (count, MAX_IDLE_CONNECTIONS)


async def test_a_cancelled_request_takes_no_place_from_another(server: MemoryServer, client: HttpClient) -> None:
    # httpx's pool loses a place for each of them once a limit is set.
    async def never(end: ServerEnd) -> None:
        await end.wait_for_close()

    server.scripts = [never]
    for _ in range(2 * MAX_IDLE_CONNECTIONS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, client)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    assert server.running == 0
    server.scripts = [always(ANSWER)]
    assert await fetch(client) == (200, b"Blue")


async def test_leaving_closes_all_connections_also_those_in_use(server: MemoryServer) -> None:
    server.scripts = [always(ANSWER), always(CHUNKED)]
    async with open_http_client(URL, connect=server.connect) as client:
        await fetch(client)
        idle = await client.send("GET", URL)
        used = await client.send("GET", URL)
    await wait_all_tasks_blocked()
    assert server.running == 0
    with pytest.raises(trio.ClosedResourceError):
        await used.read()
    await idle.aclose()
    await used.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send("GET", URL)


async def test_a_connection_that_opens_after_the_client_has_closed_is_closed(server: MemoryServer) -> None:
    server.scripts = [always(ANSWER)]
    go_on = trio.Event()

    async def connect() -> trio.abc.Stream:
        await go_on.wait()
        return await server.connect()

    with pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            async with open_http_client(URL, connect=connect) as client:
                nursery.start_soon(fetch, client)
                await wait_all_tasks_blocked()
            go_on.set()
    await wait_all_tasks_blocked()
    assert server.running == 0


async def test_connecting_has_a_timeout(autojump_clock: MockClock) -> None:
    async with open_http_client(URL, connect=trio.sleep_forever) as client:
        with pytest.raises(ConnectTimeoutError, match="no connection within 10 s"):
            await fetch(client)
    assert trio.current_time() == pytest.approx(CONNECT_TIMEOUT)


async def test_a_failed_connection_says_why() -> None:
    async def refuse() -> trio.abc.Stream:
        raise OSError("all attempts failed") from ExceptionGroup(
            "", [ConnectionRefusedError(111, "Connection refused")]
        )

    async with open_http_client(URL, connect=refuse) as client:
        with pytest.raises(ConnectFailedError, match="Connection refused"):
            await fetch(client)
