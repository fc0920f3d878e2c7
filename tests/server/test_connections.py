"""How connections are kept and closed: keep-alive, HTTP/1.0, early responses, limits."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio import Finish, Output, Request
from crucible_trio.errors import ConfigError
from crucible_trio.server import Config, connection, serve
from crucible_trio.server.listening import open_sockets
from crucible_trio.settings import load_settings


async def three(request: Request, output: Output) -> Finish:
    for _ in range(3):
        await output.delta("x")
        await trio.sleep(0.01)
    return Finish()


async def silent(request: Request, output: Output) -> Finish:
    await trio.sleep_forever()
    raise AssertionError


async def test_a_connection_is_reused(serving, kind) -> None:
    async with serving(three, kind=kind) as served:
        client = await served.connect()
        with trio.fail_after(10):
            for _ in range(3):
                await client.request("GET", "/healthz")
                assert (await client.read_response())[0] == 200
            await client.start()
            await client.read_until(b"0\r\n\r\n")
            client.received = b""
            await client.request("GET", "/healthz")
            assert (await client.read_response())[0] == 200


async def test_an_idle_connection_is_closed(serving, kind) -> None:
    async with serving(three, kind=kind, keep_alive_timeout=0.2) as served:
        client = await served.connect()
        await client.request("GET", "/healthz")
        with trio.fail_after(10):
            await client.read_to_close()
        assert b"200" in client.received


async def test_connection_close_closes(serving, kind) -> None:
    async with serving(three, kind=kind, keep_alive_timeout=1000) as served:
        for lines, version in ((("Connection: close",), "1.1"), ((), "1.0")):
            client = await served.connect()
            await client.request("GET", "/healthz", *lines, version=version)
            with trio.fail_after(10):
                await client.read_to_close()
            assert b"200" in client.received


async def test_a_complete_http_1_0_stream_ends_with_fin(serving, kind) -> None:
    async with serving(three, kind=kind, keep_alive_timeout=1000) as served:
        client = await served.connect()
        await client.start(version="1.0")
        with trio.fail_after(10):
            await client.read_to_close()
        assert [event["type"] for event in client.events][-1] == "stream.completed"
        assert client.text == "xxx"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_unfinished_response_ends_with_a_reset(serving, version) -> None:
    async with serving(silent) as served:
        client = await served.connect()
        await client.start(version=version)
        await client.read_until(b"stream.created")
        served.scope.cancel()
        with trio.fail_after(10):
            with pytest.raises(trio.BrokenResourceError) as reset:
                await client.read_to_close()
        assert isinstance(reset.value.__cause__, OSError)
        assert reset.value.__cause__.errno == errno.ECONNRESET


async def test_an_early_response_arrives_and_ends_with_fin(serving) -> None:
    async with serving(three, load_settings({}, max_request_bytes=1000)) as served:
        client = await served.connect()
        await client.request("POST", "/v1/streams", "Content-Type: application/json", "Content-Length: 4000000")
        with trio.fail_after(10):
            status, body = await client.read_response()
            # Keep sending after the response, as many clients do. A server that had closed would reset the connection.
            for _ in range(20):
                await client.send(b"x" * 50_000)
            await client.read_to_close()
        assert status == 413
        assert b"body_too_large" in body


@pytest.mark.slow
async def test_a_client_that_still_sends_after_an_early_response_is_cut_after_a_silence_or_30_seconds(
    serving, mock_clock: MockClock
) -> None:
    async def is_open(client) -> bool:
        await wait_all_tasks_blocked(0.05)
        try:
            await client.send(b"x" * 1000)
            await wait_all_tasks_blocked(0.05)
            await client.send(b"x")
        except trio.BrokenResourceError:
            return False
        await wait_all_tasks_blocked(0.05)
        return True

    async with serving(three, load_settings({}, keys={"alice": "key"})) as served:
        silent, busy = await served.connect(), await served.connect()
        for client in (silent, busy):
            await client.request("POST", "/v1/streams", "Content-Type: application/json", "Content-Length: 20000000")
            assert (await client.read_response())[0] == 401
        await wait_all_tasks_blocked(0.05)
        for _ in range(19):
            mock_clock.jump(1.5)
            assert await is_open(busy)
        assert not await is_open(silent)
        mock_clock.jump(1.6)
        assert not await is_open(busy)


async def test_connections_over_the_limit_are_closed_without_a_response(serving) -> None:
    async with serving(silent, max_connections=2) as served:
        with trio.fail_after(10):
            first, second = await served.connect(), await served.connect()
            for client in (first, second):
                await client.request("GET", "/healthz")
                assert (await client.read_response())[0] == 200
            third = await served.connect()
            with suppress(trio.BrokenResourceError):
                await third.request("GET", "/healthz")
                await third.read_to_close()
            assert third.received == b""
            await first.stream.aclose()
            while True:  # until the server has noticed the close
                again = await served.connect()
                with suppress(trio.BrokenResourceError):
                    await again.request("GET", "/healthz")
                    if await again.receive():
                        break


async def test_pipelined_requests_are_answered_in_order(serving, kind) -> None:
    async with serving(three, kind=kind) as served:
        client = await served.connect()
        await client.start()
        await client.request("GET", "/healthz")
        with trio.fail_after(10):
            await client.read_until(b'{"status":"ok"}')
        assert client.received.index(b"stream.completed") < client.received.index(b'{"status":"ok"}')


async def test_pipelined_bytes_do_not_hide_a_disconnect_for_longer_than_a_heartbeat(serving, kind) -> None:
    async with serving(silent, load_settings({}, heartbeat_seconds=0.1), kind=kind) as served:
        client = await served.connect()
        await client.start()
        await client.request("GET", "/healthz")  # after this the server reads nothing until the response ends
        await client.read_until(b"stream.created")
        [stream] = await served.pipeline.list()
        assert stream.log.readers == 1
        client.reset()
        with trio.fail_after(10):
            while stream.log.readers:
                await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("headers", "behind"),
    [
        (("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"), b""),
        (("Upgrade: TLS/1.2", "Connection: Upgrade"), b""),
        ((), b"\r\n"),
        ((), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ((), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100),
    ],
    ids=["h2c", "TLS", "CRLF", "pipelined", "pipelined often"],
)
async def test_a_client_that_leaves_during_a_silent_response_stops_the_engine(serving, headers, behind) -> None:
    """Some HTTP clients send `Upgrade` with every request. The response is not streamed, so no write can fail."""
    async with serving(silent) as served:
        client = await served.connect()
        body = b'{"messages": [{"role": "user", "content": "Why?"}]}'
        await client.request(
            "POST",
            "/v1/chat/completions",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *headers,
        )
        await client.stream.send_all(body + behind)
        with trio.fail_after(10):
            while not (streams := await served.pipeline.list()) or not streams[0].log.readers:
                await trio.sleep(0.02)
        [stream] = streams
        await client.stream.aclose()
        with trio.fail_after(5):
            await stream.log.wait_finished()
        assert stream.terminal.by == "disconnect"
        assert await served.is_alive()


async def test_a_half_closed_client_counts_as_gone(serving, kind) -> None:
    async with serving(silent, kind=kind) as served:
        client = await served.connect()
        await client.start()
        await client.read_until(b"stream.created")
        [stream] = await served.pipeline.list()
        await client.stream.send_eof()
        with trio.fail_after(10):
            while stream.log.readers:
                await trio.sleep(0.01)


def test_accepted_sockets_have_a_user_timeout_for_dead_clients() -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.write_timeout = 7.0
    with ExitStack() as stack:
        [listener] = open_sockets(config, stack)
        with socket.create_connection(listener.getsockname()):
            listener.setblocking(True)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_000


async def test_a_client_that_has_reset_its_connection_before_it_is_served_stops_nothing(serving, monkeypatch) -> None:
    def reset(_socket: trio.socket.SocketType) -> object:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    async with serving(silent) as served:
        stays = await served.connect()
        await stays.start()
        await stays.read_until(b"stream.created")
        with monkeypatch.context() as patch, trio.socket.socket() as any_socket:
            patch.setattr(type(any_socket), "getpeername", reset)
            with socket.create_connection(("127.0.0.1", served.port)) as gone:
                await trio.to_thread.run_sync(gone.recv, 1)  # the server has closed it
        comes = await served.connect()
        await comes.start()
        await comes.read_until(b"stream.created")


async def test_an_address_that_is_named_twice_is_a_sentence() -> None:
    config = Config()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config.bind = [address, address]
    with ExitStack() as stack, pytest.raises(ConfigError, match=f"cannot listen on {address}: Address already in use"):
        open_sockets(config, stack)


# A client that waits for `100 Continue`

BODY = b'{"input": "letters"}'
EXPECT = ("Expect: 100-continue", "Content-Type: application/json", f"Content-Length: {len(BODY)}")


async def test_a_body_is_asked_for_when_the_route_reads_it(serving) -> None:
    async with serving(three) as served:
        client = await served.connect()
        with trio.fail_after(10):
            for _ in range(2):
                await client.request("POST", "/v1/streams", *EXPECT)
                assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
                client.received = b""
                await client.send(BODY)
                assert (await client.read_response())[0] == 201
        assert len(await served.pipeline.list()) == 2


async def test_a_body_that_comes_unasked_is_read(serving, kind) -> None:
    async with serving(three, kind=kind) as served:
        client = await served.connect()
        with trio.fail_after(10):
            await client.request("POST", "/v1/streams", *EXPECT[:1], body=BODY)
            await client.read_until(b"HTTP/1.1 201")


@pytest.mark.parametrize(
    ("status", "path", "lines"),
    [
        (401, "/v1/streams", EXPECT),
        (413, "/v1/streams", ("Authorization: Bearer key", *EXPECT[:2], "Content-Length: 5000")),
        (503, "/v1/streams", ("Authorization: Bearer key", *EXPECT[:2], "Content-Length: 4000")),
        (404, "/nothing", EXPECT),
        (403, "/v1/streams", ("Origin: https://other.example", *EXPECT)),
    ],
)
async def test_a_refusal_that_needs_no_body_does_not_ask_for_one(
    serving, status: int, path: str, lines: tuple[str, ...]
) -> None:
    limits = {"max_request_bytes": 4500, "total_request_bytes": 4500}
    async with serving(three, load_settings({}, keys={"alice": "key"}, **limits)) as served:
        slow = await served.connect()
        head = ("Authorization: Bearer key", "Content-Type: application/json", "Content-Length: 4400")
        await slow.request("POST", "/v1/streams", *head)
        await slow.send(b" " * 4000)
        with trio.fail_after(10):
            while served.pipeline.metrics.upload_bytes < 4000:
                await trio.lowlevel.checkpoint()
            client = await served.connect()
            await client.request("POST", path, *lines)
            assert (await client.read_response())[0] == status


async def test_a_client_that_leaves_while_it_waits_is_noticed(serving) -> None:
    async with serving(silent) as served:
        started = await served.connect()
        await started.start("X-Unused: 1", on_disconnect="cancel")
        with trio.fail_after(10):
            await started.read_until(b"stream.created")
            [stream] = await served.pipeline.list()
            client = await served.connect()
            await client.request("GET", f"/v1/streams/{stream.id}/events", *EXPECT[:1])
            await client.read_until(b"stream.created")
            assert not client.received.startswith(b"HTTP/1.1 100")
            assert stream.log.readers == 2
            await client.stream.aclose()
            while stream.log.readers == 2:
                await trio.lowlevel.checkpoint()


async def test_many_requests_at_the_same_time_begin_a_few_at_a_time() -> None:
    begun = 0
    begun_at_answer: list[int] = []

    async def app(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        nonlocal begun
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        begun += 1
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        begun_at_answer.append(begun)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    config = Config()
    config.bind = ["127.0.0.1:0"]
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        [url] = await nursery.start(partial(serve, app, config))
        port = int(url.rsplit(":", 1)[1])
        with trio.fail_after(30):
            streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(100)]
            for stream in streams:
                await stack.enter_async_context(stream)
                await stream.send_all(b"GE")  # a part of a head, a refused request and a whole one each get their turn
            await wait_all_tasks_blocked()
            for number, stream in enumerate(streams):
                rest = b"?\r\n\r\n" if number < 50 else b"T / HTTP/1.1\r\nHost: x\r\n\r\n"
                os.write(stream.socket.fileno(), rest)  # no checkpoint: all of them arrive in one pass
            for stream in streams[:50]:
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
            for stream in streams[50:]:
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 204")
        assert len(begun_at_answer) == 50
        assert begun_at_answer[0] < 40
        nursery.cancel_scope.cancel()


async def test_a_request_that_waits_for_its_turn_is_not_closed_as_idle(serving, monkeypatch) -> None:
    monkeypatch.setattr(connection, "_BEGINNING", 0)
    servers: list[connection.ServerState] = []
    begin = connection.HttpConnection.run

    async def watched(self: connection.HttpConnection) -> None:
        servers.append(self._server)
        await begin(self)

    monkeypatch.setattr(connection.HttpConnection, "run", watched)
    async with serving(three, keep_alive_timeout=1.0) as served:
        with trio.fail_after(20):
            idle, asking, slow = [await served.connect() for _ in range(3)]
            await asking.request("GET", "/healthz")
            await slow.stream.send_all(b"GET / HT")  # not a whole head
            assert not await idle.receive()
            servers[0].beginning.release()
            assert (await asking.read_response())[0] == 200
            servers[0].beginning.release()
            assert not await slow.receive()
