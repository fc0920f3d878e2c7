"""The chaos proxy applies each treatment at exactly the byte it names, and changes nothing else."""

from __future__ import annotations

import math
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio

from crucible_trio import Reasoning, Request, open_pipeline
from crucible_trio.client import open_client
from crucible_trio.server import Config, serve
from crucible_trio.settings import ApiSettings
from crucible_trio.testing import (
    CUTS,
    UNTOUCHED,
    EveryByte,
    RandomChaos,
    Repeat,
    ScriptedEngine,
    Treatment,
    open_chaos_proxy,
    split_text,
)
from crucible_trio.web import create_app

ANSWER = bytes(range(256)) * 4  # neighbouring bytes differ, so a lost byte is noticed


@dataclass
class ByteServer:
    """Sends `answer` when a connection's first bytes arrive, then ends the connection as `then` says."""

    port: int = 0
    answer: bytes = ANSWER
    then: str = "fin"  # or "rst", or "wait" for the client to end it
    sent: int = 0
    requests: list[bytes] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)  # how each connection ended, as seen by the server
    over: trio.Event = field(default_factory=trio.Event)
    clients: list[trio.SocketStream] = field(default_factory=list)

    async def ask(self, port: int, request: bytes = b"please") -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        self.clients.append(stream)
        if request:
            await stream.send_all(request)
        return stream

    async def serve_one(self, stream: trio.SocketStream) -> None:
        request = bytes(await _receive(stream))
        if not request:
            self.ends.append("fin")
            return
        self.requests.append(request)
        try:
            while self.sent < len(self.answer):  # in parts, so that `sent` shows where a stalled client stops it
                await stream.send_all(self.answer[self.sent : self.sent + 16384])
                self.sent += 16384
            self.sent = 0
            if self.then == "wait":
                self.ends.append("rst" if await _receive(stream) is None else "fin")
            elif self.then == "rst":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except trio.BrokenResourceError:
            self.ends.append("rst")
        finally:
            stream.socket.close()
            self.over.set()


async def _receive(stream: trio.SocketStream, limit: int = 65536) -> bytes | None:
    """The next bytes: empty at FIN, None at RST."""
    try:
        return bytes(await stream.receive_some(limit))
    except trio.BrokenResourceError:
        return None


async def _read_to_end(stream: trio.SocketStream) -> tuple[bytes, str]:
    received = b""
    while data := await _receive(stream):
        received += data
    return received, "rst" if data is None else "fin"


@pytest.fixture
def server() -> Callable[..., AsyncIterator[ByteServer]]:
    @asynccontextmanager
    async def running(seconds: float = 30, **options) -> AsyncIterator[ByteServer]:
        server = ByteServer(**options)
        with trio.fail_after(seconds):
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(partial(trio.serve_tcp, server.serve_one, 0, host="127.0.0.1"))
                server.port = listeners[0].socket.getsockname()[1]
                try:
                    yield server
                finally:
                    for client in server.clients:
                        client.socket.close()
                nursery.cancel_scope.cancel()

    return running


async def _ended(connection) -> str:
    while connection.outcome == "open":
        await trio.sleep(0.001)
    return connection.outcome


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_without_a_treatment_the_answer_passes_and_ends_as_the_server_ends_it(server, end) -> None:
    async with server(then=end) as far, open_chaos_proxy(far.port) as proxy:
        received, seen = await _read_to_end(await far.ask(proxy.port))
        assert seen == end
        if end == "fin":
            assert received == ANSWER  # a reset may overtake bytes that the server had sent
        assert far.requests == [b"please"]
        [connection] = proxy.connections
        assert await _ended(connection) == "closed by server"
        assert (connection.request_bytes, connection.answer_bytes) == (6, len(received))


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_a_client_that_leaves_ends_the_same_way_for_the_server(server, end) -> None:
    async with server(then="wait") as far, open_chaos_proxy(far.port) as proxy:
        stream = await far.ask(proxy.port)
        assert await stream.receive_some()
        if end == "rst":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
        await far.over.wait()
        assert far.ends == [end]
        assert await _ended(proxy.connections[0]) == "closed by client"


async def test_a_client_that_half_closes_still_gets_the_answer(server) -> None:
    async with server(then="wait") as far, open_chaos_proxy(far.port, [Treatment(delay_seconds=0.05)]) as proxy:
        stream = await far.ask(proxy.port)
        await stream.send_eof()
        assert await _read_to_end(stream) == (ANSWER, "fin")
        assert far.ends == ["fin"]


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_a_connection_is_cut_after_exactly_this_many_bytes(server, cut) -> None:
    marks = [0, 1, 2, 255, 256, 257, 1023, 1024]
    chaos = [Treatment(cut_after=mark, cut=cut) for mark in marks]
    async with server(then="wait") as far, open_chaos_proxy(far.port, chaos) as proxy:
        for mark in marks:
            received, end = await _read_to_end(await far.ask(proxy.port))
            assert (received, end) == (ANSWER[:mark], cut)
        assert [connection.answer_bytes for connection in proxy.connections] == marks
        assert {connection.outcome for connection in proxy.connections} == {"cut"}
        assert len(far.requests) == len(marks)  # even the one cut at 0 has reached the server
        stream = await far.ask(proxy.port)  # beyond the list, connections are untouched
        assert len(await stream.receive_some(65536)) > 0
        assert proxy.connections[-1].treatment == UNTOUCHED


async def test_every_byte_is_cut_once_and_each_reconnect_is_untouched(server) -> None:
    answer = ANSWER[:40]
    async with server(answer=answer) as far, open_chaos_proxy(far.port, EveryByte(cut="fin")) as proxy:
        for mark in range(len(answer)):
            assert (await _read_to_end(await far.ask(proxy.port)))[0] == answer[:mark]
            assert (await _read_to_end(await far.ask(proxy.port)))[0] == answer
        # The next cut is beyond the answer, so every byte has been cut.
        assert (await _read_to_end(await far.ask(proxy.port)))[0] == answer
        assert await _ended(proxy.connections[-1]) in {"cut", "closed by server"}
    assert EveryByte(first=10, step=5)(4) == Treatment(cut_after=20)


async def test_a_refused_connection_never_reaches_the_server(server) -> None:
    async with server() as far, open_chaos_proxy(far.port, [Treatment(refuse=True)]) as proxy:
        assert await _read_to_end(await far.ask(proxy.port, b"")) == (b"", "rst")
        assert far.requests == []
        assert proxy.connections[0].outcome == "refused"
        assert (await _read_to_end(await far.ask(proxy.port)))[0] == ANSWER


async def test_a_missing_server_is_a_reset() -> None:
    with socket.socket() as taken:  # bound but not listening: no other process can use the port
        taken.bind(("127.0.0.1", 0))
        with trio.fail_after(10):
            async with open_chaos_proxy(taken.getsockname()[1]) as proxy:
                stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
                async with stream:
                    assert await _read_to_end(stream) == (b"", "rst")
                assert proxy.connections[0].outcome == "no server"


async def test_a_half_closed_answer_looks_ended_to_the_client_and_open_to_the_server(server) -> None:
    chaos = [Treatment(cut_after=100, cut="half_close_answer")]
    async with server(then="wait") as far, open_chaos_proxy(far.port, chaos) as proxy:
        stream = await far.ask(proxy.port)
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received == ANSWER[:100]
        await stream.send_all(b"more")  # this direction is still open
        while proxy.connections[0].request_bytes < 10:
            await trio.sleep(0.001)
        assert proxy.connections[0].outcome == "cut"
        assert far.ends == ["fin"]  # "more" ended the server's wait: it did not see the client leave


async def test_a_half_closed_request_is_a_fin_to_the_server_and_the_answer_passes(server) -> None:
    chaos = [Treatment(cut_after=100, cut="half_close_request")]
    async with server(then="wait") as far, open_chaos_proxy(far.port, chaos) as proxy:
        received, end = await _read_to_end(await far.ask(proxy.port))
        assert far.ends == ["fin"]
        assert (received, end) == (ANSWER, "fin")
        assert proxy.connections[0].outcome == "cut"


async def test_a_stall_holds_the_rest_back_and_then_lets_it_pass(autojump_clock, server) -> None:
    # The clock jumps only when all tasks wait, so only the stall can take a thousand seconds.
    chaos = [Treatment(stall_after=100, stall_seconds=1000)]
    async with server(seconds=9999) as far, open_chaos_proxy(far.port, chaos) as proxy:
        begin = trio.current_time()
        stream = await far.ask(proxy.port)
        received = {False: b"", True: b""}
        while data := await stream.receive_some():
            received[trio.current_time() >= begin + 1000] += data
    assert received[False] == ANSWER[:100]
    assert received[True] == ANSWER[100:]


async def test_an_endless_stall_ends_with_the_client(server) -> None:
    for end in ("fin", "rst"):
        chaos = [Treatment(stall_after=0)]
        async with server(then="wait") as far, open_chaos_proxy(far.port, chaos) as proxy:
            stream = await far.ask(proxy.port)
            while not proxy.connections or proxy.connections[0].request_bytes < 6:
                await trio.sleep(0.001)
            if end == "rst":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
            assert await _ended(proxy.connections[0]) == "closed by client"
            assert proxy.connections[0].answer_bytes == 0
            await far.over.wait()


async def test_a_stall_then_a_cut_falls_on_one_byte(server) -> None:
    chaos = [Treatment(stall_after=50, stall_seconds=0.01, cut_after=50, cut="fin")]
    async with server() as far, open_chaos_proxy(far.port, chaos) as proxy:
        assert await _read_to_end(await far.ask(proxy.port)) == (ANSWER[:50], "fin")


async def test_a_throttled_answer_never_exceeds_its_rate(autojump_clock, server) -> None:
    chaos = [Treatment(bytes_per_second=100.0, delay_seconds=7.0)]
    async with server(seconds=9999) as far, open_chaos_proxy(far.port, chaos) as proxy:
        begin = trio.current_time()
        stream = await far.ask(proxy.port)
        received = 0
        while data := await stream.receive_some():
            # At most one write may be ahead of the rate.
            assert received <= 100.0 * (trio.current_time() - begin - 7.0) + 1
            received += len(data)
    assert received == len(ANSWER)


async def test_small_pieces_are_single_writes(server) -> None:
    async with server(answer=ANSWER[:50]) as far, open_chaos_proxy(far.port, [Treatment(piece_bytes=1)]) as proxy:
        stream = await far.ask(proxy.port)
        pieces = []
        while data := await stream.receive_some():
            pieces.append(data)
        assert b"".join(pieces) == ANSWER[:50]
        assert len(pieces) > 1


async def test_small_buffers_let_a_stalled_client_stop_the_server(server) -> None:
    size = 64 * 1024 * 1024
    async with (
        server(answer=b"x" * size) as far,
        open_chaos_proxy(far.port, [Treatment(stall_after=1000)], buffer_bytes=4096) as proxy,
    ):
        await far.ask(proxy.port)
        before = -1
        while far.sent != before or not far.sent:  # until it stops
            before = far.sent
            await trio.sleep(0.1)
        assert far.sent < size / 4  # the kernel buffers some on the server's side


async def test_open_connections_can_be_cut_at_any_time(server) -> None:
    async with server(then="wait") as far, open_chaos_proxy(far.port) as proxy:
        for how in ("fin", "rst"):
            stream = await far.ask(proxy.port)
            received = b""
            while len(received) < len(ANSWER):
                received += await stream.receive_some()
            proxy.cut(how)
            assert await _read_to_end(stream) == (b"", how)
        assert [connection.outcome for connection in proxy.connections] == ["cut", "cut"]


async def test_leaving_resets_open_connections_and_errors_pass_unchanged(server) -> None:
    async with server(then="wait") as far:
        with pytest.raises(RuntimeError, match="mine"):  # noqa: PT012
            async with open_chaos_proxy(far.port) as proxy:
                stream = await far.ask(proxy.port)
                assert await stream.receive_some()
                raise RuntimeError("mine")
        assert (await _read_to_end(stream))[1] == "rst"
        assert proxy.connections[0].outcome == "stopped"
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", proxy.port)


def test_a_seed_repeats_its_treatments_and_their_repr_is_python() -> None:
    chaos = RandomChaos(seed=7)
    treatments = [chaos(number) for number in range(500)]
    random.seed(0)  # the global generator has no influence
    again = eval(repr(chaos), {"RandomChaos": RandomChaos})
    assert [again(number) for number in reversed(range(500))] == treatments[::-1]
    assert [RandomChaos(seed=8)(number) for number in range(500)] != treatments
    names = {"Treatment": Treatment}
    assert [eval(repr(treatment), names) for treatment in treatments] == treatments
    assert repr(Treatment(cut_after=12, cut="fin")) == "Treatment(cut_after=12, cut='fin')"


def test_random_chaos_uses_every_kind_of_treatment() -> None:
    chaos = RandomChaos(seed=1)
    treatments = [chaos(number) for number in range(2000)]
    assert {treatment.cut for treatment in treatments if treatment.cut_after is not None} == set(CUTS)
    assert any(treatment.refuse for treatment in treatments)
    assert any(treatment.bytes_per_second < math.inf for treatment in treatments)
    assert any(treatment.delay_seconds for treatment in treatments)
    stalls = [treatment for treatment in treatments if treatment.stall_after is not None]
    assert {treatment.stall_seconds < math.inf for treatment in stalls} == {True, False}
    assert {treatment.cut_after is None for treatment in stalls} == {True, False}
    assert 0.25 < sum(treatment == UNTOUCHED for treatment in treatments) / len(treatments) < 0.35
    mild = RandomChaos(seed=1, endless_stalls=False, cuts=("fin",), untouched=0.0)
    treatments = [mild(number) for number in range(500)]
    assert UNTOUCHED not in treatments
    assert {treatment.cut for treatment in treatments if treatment.cut_after is not None} == {"fin"}
    assert all(t.stall_seconds <= 0.3 for t in treatments if t.stall_after is not None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cut_after": -1},
        {"stall_after": -1},
        {"delay_seconds": -0.1},
        {"delay_seconds": math.nan},
        {"stall_seconds": -1.0},
        {"piece_bytes": 0},
        {"bytes_per_second": 0.0},
        {"cut": "gently"},
    ],
)
def test_an_invalid_treatment_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).partition("_")[0]):
        Treatment(**wrong)


async def test_the_report_has_a_line_for_each_connection(server) -> None:
    chaos = [Treatment(cut_after=3, cut="fin"), Treatment(refuse=True)]
    async with server() as far, open_chaos_proxy(far.port, chaos) as proxy:
        await _read_to_end(await far.ask(proxy.port))
        await _read_to_end(await far.ask(proxy.port, b""))
        assert proxy.report().splitlines() == [
            "chaos proxy with [Treatment(cut_after=3, cut='fin'), Treatment(refuse=True)]",
            "connection 0: cut, 6 request bytes, 3 answer bytes, Treatment(cut_after=3, cut='fin')",
            "connection 1: refused, 0 request bytes, 0 answer bytes, Treatment(refuse=True)",
        ]
        assert proxy.url == f"http://127.0.0.1:{proxy.port}"


# The package's client and server, through the proxy

TEXT = "Grüße, 🦊 naïve 🏳️\u200d🌈 \u2028\x85\n\nid: forged "


@asynccontextmanager
async def _serving(engine: ScriptedEngine) -> AsyncIterator[int]:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    settings = ApiSettings(retry_milliseconds=1, heartbeat_seconds=0.5)
    async with open_pipeline(engine) as pipeline, trio.open_nursery() as nursery:
        [url] = await nursery.start(partial(serve, create_app(pipeline, settings), config))
        yield int(url.rsplit(":", 1)[1])
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "first"), [("fin", 0), ("rst", 4)])
async def test_cut_at_every_eighth_byte_a_real_client_gets_the_uncut_text(cut, first) -> None:
    engine = ScriptedEngine(Reasoning("hm "), Reasoning(TEXT, 1), split_text(TEXT, 4, seed=5))
    with trio.fail_after(120):
        async with (
            _serving(engine) as port,
            open_chaos_proxy(port, EveryByte(cut=cut, first=first, step=8)) as proxy,
        ):
            streams = 0
            while len(proxy.connections) == 2 * streams:  # no client reconnects once the cut is beyond the answer
                streams += 1
                async with (
                    open_client(proxy.url, retry_seconds=0.001) as client,  # a new client reuses no connection
                    client.start(Request("x", mode="deep")) as stream,
                ):
                    records = [record async for record in stream]
                text = "".join(getattr(record, "delta", "") for record in records)
                assert text == "hm " + TEXT + TEXT, proxy.connections[-2:]
                assert [record.seq for record in records] == list(range(1, len(records) + 1)), proxy.connections[-2:]
            # The client closes when it has the terminal record, so the last cut that it saw is inside that record.
            assert proxy.connections[-3].outcome == "cut"
            assert proxy.connections[-3].answer_bytes > 1000
            assert streams > 120


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_random_chaos_loses_nothing_for_real_clients(seed) -> None:
    pieces = split_text(TEXT * 40, 300, seed=seed)
    engine = ScriptedEngine(Reasoning("hm "), 0.01, pieces, Repeat("y" * 5000, 3))
    with trio.fail_after(60):
        async with (
            _serving(engine) as port,
            open_chaos_proxy(port, RandomChaos(seed=seed, untouched=0.5)) as proxy,
            # An endless stall lasts until the client's `silence_seconds`.
            open_client(proxy.url, retry_seconds=0.001, silence_seconds=1.0, max_first_attempts=10) as client,
        ):

            async def read() -> None:
                async with client.start(Request("x", mode="deep")) as stream:
                    records = [record async for record in stream]
                text = "".join(getattr(record, "delta", "") for record in records)
                assert text == "hm " + TEXT * 40 + "y" * 15000, proxy.report()
                assert [record.seq for record in records] == list(range(1, len(records) + 1)), proxy.report()

            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(read)
            assert sum(connection.outcome in {"cut", "refused"} for connection in proxy.connections) > 0
