"""Direct writes on real sockets: the bytes are in order and reach the right client and the right response."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_trio import Finish, Output, Request
from crucible_trio.direct_writes import EXTENSION
from crucible_trio.server import Config, serve
from crucible_trio.server.connection import HttpConnection
from crucible_trio.server.direct import SocketBodyWriter
from crucible_trio.settings import load_settings


async def slowly(request: Request, output: Output) -> Finish:
    for number in range(30):
        await output.delta(f"{number} ")
        await trio.sleep(0.002)
    return Finish()


@pytest.mark.parametrize("offered", [True, False])
async def test_a_client_that_keeps_up_gets_direct_writes_if_they_are_offered(serving, offered: bool) -> None:
    async with serving(slowly, direct_writes=offered) as served:
        client = await served.connect()
        with trio.fail_after(20):
            await client.start()
            await client.read_until(b"0\r\n\r\n")
        assert client.text == "".join(f"{number} " for number in range(30))
        written = served.pipeline.batcher.direct_writes
        assert written > 20 if offered else written == 0


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_reads_little_gets_the_bytes_in_order(
    serving, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    write_nowait = SocketBodyWriter.write_nowait

    def watched(self: SocketBodyWriter, data: bytes) -> bool:
        held.append(not write_nowait(self, data))
        return not held[-1]

    monkeypatch.setattr(SocketBodyWriter, "write_nowait", watched)

    async def large_pieces(request: Request, output: Output) -> Finish:
        for number in range(150):
            await output.delta(f"{number:04}" * 1000)
            await trio.lowlevel.checkpoint()
        return Finish()

    async with serving(large_pieces) as served:
        client = await served.connect(receive_buffer=4096)
        with trio.fail_after(60):
            await client.start(version=version)
            while not client.received.endswith(b"0\r\n\r\n" if version == "1.1" else b"\n\n") or (
                b"stream.completed" not in client.received[-1000:]
            ):
                assert await client.receive(3000)
                await trio.sleep(0.0005)
        assert client.text == "".join(f"{number:04}" * 1000 for number in range(150))
        assert any(held), "the kernel took every write completely, so the test shows nothing"
        assert not all(held)


async def test_a_new_client_gets_no_bytes_of_the_one_before(serving) -> None:
    """The kernel reuses the number of a closed socket. A write that kept the number would reach the wrong client."""
    numbers: set[int] = set()
    reused = 0

    async def two_pieces(request: Request, output: Output) -> Finish:
        await output.delta("first")
        await go_on.wait()
        await output.delta("second")
        return Finish()

    async with serving(two_pieces) as served:
        for _ in range(30):
            go_on = trio.Event()
            before = set(os.listdir("/proc/self/fd"))
            reader = await served.connect()
            with trio.fail_after(20):
                await reader.start(on_disconnect="continue")
                await reader.read_until(b"first")
                reader.reset()
                other = await served.connect()
                go_on.set()
                await other.request("GET", "/healthz")
                status, body = await other.read_response()
                assert (status, body) == (200, b'{"status":"ok"}')
                [stream] = [stream for stream in await served.pipeline.list() if stream.id in reader.received.decode()]
                while stream.status == "running":
                    await trio.sleep(0.001)
            assert b"second" not in other.received
            assert stream.snapshot().output == "firstsecond"
            new = {int(number) for number in set(os.listdir("/proc/self/fd")) - before}
            reused += bool(numbers & new)
            numbers |= new
            other.stream.socket.close()
        assert reused > 10


Answer = Callable[[Any, SocketBodyWriter, Callable[[bytes, bool], Awaitable[None]]], Awaitable[None]]


@asynccontextmanager
async def serving_raw(answer: Answer) -> AsyncIterator[int]:
    """Serve an ASGI application. `answer` gets the writer for direct writes and a short `send`."""

    async def app(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        await receive()
        direct = scope["extensions"][EXTENSION]["body"]
        assert not direct.ready
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send_body(data: bytes, more: bool) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await answer(scope, direct, send_body)

    config = Config()
    config.bind = ["127.0.0.1:0"]
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(partial(serve, app, config))
        with trio.fail_after(30):
            yield int(url.rsplit(":", 1)[1])
        nursery.cancel_scope.cancel()


async def _read_all(client: trio.SocketStream) -> None:
    while await client.receive_some():
        pass


async def _serve_raw(answer: Answer, *, task_status: trio.TaskStatus[int]) -> None:
    async with serving_raw(answer) as port:
        task_status.started(port)
        await trio.sleep_forever()


async def test_only_the_response_at_hand_can_be_written_to() -> None:
    writes: list[SocketBodyWriter] = []
    go_on = trio.Event()

    async def answer(scope: Any, direct: SocketBodyWriter, send: Any) -> None:
        writes.append(direct)
        assert direct.ready
        await send(b"begin ", True)
        await go_on.wait()
        await send(b"end", False)

    async with serving_raw(answer) as port, await trio.open_tcp_stream("127.0.0.1", port) as client:

        async def begin() -> bytes:
            await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while b"begin " not in received:
                received += await client.receive_some()
            await wait_all_tasks_blocked()  # until `send` has returned
            return received

        received = await begin()
        assert writes[0].ready
        assert writes[0].write_nowait(b"middle ")
        go_on.set()
        while not received.endswith(b"0\r\n\r\n"):
            received += await client.receive_some()
        assert received.endswith(b"6\r\nbegin \r\n7\r\nmiddle \r\n3\r\nend\r\n0\r\n\r\n")
        assert not writes[0].ready
        go_on = trio.Event()
        await begin()
        assert writes[1].ready
        assert not writes[0].ready
        go_on.set()


async def test_what_is_left_of_a_direct_write_goes_out_before_what_is_sent_next() -> None:
    pieces = [b"%06d" % number * 2000 for number in range(400)]
    taken: list[bytes] = []

    async def answer(scope: Any, direct: SocketBodyWriter, send: Any) -> None:
        for piece in pieces:
            taken.append(piece)
            if not direct.write_nowait(piece):
                break
        assert not direct.ready
        await send(b"end", False)

    async with serving_raw(answer) as port, await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        received = b""
        while data := await client.receive_some():
            received += data
        assert 1 < len(taken) < len(pieces)
        assert received.partition(b"\r\n\r\n")[2] == b"".join(taken) + b"end"


async def test_a_head_is_written_with_the_first_piece_of_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = trio.Event()
    written: list[bytes] = []
    write = os.write

    def watched(file: int, data: bytes) -> int:
        written.append(data)
        return write(file, data)

    monkeypatch.setattr(os, "write", watched)

    async def answer(scope: Any, direct: SocketBodyWriter, send: Any) -> None:
        if scope["path"] == "/sent":
            await send(b"piece", True)
        elif scope["path"] == "/direct":
            assert direct.write_nowait(b"piece")
        else:
            await send(b"", True)  # an event stream whose first event is not there yet
        await go_on.wait()
        await send(b"", False)

    async with serving_raw(answer) as port:
        for path, body in (("/sent", b"5\r\npiece\r\n"), ("/direct", b"5\r\npiece\r\n"), ("/", b"")):
            go_on = trio.Event()
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
                received = await client.receive_some()
                assert received.startswith(b"HTTP/1.1 200")
                assert received.partition(b"\r\n\r\n")[2] == body
                assert received in written
                go_on.set()
                assert await client.receive_some() == b"0\r\n\r\n"


async def test_the_last_piece_is_written_with_the_end_and_the_connection_is_kept() -> None:
    go_on = trio.Event()

    async def answer(scope: Any, direct: SocketBodyWriter, send: Any) -> None:
        await send(b"begin", True)
        assert direct.write_last_nowait(b"last")
        assert not direct.ready
        await go_on.wait()
        await send(b"", False)

    async with serving_raw(answer) as port, await trio.open_tcp_stream("127.0.0.1", port) as client:
        for _ in range(2):
            go_on = trio.Event()
            await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += await client.receive_some()
            assert received.partition(b"\r\n\r\n")[2] == b"5\r\nbegin\r\n4\r\nlast\r\n0\r\n\r\n"
            await wait_all_tasks_blocked()
            go_on.set()


async def test_a_last_piece_that_is_cut_short_ends_with_a_reset() -> None:
    """With HTTP/1.0 a FIN would look like success."""

    async def answer(scope: Any, direct: SocketBodyWriter, send: Any) -> None:
        assert not direct.write_last_nowait(b"x" * 100_000_000)
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        port = await nursery.start(_serve_raw, answer)
        with trio.CancelScope(shield=True), trio.fail_after(20):
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                await client.send_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
                with pytest.raises(trio.BrokenResourceError):
                    await _read_all(client)


@pytest.mark.slow
async def test_nothing_is_written_directly_while_something_else_is_being_sent(serving) -> None:
    """When a client stops reading, `send` waits. A direct write would then land in the middle of its bytes."""

    async def flood(request: Request, output: Output) -> Finish:
        for number in range(400):
            await output.delta(f"{number:05}" * 400)
        return Finish()

    async with serving(flood, load_settings({}, buffer_tokens=4)) as served:
        client = await served.connect(receive_buffer=4096)
        with trio.fail_after(30):
            await client.start()
            await client.read_until(b"output.delta")
            made = -1
            [stream] = await served.pipeline.list()
            while made != stream.log.head:
                made = stream.log.head
                await trio.sleep(0.05)
            living = [
                thing
                for thing in gc.get_objects()
                if isinstance(thing, HttpConnection) and thing.current_request is not None
            ]
            [connection] = [found for found in living if found._stream.socket.fileno() != -1]
            assert not connection.is_ready_for(connection.current_request)
            await client.read_until(b"0\r\n\r\n")
        assert client.text == "".join(f"{number:05}" * 400 for number in range(400))
