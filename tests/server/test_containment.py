"""The bytes that a client sends can end its connection and nothing else. The server does not speak HTTP/2."""

from __future__ import annotations

import base64
import logging

import h2.config
import h2.connection
import pytest
import trio

from crucible_trio import Finish, Output, Request
from crucible_trio.server.http1 import Http1Protocol

pytestmark = pytest.mark.slow


async def ticks(request: Request, output: Output) -> Finish:
    for _ in range(40):
        await output.delta("x")
        await trio.sleep(0.01)
    return Finish()


def _h2_preface_with_non_ascii_path() -> bytes:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    connection.initiate_connection()
    headers = [(b":method", b"GET"), (b":path", b"/\xff"), (b":scheme", b"http"), (b":authority", b"127.0.0.1")]
    connection.send_headers(1, headers, end_stream=True)
    return connection.data_to_send()


def _h2c_upgrade() -> bytes:
    settings = base64.urlsafe_b64encode(b"\x00\x03\x00\x00\x00\x64").rstrip(b"=")
    return (
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: " + settings + b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        pytest.param(_h2_preface_with_non_ascii_path(), b"HTTP/1.1 505 ", id="http/2 preface"),
        pytest.param(b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 505 ", id="http/9.9"),
        pytest.param(_h2c_upgrade(), b"HTTP/1.1 200 ", id="h2c upgrade is ignored"),
        pytest.param(b"GET /\xc3\xa4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"HTTP/1.1 400 ", id="non-ascii path"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"HTTP/1.1 400 ", id="tls hello"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 70_000, b"HTTP/1.1 431 ", id="endless header"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            b"HTTP/1.1 4",
            id="websocket",
        ),
    ],
)
async def test_a_strange_request_is_answered_and_a_neighbour_streams_on(serving, sent, answer) -> None:
    async with serving(ticks) as served:
        neighbour, stranger = await served.connect(), await served.connect()
        await neighbour.start()
        await neighbour.read_until(b"output.delta")
        await stranger.send(sent)
        with trio.fail_after(10):
            await stranger.read_until(answer)
            await neighbour.read_until(b"0\r\n\r\n")
        assert neighbour.text == "x" * 40
        assert await served.is_alive()


async def test_an_exception_in_a_connection_ends_that_connection_alone(serving, monkeypatch, caplog) -> None:
    real = Http1Protocol._create_stream
    secret = "".join(["what the ", "client sent"])  # in two literals, because the log shows source lines

    async def explode_on_demand(self, request):
        if request.target == b"/explode":
            raise ZeroDivisionError(secret)
        await real(self, request)

    monkeypatch.setattr(Http1Protocol, "_create_stream", explode_on_demand)
    async with serving(ticks) as served:
        neighbour, bad = await served.connect(), await served.connect()
        await neighbour.start()
        await neighbour.read_until(b"output.delta")
        await bad.request("GET", "/explode")
        with trio.fail_after(10):
            with pytest.raises(trio.BrokenResourceError):
                await bad.read_to_close()
            await neighbour.read_until(b"0\r\n\r\n")
        assert await served.is_alive()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert any("ZeroDivisionError" in record.getMessage() for record in errors)
    assert secret not in caplog.text
