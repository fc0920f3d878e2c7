"""The promises over real sockets, on our server and, for those it can keep, on stock hypercorn."""

from __future__ import annotations

import socket
import threading

import pytest
import trio

from crucible_trio import Finish, Output, Reasoning, Request
from crucible_trio.recorder import MAX_FRAME_BYTES
from crucible_trio.settings import load_settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kind")]

TEXT = "Boxkämpfer \U0001f98a"


async def fox(request: Request, output: Output) -> Finish:
    for word in ("First, ", "think. ", "Then "):
        await output.reasoning(word, 0)
    await output.reasoning("answer.", 1)
    for character in TEXT:
        await output.delta(character)
    return Finish()


async def _read_after_cut(served, cut_at: int, *, reset: bool) -> tuple[str, list[int]]:
    """Start a stream, cut it after `cut_at` bytes, resume as EventSource does, and read to the end."""
    key = f"Idempotency-Key: cut-{cut_at}-{reset}"
    first = await served.connect()
    await first.start(key)
    while len(first.received) < cut_at and b"0\r\n\r\n" not in first.received:
        assert await first.receive(cut_at - len(first.received))
    first.reset() if reset else await first.stream.aclose()
    second = await served.connect()
    if first.last_id:
        stream_id = first.last_id.rpartition(".")[0]
        await second.request("GET", f"/v1/streams/{stream_id}/events", f"Last-Event-ID: {first.last_id}")
    else:
        await second.start(key)
    if any(event["type"] == "stream.completed" for event in first.events):
        assert (await second.read_response())[0] == 204
    else:
        await second.read_until(b"0\r\n\r\n")
    await second.stream.aclose()
    events = first.events + second.events
    return "".join(event.get("delta", "") for event in events), [event["seq"] for event in events]


async def test_a_cut_at_any_byte_loses_nothing_and_repeats_nothing(serving, kind) -> None:
    expected = "First, think. Then answer." + TEXT
    async with serving(fox, kind=kind) as served:
        uncut = await served.connect()
        await uncut.start()
        await uncut.read_until(b"0\r\n\r\n")
        assert uncut.text == expected
        step = 29 if kind == "stock" else 3  # the same code decides the result on every server
        with trio.fail_after(120):
            for cut_at in range(1, len(uncut.received), step):
                text, seqs = await _read_after_cut(served, cut_at, reset=cut_at % 2 == 0)
                assert text == expected, f"cut at {cut_at}"
                assert seqs == list(range(1, len(seqs) + 1)), f"cut at {cut_at}"
        assert bool(served.pipeline.batcher.direct_writes) == (kind == "own")


async def test_record_1_is_on_the_wire_before_the_engine_is_called(serving, kind) -> None:
    arrived = threading.Event()

    async def blocks_the_loop(request: Request, output: Output) -> Finish:
        # Nothing can be sent while this blocks. All that the client has was sent before the engine was called.
        assert arrived.wait(timeout=20)
        await output.delta("late")
        return Finish()

    def read_in_a_thread(port: int) -> bytes:
        body = b'{"input":"x"}'
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sock.sendall(
                b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            while b"0\r\n\r\n" not in received:
                received += sock.recv(65536)
                if b"stream.created" in received:
                    arrived.set()
        return received

    async with serving(blocks_the_loop, kind=kind) as served:
        with trio.fail_after(60):
            received = await trio.to_thread.run_sync(read_in_a_thread, served.port)
        assert b"stream.completed" in received


@pytest.mark.parametrize("buffer", [1, 8, 64])
async def test_a_client_that_stops_reading_stops_the_engine(serving, kind, buffer) -> None:
    piece = "x" * 1000
    made = 0
    total = 800

    async def flood(request: Request, output: Output) -> Finish:
        nonlocal made
        for _ in range(total):
            made += 1
            await output.delta(piece)
        return Finish()

    settings = load_settings({}, buffer_tokens=buffer, max_output_tokens=total)
    async with serving(flood, settings, kind=kind) as served:
        client = await served.connect(receive_buffer=4096)
        await client.start()
        await client.read_until(b"output.delta")
        before = -1
        with trio.fail_after(60):
            while made != before:  # until the engine makes no more
                before = made
                await trio.sleep(0.1)
        # The kernel buffers about 0.12 MiB of this connection. A record in flight adds one message.
        kernel_pieces = (256 * 1024 + MAX_FRAME_BYTES) // len(piece)
        assert made <= 2 * buffer + 1 + kernel_pieces
        with trio.fail_after(60):
            await client.read_until(b"0\r\n\r\n")
        assert client.text == piece * total
        assert made == total


async def test_a_client_that_leaves_stops_the_engine(serving, kind) -> None:
    stopped = trio.Event()

    async def endless(request: Request, output: Output) -> Finish:
        try:
            while True:
                await output.delta("x")
                await trio.sleep(0.001)
        finally:
            stopped.set()

    async with serving(endless, kind=kind) as served:
        client = await served.connect()
        await client.start(on_disconnect="cancel")
        await client.read_until(b"output.delta")
        client.reset()
        with trio.fail_after(10):
            await stopped.wait()
        assert await served.is_alive()


async def test_only_its_owner_can_reach_a_stream(serving, kind) -> None:
    settings = load_settings({}, keys={"alice": "a-key", "bob": "b-key"})
    async with serving(fox, settings, kind=kind) as served:
        alice = await served.connect()
        await alice.start("Authorization: Bearer a-key")
        await alice.read_until(b"0\r\n\r\n")
        stream_id = alice.last_id.rpartition(".")[0]
        bob = await served.connect()
        answers = []
        for path in (f"/v1/streams/{stream_id}", "/v1/streams/str_AAAAAAAAAAAAAAAAAAAAAA"):
            await bob.request("GET", path, "Authorization: Bearer b-key")
            answers.append(await bob.read_response())
        assert answers[0][0] == 404
        assert answers[0] == answers[1]


async def test_an_engine_failure_ends_its_own_stream_with_a_record(serving, kind) -> None:
    async def fails_on_demand(request: Request):
        yield Reasoning("hm")
        yield "some"
        await trio.sleep(0.05)
        if request.input == "fail":
            raise RuntimeError("boom")
        yield "thing"

    async with serving(fails_on_demand, kind=kind) as served:
        bad, good = await served.connect(), await served.connect()
        await bad.start(input="fail")
        await good.start(input="go on")
        with trio.fail_after(10):
            await bad.read_until(b"0\r\n\r\n")
            await good.read_until(b"0\r\n\r\n")
        assert [event["type"] for event in bad.events][-1] == "stream.failed"
        assert [event["type"] for event in good.events][-1] == "stream.completed"
        assert good.text == "hmsomething"


async def test_a_broken_body_never_looks_complete_on_http_1_1(serving, kind, monkeypatch) -> None:
    async def one_then_waits(request: Request, output: Output) -> Finish:
        await output.delta("x")
        await trio.sleep(0.05)
        await output.delta("y")
        return Finish()

    from crucible_trio.apis.native import fold

    class Broken(fold.SegmentsDialect):
        def feed(self, frames: list[bytes]) -> bytes:
            if any(b'"y"' in frame for frame in frames):
                raise RuntimeError("our own bug")
            return b"".join(frames)

    async def open_broken(*_: object, **__: object) -> Broken:
        return Broken(0, 1000)

    monkeypatch.setattr(fold, "open_dialect", open_broken)
    async with serving(one_then_waits, kind=kind) as served:
        client = await served.connect()
        await client.start()
        await client.read_until(b"output.delta")
        with trio.fail_after(10):
            if kind != "stock":
                with pytest.raises(trio.BrokenResourceError):  # a real RST
                    await client.read_to_close()
            else:
                await client.read_to_close()
        assert b"0\r\n\r\n" not in client.received
        assert await served.is_alive()
