"""The client on real sockets: cut at any byte, left early, cancelled."""

from __future__ import annotations

import contextlib
import logging
import socket

import pytest
import trio

from crucible_trio.client import ClientStream, open_client
from crucible_trio.errors import StreamLostError
from crucible_trio.records import (
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCompleted,
    StreamCreated,
    Timings,
    Usage,
)
from crucible_trio.request import Request

PROMPT = "Why is the sky blue? 7f3a9c"


def make_records(stream_id):
    return [
        StreamCreated(1, stream_id, "deep", "scripted", 1764000000.0),
        ReasoningDelta(2, 0, "First, \n\n"),
        ReasoningDelta(3, 1, "id: forged\u2028 \u0085"),
        ReasoningDone(4, 2),
        OutputDelta(5, "Grüße, "),
        OutputDelta(6, "🜁\ufeff"),
        StreamCompleted(7, "stop", Usage(3, 9, 4), Timings(212.0, 3411.0)),
    ]


@contextlib.contextmanager
def url_that_refuses():
    # The socket is bound but does not listen, so no other program can take the port.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def client_of(server, **options):
    return open_client(server.url, retry_seconds=0.001, **options)


async def read_all(stream: ClientStream):
    return [record async for record in stream]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "chunked"), [("fin", True), ("rst", True), ("fin", False)])
async def test_a_stream_cut_at_any_byte_has_the_records_of_an_uncut_stream(serve, how, chunked):
    with trio.fail_after(120):
        server = await serve(make_records, chunked=chunked)
        server.records["str_" + "a" * 22] = make_records("str_" + "a" * 22)
        head, pieces = server.answer("str_" + "a" * 22, 0)
        length = len(head + b"".join(pieces))
        assert length > 1000
        results = {}
        limit = trio.CapacityLimiter(20)

        async def read_with_cut_at(offset):
            key = f"cut-{offset}"
            # The stream is cut twice. The second cut falls on another byte of the rest.
            server.cuts[key] = [(offset, how), (length - offset, how)]
            async with limit, client.start(Request(PROMPT), idempotency_key=key) as stream:
                results[offset] = (stream, await read_all(stream))

        async with client_of(server) as client, trio.open_nursery() as nursery:
            for offset in range(length):
                nursery.start_soon(read_with_cut_at, offset)
    assert len(results) == length
    for stream, records in results.values():
        assert records == make_records(stream.id)
        assert stream.terminal == records[-1]
    # One stream for each key, wherever the cuts were. No start was lost and none happened twice.
    assert len(server.ids) == length
    assert {stream.id for stream, _ in results.values()} == set(server.ids.values())
    assert any(stream.reconnects == 2 for stream, _ in results.values())


async def test_a_start_whose_answer_is_lost_is_repeated_with_the_same_key_and_body(serve):
    with trio.fail_after(20):
        server = await serve(make_records)
        async with client_of(server) as client:
            server.cuts["once"] = [(0, "rst"), (20, "fin")]
            async with client.start(Request(PROMPT, mode="deep"), idempotency_key="once") as stream:
                assert await read_all(stream) == make_records(stream.id)
    assert [method for method, *_ in server.requests] == ["POST", "POST", "POST"]
    assert len({(headers["idempotency-key"], body) for _, _, headers, body in server.requests}) == 1
    assert server.ids == {"once": stream.id}
    assert stream.reconnects == 0  # the first connection that sent something is not a reconnect


async def test_two_starts_are_two_streams(serve):
    with trio.fail_after(20):
        server = await serve(make_records)
        async with client_of(server) as client:
            for _ in range(2):
                async with client.start(Request(PROMPT)) as stream:
                    await read_all(stream)
    assert len(server.ids) == 2


async def test_a_silent_connection_is_replaced(serve):
    with trio.fail_after(20):
        server = await serve(make_records)
        server.hold = trio.sleep_forever
        async with client_of(server, silence_seconds=0.2) as client, client.start(Request(PROMPT)) as stream:
            await anext(stream)
            server.hold = None
            assert await read_all(stream) == make_records(stream.id)[1:]
            assert stream.reconnects == 1


async def test_a_refused_connection_is_reported_after_the_first_attempts():
    with url_that_refuses() as url, trio.fail_after(20):
        async with open_client(url, retry_seconds=0.001, max_first_attempts=2) as client:
            with pytest.raises(StreamLostError, match="refused") as caught:
                async with client.start(Request(PROMPT)):
                    pass
            assert caught.value.last_seq == 0
            with pytest.raises(StreamLostError, match="refused"):
                await client.models()


@pytest.mark.parametrize("way_out", ["leave", "cancel", "error"])
async def test_leaving_early_closes_the_connection_and_sends_no_request(serve, way_out):
    with trio.fail_after(20):
        server = await serve(make_records)
        gone = trio.Event()
        server.hold = gone.wait
        async with client_of(server) as client:
            with trio.CancelScope() as scope:
                try:
                    async with client.start(Request(PROMPT)) as stream:
                        await anext(stream)
                        if way_out == "cancel":
                            scope.cancel()
                            await anext(stream)
                        if way_out == "error":
                            raise RuntimeError  # noqa: TRY301 - the test is about this way out
                except RuntimeError:
                    pass
            with pytest.raises(trio.ClosedResourceError):
                await anext(stream)
            # The client is still open, but its connection is closed.
            assert server.open_connections == 1
            assert client._server._http.open_connections == 0
            gone.set()
    assert len(server.requests) == 1


async def test_the_number_of_streams_at_the_same_time_is_not_limited(serve):
    with trio.fail_after(20):  # less than the silence after which the client closes a connection
        server = await serve(make_records)
        all_there = trio.Event()
        server.hold = all_there.wait
        first_records = 0

        async def read_one():
            nonlocal first_records
            async with client.start(Request(PROMPT)) as stream:
                await anext(stream)
                first_records += 1
                if first_records == 120:
                    all_there.set()
                await read_all(stream)

        async with client_of(server) as client, trio.open_nursery() as nursery:
            for _ in range(120):
                nursery.start_soon(read_one)
    assert first_records == 120


async def test_the_prompt_is_in_no_log_and_no_message(serve, caplog):
    caplog.set_level(logging.DEBUG)
    with trio.fail_after(20):
        server = await serve(make_records)
        async with client_of(server, max_attempts=2, max_first_attempts=2) as client:
            server.cuts["lost"] = [(250, "fin")] * 4  # within record 1
            with pytest.raises(StreamLostError) as caught:
                async with client.start(Request(PROMPT), idempotency_key="lost") as stream:
                    await read_all(stream)
            assert PROMPT not in f"{stream!r} {client!r} {caught.value!r} {caught.value.__cause__!r}"
    assert "7f3a9c" not in caplog.text
