"""The upstream engine against a server that responds with the bytes of the test."""

from __future__ import annotations

import gc
import json
import logging
import math
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.operations.prometheus import render
from crucible_trio.config import Settings
from crucible_trio.content import Piece, Refusal, ServerFields, Text
from crucible_trio.engine import CountsSkippedFields, Engine, Finish
from crucible_trio.engines import open_engine
from crucible_trio.engines.upstream import discovery, open_upstream, retries
from crucible_trio.engines.upstream import response as upstream_response
from crucible_trio.errors import ConfigError, EngineError
from crucible_trio.http.client import CONNECT_TIMEOUT
from crucible_trio.http.pool import MAX_IDLE_CONNECTIONS
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import Usage
from crucible_trio.request import Message, Request, Sampling
from crucible_trio.settings import EngineSettings

KEY = "sk-very-secret-1234"
PROMPT = "Why is the sky blue?"
ASK = Request(PROMPT)

ScriptedAnswer = bytes | Callable[["ScriptedConnection"], Awaitable[None]]


class ScriptedConnection:
    """The server's end of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.closed_by_client = trio.Event()
        self.sent = 0
        self._received = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)
        self.sent += len(data)

    async def read_request(self) -> tuple[str, dict[str, str], bytes] | None:
        """Read the request line, headers and body, or None when the client has closed the connection."""
        while b"\r\n\r\n" not in self._received:
            if not await self._more():
                return None
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        length = int(headers.get("content-length", 0))
        while len(self._received) < length:
            if not await self._more():
                return None
        body, self._received = self._received[:length], self._received[length:]
        return line, headers, body

    async def wait_for_close(self) -> None:
        while await self._more():
            pass

    def reset(self) -> None:
        """Reset the connection (RST), as a crashed process or a proxy does."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError:
            data = b""
        self._received += data
        if not data:
            self.closed_by_client.set()
        return bool(data)


class ScriptedServer:
    """Gives the answers in order and repeats the last one. A connection stays open unless its answer closes it."""

    def __init__(self) -> None:
        self.answers: list[ScriptedAnswer] = []
        self.lines: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.connections: list[ScriptedConnection] = []
        self.open = 0
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = ScriptedConnection(stream)
        self.connections.append(connection)
        self.open += 1
        try:
            while stream.socket.fileno() != -1 and (request := await connection.read_request()) is not None:
                line, headers, body = request
                self.lines.append(line)
                self.headers.append(headers)
                self.bodies.append(body)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                try:
                    if isinstance(answer, bytes):
                        await connection.send(answer)
                        if b"chunked" not in answer and b"Content-Length" not in answer:
                            return
                    else:
                        await answer(connection)
                except trio.BrokenResourceError:
                    connection.closed_by_client.set()
        finally:
            self.open -= 1
            await stream.aclose()

    async def all_closed(self) -> None:
        """Wait until no connection is open."""
        for connection in self.connections:
            await connection.closed_by_client.wait()
        while self.open:
            await trio.lowlevel.checkpoint()


@pytest.fixture
async def server(nursery: trio.Nursery) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    listeners = await nursery.start(partial(trio.serve_tcp, scripted.serve, 0, host="127.0.0.1"))
    scripted.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
    with trio.fail_after(20):  # a hang fails
        yield scripted
    gc.collect()  # it reports a socket that was not closed


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS", (0.01, 0.02))
    monkeypatch.setattr(retries, "NO_RESPONSE_DELAYS", (0.01, 0.02))


def chunk(finish_reason: str | None = None, **delta: object) -> bytes:
    return event(json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}))


def event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


ROLE = chunk(role="assistant", content=None)
DONE = event("[DONE]")
USAGE = event('{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
OPEN_ENDED = HEAD + b"\r\n"  # the body ends with the connection


def part(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def stream(*events: bytes) -> bytes:
    return CHUNKED + b"".join(map(part, events)) + END


GOOD = stream(ROLE, chunk(content="Blue"), chunk(content="."), chunk("stop"), USAGE, DONE)
GOOD_PIECES = [(None, "Blue"), (None, ".")]


def status(number: int, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {number} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def ask(engine: Engine, request: Request = ASK) -> tuple[list[tuple[int | None, str]], Finish]:
    send, receive = trio.open_memory_channel[Piece](math.inf)
    finish = await engine.generate(request, Output(send))
    return read_buffered(receive), finish


def read_buffered(receive: trio.MemoryReceiveChannel[Piece]) -> list[tuple[int | None, str]]:
    pieces = []
    while receive.statistics().current_buffer_used:
        piece = receive.receive_nowait()
        if not isinstance(piece, ServerFields):
            pieces.append((getattr(piece, "segment", None), piece.text))
    return pieces


async def failure_of(url: str) -> tuple[EngineError, list[tuple[int | None, str]]]:
    """The error of a request, and the pieces before it."""
    send, receive = trio.open_memory_channel[Piece](math.inf)
    async with open_upstream(url, model="m") as engine:
        with pytest.raises(EngineError) as caught:
            await engine.generate(ASK, Output(send))
    return caught.value, read_buffered(receive)


# Successful streams


async def test_a_stream_is_relayed(server: ScriptedServer) -> None:
    server.answers = [GOOD]
    async with open_upstream(server.url, model="m") as engine:
        assert await ask(engine) == (GOOD_PIECES, Finish("stop", Usage(5, 7, None)))


async def test_a_stream_is_relayed_however_its_bytes_are_split(server: ScriptedServer) -> None:
    async def dribble(connection: ScriptedConnection) -> None:
        for number in range(len(GOOD)):
            await connection.send(GOOD[number : number + 1])

    server.answers = [dribble]
    async with open_upstream(server.url, model="m") as engine:
        assert await ask(engine) == (GOOD_PIECES, Finish("stop", Usage(5, 7, None)))


async def test_comments_are_ignored_and_usage_is_optional(server: ScriptedServer) -> None:
    ping = b": keep-alive\n\n"
    server.answers = [stream(ping, ROLE, ping + chunk(content="Blue"), b":\n", chunk("length"), ping, DONE)]
    async with open_upstream(server.url, model="m") as engine:
        assert await ask(engine) == ([(None, "Blue")], Finish("length", Usage()))


async def test_a_split_think_tag_makes_trace_and_answer(server: ScriptedServer) -> None:
    pieces = ["<th", "ink>\nS", "ky", "</", "think", ">\n\nBl", "ue"]
    server.answers = [stream(ROLE, *(chunk(content=piece) for piece in pieces), chunk("stop"), DONE)]
    async with open_upstream(server.url, model="m") as engine:
        got, _ = await ask(engine)
    assert got == [(0, "S"), (0, "ky"), (None, "Bl"), (None, "ue")]


async def test_a_stream_without_done_is_complete_if_it_has_a_finish_reason(server: ScriptedServer) -> None:
    server.answers = [OPEN_ENDED + chunk(content="Blue") + chunk("stop"), CHUNKED + part(chunk("stop"))]
    async with open_upstream(server.url, model="m") as engine:
        assert await ask(engine) == ([(None, "Blue")], Finish("stop"))

        async def reset_after_finish(connection: ScriptedConnection) -> None:
            await connection.send(CHUNKED + part(chunk(content="Blue") + chunk("stop")))
            await got_all.wait()
            connection.reset()

        got_all = trio.Event()
        server.answers = [reset_after_finish]
        send, receive = trio.open_memory_channel[Piece](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.generate, ASK, Output(send))
            assert (await receive.receive()).text == "Blue"
            got_all.set()


async def test_a_body_without_an_end_does_not_delay_a_complete_answer(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_response, "USAGE_TIMEOUT", 0.05)
    monkeypatch.setattr(upstream_response, "END_TIMEOUT", 0.05)
    for tail in (b"", part(DONE)):

        async def keep_open(connection: ScriptedConnection, tail: bytes = tail) -> None:
            await connection.send(CHUNKED + part(chunk(content="Blue") + chunk("stop")) + tail)
            await connection.wait_for_close()

        server.answers = [keep_open]
        async with open_upstream(server.url, model="m") as engine:
            assert await ask(engine) == ([(None, "Blue")], Finish("stop"))
            await server.all_closed()


async def test_the_body_has_the_fields_of_the_request(server: ScriptedServer) -> None:
    server.answers = [GOOD]
    async with open_upstream(server.url + "/?v=1", model="m", key=KEY, extra_body={"top_k": 3, "seed": 9}) as engine:
        sampling = Sampling(temperature=0.5, top_p=0.9, seed=7, stop=("END",))
        await ask(engine, Request("Hi", model="m", mode="deep", max_output_tokens=5, sampling=sampling))
        await ask(engine, Request((Message("system", "Be brief."), Message("user", "Hi \ud83d"))))
    assert server.lines == ["POST /v1/chat/completions?v=1 HTTP/1.1"] * 2
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert [json.loads(body) for body in server.bodies] == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"enable_thinking": True},
            "max_tokens": 5,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 9,
            "stop": ["END"],
            "top_k": 3,
        },
        {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi \ud83d"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "chat_template_kwargs": {"enable_thinking": False},
            "top_k": 3,
            "seed": 9,
        },
    ]


async def test_the_fields_that_make_a_server_think_can_be_changed(server: ScriptedServer) -> None:
    server.answers = [GOOD]
    thinking = {"deep": {"reasoning_effort": "high"}}
    async with open_upstream(server.url, model="m", thinking=thinking, limit_field="max_completion_tokens") as engine:
        await ask(engine, Request("Hi", mode="deep", max_output_tokens=5))
        await ask(engine, Request("Hi"))
    deep, standard = (json.loads(body) for body in server.bodies)
    assert deep["reasoning_effort"] == "high"
    assert deep["max_completion_tokens"] == 5
    assert "reasoning_effort" not in standard
    assert "chat_template_kwargs" not in standard
    assert "authorization" not in server.headers[0]


# Odd streams. Their many forms are tested without a socket, in test_reading.py
# and test_response.py


@pytest.mark.parametrize("head", [CHUNKED, HEAD + b"Content-Length: %d\r\n\r\n", OPEN_ENDED], ids=repr)
async def test_a_finish_with_the_first_text_needs_a_body_with_a_promised_end(
    server: ScriptedServer, head: bytes
) -> None:
    body = chunk("stop", content="Blue")
    answer = CHUNKED + part(body) + END if head == CHUNKED else (head % len(body) if b"%d" in head else head) + body
    server.answers = [answer]
    if head == OPEN_ENDED:  # its end looks like a cut
        error, pieces = await failure_of(server.url)
        assert error.code == "upstream_ended_early"
    else:
        async with open_upstream(server.url, model="m") as engine:
            pieces, _ = await ask(engine)
    assert pieces == [(None, "Blue")]


async def test_a_refusal_is_written_as_a_refusal(server: ScriptedServer) -> None:
    server.answers = [stream(ROLE, chunk(refusal="I can"), chunk(refusal="not."), chunk("stop"))]
    send, receive = trio.open_memory_channel[Piece](math.inf)
    async with open_upstream(server.url, model="m") as engine:
        assert await engine.generate(ASK, Output(send)) == Finish("stop")
    assert [receive.receive_nowait() for _ in range(2)] == [Refusal("I can"), Refusal("not.")]


async def test_a_trace_can_start_without_an_opening_tag(server: ScriptedServer) -> None:
    server.answers = [stream(chunk(content="Okay, far.\n</thought>\n\nBlue."), chunk("stop"))]
    tags = {"<thought>": "</thought>"}
    async with open_upstream(server.url, model="m", think_tags=tags, starts_in_trace=("deep",)) as engine:
        assert (await ask(engine, Request("Hi", mode="deep")))[0] == [(0, "Okay, far.\n"), (None, "Blue.")]
        assert (await ask(engine, Request("Hi")))[0] == [(None, "Okay, far.\n</thought>\n\nBlue.")]


@pytest.mark.parametrize("tags", [{"": "</a>"}, {"<a>": ""}, {" <a>": "</a>"}])
async def test_an_invalid_tag_is_rejected(tags: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no think tag may be empty or begin with white space"):
        async with open_upstream("http://127.0.0.1:1/v1", model="m", think_tags=tags):
            pass


async def test_what_is_skipped_is_counted_and_logged_by_name(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    odd = chunk(content="Blue", secret="sk-1", **{"x\ny": ["sk-2"]}) + event('{"sk":"sk-3"}')
    server.answers = [stream(odd, odd, chunk("stop")), stream(odd), GOOD]
    with caplog.at_level(logging.INFO):
        async with open_upstream(server.url, model="m") as engine:
            assert isinstance(engine, CountsSkippedFields)
            await ask(engine)
            assert engine.skipped_fields == 6
            with pytest.raises(EngineError):
                await ask(engine)
            assert engine.skipped_fields == 9
            caplog.clear()
            await ask(engine)
            assert "skipped" not in caplog.text
            assert engine.skipped_fields == 9


async def test_fields_that_are_not_interpreted_are_written_once_per_stream(server: ScriptedServer) -> None:
    first = event('{"choices": [{"delta": {"content": "Bl"}}], "service_tier": "flex"}')
    last = event('{"choices": [{"delta": {"content": "ue"}, "stop_reason": 7}], "service_tier": "flex"}')
    server.answers = [stream(first, last, chunk("stop")), stream(first, chunk("stop"))]
    async with open_upstream(server.url, model="m") as engine:
        for expected in (
            [ServerFields("chunk", {"service_tier": "flex"}), Text("Bl"), ServerFields("choice", {"stop_reason": 7})],
            [ServerFields("chunk", {"service_tier": "flex"}), Text("Bl")],
        ):
            send, receive = trio.open_memory_channel[Piece](math.inf)
            await engine.generate(ASK, Output(send))
            written = [receive.receive_nowait() for _ in range(receive.statistics().current_buffer_used)]
            assert written[: len(expected)] == expected


@pytest.mark.parametrize(
    ("reason", "stops", "expected"),
    [
        ("stop", ("\n", "END"), "END"),
        ("stop", ("\n",), None),
        ("stop", ("end",), None),
        ("stop", None, None),
        ("length", ("END",), None),
    ],
)
async def test_only_a_stop_string_of_the_request_is_in_the_result(
    server: ScriptedServer, reason: str, stops: tuple[str, ...] | None, expected: str | None
) -> None:
    end = event(json.dumps({"choices": [{"delta": {}, "finish_reason": reason, "stop_reason": "END"}]}))
    server.answers = [stream(chunk(content="Blue"), end, DONE)]
    async with open_upstream(server.url, model="m") as engine:
        _, finish = await ask(engine, Request(PROMPT, sampling=Sampling(stop=stops)))
    assert finish == Finish(reason, stop_string=expected)


async def test_the_metric_of_skipped_values_has_the_engine_as_its_only_label(server: ScriptedServer) -> None:
    server.answers = [stream(chunk(content="Blue", secret="sk-1"), chunk("stop"))]
    async with open_upstream(server.url, model="m") as engine:
        await ask(engine)
        lines = render(Pipeline(engine, Settings())).decode().splitlines()
    assert [line for line in lines if line.startswith("crucible_upstream_skipped")] == [
        'crucible_upstream_skipped_total{engine="upstream"} 1.0'
    ]


async def test_the_log_names_what_was_skipped_once_a_stream(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    odd = chunk(content="Blue", secret="sk-1", **{"x\ny": ["sk-2"]}) + event('{"sk":"sk-3"}')
    server.answers = [stream(odd, odd, chunk("stop"))]
    with caplog.at_level(logging.INFO):
        async with open_upstream(server.url, model="m") as engine:
            await ask(engine)
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert lines == ["skipped 6 values of the upstream server's stream, among them: delta.secret, delta.x\\ny, event"]


# Fields that a server does not know

UNKNOWN_FIELD = {"error": {"message": "Unrecognized request argument supplied: chat_template_kwargs", "param": None}}
EXTRA_FIELD = {
    "object": "error",
    "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "chat_template_kwargs"]}]},
}


def refusing(number: int, body: object) -> bytes:
    return status(number, body=json.dumps(body).encode())


@pytest.mark.parametrize(
    "refusal",
    [
        refusing(400, UNKNOWN_FIELD),
        refusing(422, EXTRA_FIELD),
        refusing(400, {"detail": "Extra inputs are not permitted"}),
        refusing(400, {"error": {"message": "Unknown parameter", "param": ""}}),
    ],
)
async def test_fields_that_the_server_refuses_are_left_out_from_then_on(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture, refusal: bytes
) -> None:
    server.answers = [refusal, GOOD]
    async with open_upstream(server.url, model="m") as engine:
        for _ in range(3):
            assert (await ask(engine, Request("Hi", mode="deep")))[0] == GOOD_PIECES
    bodies = [json.loads(body) for body in server.bodies]
    assert ["chat_template_kwargs" in body for body in bodies] == [True, False, False, False]
    lines = [record.getMessage() for record in caplog.records if "chat_template_kwargs" in record.getMessage()]
    assert len(lines) == 2
    assert all("without chat_template_kwargs" in line for line in lines)


async def test_refused_fields_are_remembered_for_each_model(server: ScriptedServer) -> None:
    server.answers = [status(200, body=b'{"data":[{"id":"a"},{"id":"b"}]}'), refusing(400, UNKNOWN_FIELD), GOOD]
    async with open_upstream(server.url) as engine:
        await ask(engine, Request("Hi", model="a"))
        await ask(engine, Request("Hi", model="b"))
    assert "chat_template_kwargs" in json.loads(server.bodies[-1])


async def test_a_request_that_began_earlier_does_not_undo_what_was_learnt(server: ScriptedServer) -> None:
    has_learnt = trio.Event()

    async def wait(connection: ScriptedConnection) -> None:
        await has_learnt.wait()
        await connection.send(GOOD)

    server.answers = [wait, refusing(400, UNKNOWN_FIELD), GOOD]
    async with open_upstream(server.url, model="m") as engine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, engine)
            while not server.bodies:
                await trio.lowlevel.checkpoint()
            await ask(engine)
            has_learnt.set()
        await ask(engine)
    assert ["chat_template_kwargs" in json.loads(body) for body in server.bodies] == [True, True, False, False]


async def test_a_request_that_fails_without_the_fields_too_is_not_remembered(server: ScriptedServer) -> None:
    too_long = refusing(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    server.answers = [refusing(400, UNKNOWN_FIELD), too_long, GOOD]
    async with open_upstream(server.url, model="m") as engine:
        with pytest.raises(EngineError, match="upstream_rejected"):
            await ask(engine)
        assert len(server.bodies) == 2
        await ask(engine)
    assert "chat_template_kwargs" in json.loads(server.bodies[-1])


async def test_both_added_fields_can_be_refused_one_after_the_other(server: ScriptedServer) -> None:
    server.answers = [
        refusing(400, UNKNOWN_FIELD),
        refusing(400, {"error": {"message": "Unknown parameter: 'stream_options'.", "param": "stream_options"}}),
        GOOD,
    ]
    async with open_upstream(server.url, model="m") as engine:
        await ask(engine)
        await ask(engine)
    last = [set(json.loads(body)) & {"chat_template_kwargs", "stream_options"} for body in server.bodies]
    assert last == [{"chat_template_kwargs", "stream_options"}, {"stream_options"}, set(), set()]


@pytest.mark.parametrize(
    "refusal",
    [
        refusing(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
        refusing(400, {"error": {"message": "Unsupported parameter: 'seed'", "param": "seed"}}),
        refusing(400, {"error": {"message": "bad request"}}),
        refusing(404, UNKNOWN_FIELD),
        status(400, body=b"\xff" * 1000),
        status(400, body=b"[" * 10_000),
    ],
)
async def test_a_request_is_not_sent_again_after_another_error(server: ScriptedServer, refusal: bytes) -> None:
    server.answers = [refusal, GOOD]
    error, _ = await failure_of(server.url)
    assert error.code == "upstream_rejected"
    assert len(server.bodies) == 1


async def test_an_error_that_still_names_a_field_left_out_refuses_no_other_field(server: ScriptedServer) -> None:
    server.answers = [refusing(400, {"error": {"message": "Unknown parameter: 'chat_template_kwargs'."}})]
    await failure_of(server.url)
    assert len(server.bodies) == 2


async def test_fields_of_the_settings_are_never_left_out(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [refusing(400, UNKNOWN_FIELD)]
    thinking = {"standard": {"chat_template_kwargs": {"enable_thinking": False, "x": 1}}}
    async with open_upstream(server.url, model="m", thinking=thinking) as engine:
        with pytest.raises(EngineError, match="upstream_rejected"):
            await ask(engine)
    async with open_upstream(server.url, model="m", extra_body={"chat_template_kwargs": {}}) as engine:
        with pytest.raises(EngineError, match="upstream_rejected"):
            await ask(engine)
    assert len(server.bodies) == 2
    assert caplog.text.count("names fields of the settings: chat_template_kwargs") == 2


# Failures: the code of each, and none hangs


async def test_the_log_says_what_is_wrong_with_a_response(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        server.answers = [HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nsecret"]
        error, _ = await failure_of(server.url)
        assert error.message == "The upstream server's response is not valid HTTP."
        assert (error.code, error.retryable) == ("upstream_invalid_response", False)
        assert len(server.bodies) == 1  # a status came, so a repetition would start another generation
        assert "no response from the upstream server: Duplicate Content-Length" in caplog.text
        server.answers = [BEGUN + b"zz secret\r\n"]
        await failure_of(server.url)
    assert "the upstream server's response was cut: Invalid character in chunk size" in caplog.text
    assert "secret" not in caplog.text


async def test_a_transfer_encoding_sent_twice_does_not_matter(server: ScriptedServer) -> None:
    server.answers = [GOOD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n", 1)]
    async with open_upstream(server.url, model="m") as engine:
        assert (await ask(engine))[0] == GOOD_PIECES


async def test_a_refused_connection_is_unreachable(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening, so that no other process gets the port
        error, _ = await failure_of(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
    assert (error.code, error.retryable) == ("upstream_unreachable", True)
    assert "refused" in caplog.text


async def test_a_connection_that_takes_too_long_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def never(host: str, port: int) -> trio.SocketStream:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(trio, "open_tcp_stream", never)
    error, _ = await failure_of("http://127.0.0.1:1/v1")
    assert (error.code, error.retryable) == ("upstream_timeout", True)
    assert trio.current_time() == pytest.approx(3 * CONNECT_TIMEOUT, abs=1)


async def reset_immediately(connection: ScriptedConnection) -> None:
    connection.reset()


async def close_immediately(connection: ScriptedConnection) -> None:
    await connection.stream.aclose()


@pytest.mark.parametrize(
    "answer", [reset_immediately, close_immediately, b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 2"], ids=repr
)
async def test_no_response_is_an_early_end_after_three_attempts(server: ScriptedServer, answer: ScriptedAnswer) -> None:
    server.answers = [answer]
    error, pieces = await failure_of(server.url)
    assert (error.code, error.retryable, pieces) == ("upstream_ended_early", True, [])
    assert len(server.bodies) == 3


HTML = b"<!doctype html>\n<html>\n\n<body>502 Bad Gateway</body>\n\n</html>\n"


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "attempts"),
    [
        (status(400, body=b'{"error":{"message":"' + PROMPT.encode() + b'"}}'), "upstream_rejected", False, 1),
        (status(401, body=b"no"), "upstream_unauthorized", False, 1),
        (status(403, body=b"no"), "upstream_unauthorized", False, 1),
        (status(404, body=HTML), "upstream_rejected", False, 1),
        (status(307, "Location: /elsewhere"), "upstream_rejected", False, 1),
        (status(429), "upstream_refused", True, 3),
        (status(503, body=HTML), "upstream_refused", True, 3),
        (status(503, "Retry-After: 3600"), "upstream_refused", True, 1),
        (status(503, "Retry-After: soon"), "upstream_refused", True, 3),
        (status(500, body=HTML), "upstream_error", True, 1),
        (status(502), "upstream_error", True, 1),
        (status(500, body=b"\xff" * 100_000), "upstream_error", True, 1),
        (b"HTTP/1.1 500 Whatever\r\nContent-Length: 100\r\n\r\ncut", "upstream_error", True, 1),
        (status(200), "upstream_ended_early", True, 1),
        (status(204), "upstream_ended_early", True, 1),
        (OPEN_ENDED, "upstream_ended_early", True, 1),
        (stream(), "upstream_ended_early", True, 1),
        (CHUNKED, "upstream_ended_early", True, 1),
        (stream(ROLE), "upstream_ended_early", True, 1),
        (stream(DONE), "upstream_ended_early", True, 1),
        (status(200, body=HTML), "upstream_invalid_response", False, 1),
        (status(200, body=b'{"choices":[{"message":{"content":"Blue"}}]}'), "upstream_invalid_response", False, 1),
        (status(200, "Content-Encoding: gzip", body=b"no gzip"), "upstream_invalid_response", False, 1),
        (stream(event("{nonsense")), "upstream_invalid_response", False, 1),
        (stream(event('{"error":{"message":"boom"}}')), "upstream_error", True, 1),
        (stream(event('{"error":{"code":400,"message":"boom"}}')), "upstream_rejected", False, 1),
        (stream(b"event: error\ndata: boom\n\n"), "upstream_error", True, 1),
    ],
)
async def test_a_failure_before_the_first_piece(
    server: ScriptedServer, answer: bytes, code: str, retryable: bool, attempts: int
) -> None:
    server.answers = [answer]
    if b"cut" in answer or answer == CHUNKED:

        async def send_and_close(connection: ScriptedConnection) -> None:
            await connection.send(answer)
            await connection.stream.aclose()

        server.answers = [send_and_close]
    error, pieces = await failure_of(server.url)
    assert (error.code, error.retryable, pieces) == (code, retryable, [])
    assert len(server.bodies) == attempts
    assert PROMPT not in str(error)


BEGUN = CHUNKED + part(ROLE + chunk(content="Bl") + chunk(content="ue"))


async def begin_and_reset(connection: ScriptedConnection) -> None:
    await connection.send(BEGUN)
    await trio.lowlevel.checkpoint()
    await connection.stream.send_eof()
    await connection.wait_for_close()


@pytest.mark.parametrize(
    ("tail", "code", "retryable"),
    [
        (END, "upstream_ended_early", True),
        (None, "upstream_ended_early", True),
        (b"zz\r\nno chunk", "upstream_ended_early", True),
        (part(DONE) + END, "upstream_ended_early", True),
        (part(event("{nonsense")), "upstream_invalid_response", False),
        (part(event('{"error":"boom"}')), "upstream_error", True),
        (part(chunk("abort")), "upstream_error", True),
    ],
)
async def test_a_failure_after_the_first_piece_keeps_the_text_and_is_not_retried(
    server: ScriptedServer, tail: bytes | None, code: str, retryable: bool
) -> None:
    server.answers = [begin_and_reset if tail is None else BEGUN + tail]
    error, pieces = await failure_of(server.url)
    assert (error.code, error.retryable) == (code, retryable)
    assert pieces == [(None, "Bl"), (None, "ue")]
    assert len(server.bodies) == 1


async def test_a_reset_in_the_middle_is_an_early_end(server: ScriptedServer) -> None:
    got_all = trio.Event()

    async def begin_and_rst(connection: ScriptedConnection) -> None:
        await connection.send(BEGUN)
        await got_all.wait()
        connection.reset()

    server.answers = [begin_and_rst]
    send, receive = trio.open_memory_channel[Piece](math.inf)
    async with open_upstream(server.url, model="m") as engine:
        with pytest.RaisesGroup(pytest.RaisesExc(EngineError, match="upstream_ended_early")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.generate, ASK, Output(send))
                assert [(await receive.receive()).text for _ in range(2)] == ["Bl", "ue"]
                got_all.set()


async def test_text_held_back_comes_out_before_a_failure(server: ScriptedServer) -> None:
    server.answers = [stream(chunk(content="<think>2")), stream(chunk(content="<thi"))]
    assert (await failure_of(server.url))[1] == [(0, "2")]
    assert (await failure_of(server.url))[1] == [(None, "<thi")]


async def test_an_event_without_an_end_is_an_invalid_response(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_response, "MAX_CHUNK_LENGTH", 1000)

    async def endless(connection: ScriptedConnection) -> None:
        await connection.send(OPEN_ENDED + b"data: ")
        while True:
            await connection.send(b"x" * 1000)

    server.answers = [endless]
    error, _ = await failure_of(server.url)
    assert (error.code, error.retryable) == ("upstream_invalid_response", False)
    await server.all_closed()


async def test_an_error_response_without_an_end_is_read(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_response, "_ERROR_BODY_TIMEOUT", 0.05)

    async def half(connection: ScriptedConnection) -> None:
        await connection.send(b"HTTP/1.1 500 Whatever\r\nContent-Length: 100\r\n\r\n")
        await connection.wait_for_close()

    server.answers = [half]
    error, _ = await failure_of(server.url)
    assert error.code == "upstream_error"
    await server.all_closed()


# Retries


@pytest.mark.parametrize(
    "first", [status(503), status(429, "Retry-After: 0"), reset_immediately, close_immediately], ids=repr
)
async def test_a_second_attempt_can_succeed(server: ScriptedServer, first: ScriptedAnswer) -> None:
    server.answers = [first, GOOD]
    async with open_upstream(server.url, model="m") as engine:
        pieces, _ = await ask(engine)
    assert pieces == GOOD_PIECES
    assert server.bodies[0] == server.bodies[1]


async def test_retry_after_is_honoured_and_the_delay_counts_as_queued(server: ScriptedServer) -> None:
    server.answers = [status(429, "Retry-After: 1"), GOOD]
    send, receive = trio.open_memory_channel[Piece](math.inf)
    output = Output(send)
    async with open_upstream(server.url, model="m") as engine:
        begin = trio.current_time()
        await engine.generate(ASK, output)
    # Without Retry-After the delay would be 10 ms here. Sleeping never takes less than the requested time.
    assert trio.current_time() - begin >= 1
    assert output.queued_seconds >= 1
    assert read_buffered(receive) == GOOD_PIECES


def test_retry_after_can_be_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert retries.parse_retry_after(format_datetime(soon, usegmt=True)) == pytest.approx(100, abs=30)
    assert retries.parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    week = 7 * 24 * 3600
    assert retries.parse_retry_after("9" * 400) == week
    assert retries.parse_retry_after("Wed, 21 Oct 9999 07:28:00 GMT") == week
    beyond = "Wed, 21 Oct 99999999999 07:28:00 GMT"
    for invalid in ("", "soon", "-1", "1.5", "Wed, 21 Oct 2015 07:28:00", "²", beyond):
        assert retries.parse_retry_after(invalid) is None


async def test_waiting_for_an_unreachable_server_does_not_count_as_queued(server: ScriptedServer) -> None:
    server.answers = [close_immediately, GOOD]
    output = Output(trio.open_memory_channel[Piece](math.inf)[0])
    async with open_upstream(server.url, model="m") as engine:
        await engine.generate(ASK, output)
    assert output.queued_seconds == 0


# Cancellation, backpressure, connections


@pytest.mark.parametrize(
    "begun", [b"", CHUNKED, BEGUN, BEGUN + part(b"data: {")], ids=["no head", "head", "text", "half an event"]
)
async def test_cancelling_closes_the_connection(server: ScriptedServer, begun: bytes) -> None:
    async def begin_and_stall(connection: ScriptedConnection) -> None:
        if begun:
            await connection.send(begun)
        await connection.wait_for_close()

    server.answers = [begin_and_stall]
    async with open_upstream(server.url, model="m") as engine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, engine)
            await wait_all_tasks_blocked(0.05)
            assert len(server.bodies) == 1
            nursery.cancel_scope.cancel()
        await server.all_closed()


async def test_cancelling_while_the_buffer_is_full_closes_the_connection(server: ScriptedServer) -> None:
    async def begin_and_stall(connection: ScriptedConnection) -> None:
        await connection.send(BEGUN)
        await connection.wait_for_close()

    server.answers = [begin_and_stall]
    send, receive = trio.open_memory_channel[Piece](0)
    async with open_upstream(server.url, model="m") as engine:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.generate, ASK, Output(send))
            while not receive.statistics().tasks_waiting_send:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await server.all_closed()


async def test_cancelling_between_two_attempts_ends_them(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_DELAYS", (1000, 1000))
    server.answers = [status(503)]
    async with open_upstream(server.url, model="m") as engine, trio.open_nursery() as nursery:
        nursery.start_soon(ask, engine)
        await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    assert len(server.bodies) == 1


async def test_nothing_is_read_while_the_buffer_is_full(server: ScriptedServer) -> None:
    # More than the kernel buffers on a loopback connection: 64 MiB in events of 16 KiB.
    total = 64 * 1024 * 1024
    piece = chunk(content="x" * 16_000)

    async def flood(connection: ScriptedConnection) -> None:
        await connection.send(CHUNKED)
        while connection.sent < total:
            await connection.send(part(piece))
        await connection.send(part(chunk("stop")) + END)

    server.answers = [flood]
    send, receive = trio.open_memory_channel[Piece](2)
    async with open_upstream(server.url, model="m") as engine, trio.open_nursery() as nursery:
        nursery.start_soon(engine.generate, ASK, Output(send))
        await wait_all_tasks_blocked(0.2)
        stalled_at = server.connections[0].sent
        assert receive.statistics().current_buffer_used == 2
        assert stalled_at < total
        for _ in range(1000):  # 16 MB: reading resumes when the buffer has room
            await receive.receive()
        assert server.connections[0].sent > stalled_at
        nursery.cancel_scope.cancel()


async def test_connections_are_reused_and_their_number_does_not_grow(server: ScriptedServer) -> None:
    bad = stream(ROLE, event("{nonsense"))
    server.answers = [GOOD]
    async with open_upstream(server.url, model="m") as engine:
        for _ in range(10):
            await ask(engine)
        assert len(server.connections) == 1
        for answer in (bad, status(500, body=HTML), stream(), BEGUN + END) * 5:
            server.answers = [answer]
            with pytest.raises(EngineError):
                await ask(engine)
            server.answers = [GOOD]
            await ask(engine)
        await wait_all_tasks_blocked(0.05)
        assert server.open <= 1
    await wait_all_tasks_blocked(0.05)
    assert server.open == 0


async def test_many_streams_do_not_wait_for_a_connection(server: ScriptedServer) -> None:
    count = 150
    all_connected = trio.Event()

    async def wait_for_all(connection: ScriptedConnection) -> None:
        if len(server.bodies) == count:
            all_connected.set()
        await all_connected.wait()
        await connection.send(GOOD)

    server.answers = [wait_for_all]
    async with open_upstream(server.url, model="m") as engine:
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(ask, engine)
        await wait_all_tasks_blocked(0.05)
        assert server.open <= MAX_IDLE_CONNECTIONS


# Secrets


async def test_the_key_and_the_prompt_are_in_no_log_and_no_error(
    server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    echo = json.dumps({"error": {"message": f"key {KEY} prompt {PROMPT}", "code": KEY, "type": PROMPT}}).encode()
    answers: list[ScriptedAnswer] = [GOOD, status(401, body=echo), stream(event(echo.decode())), reset_immediately]
    with caplog.at_level(logging.DEBUG):
        async with open_upstream(server.url, model="m", key=KEY) as engine:
            for answer in answers:
                server.answers = [answer]
                if answer is GOOD:
                    await ask(engine)
                    continue
                with pytest.raises(EngineError) as caught:
                    await ask(engine)
                assert KEY not in str(caught.getrepr(style="long", showlocals=False))
                assert PROMPT not in str(caught.value)
    assert caplog.text
    assert KEY not in caplog.text
    assert PROMPT not in caplog.text


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
async def test_a_key_that_a_header_cannot_carry_is_rejected_and_not_quoted(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_upstream("http://127.0.0.1:1/v1", model="m", key=key):
            pass
    assert not key or key not in str(caught.value)


# Opening


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8080", "ftp://127.0.0.1/v1", "http://", "http://user:secret@host/v1", "http://a:b"],
)
async def test_an_invalid_base_url_is_rejected(url: str) -> None:
    with pytest.raises(ConfigError, match="must look like") as caught:
        async with open_upstream(url, model="m"):
            pass
    assert "secret" not in str(caught.value)


async def test_without_a_model_the_server_is_asked_for_its_models(server: ScriptedServer) -> None:
    server.answers = [status(200, body=b'{"object":"list","data":[{"id":"big","x":1},{"id":"small"}]}'), GOOD]
    async with open_upstream(server.url, key=KEY) as engine:
        assert engine.info.models == ("big", "small")
        await ask(engine)
    assert server.lines[0] == "GET /v1/models HTTP/1.1"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert json.loads(server.bodies[1])["model"] == "big"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(404), "status 404"),
        (status(200, body=b'{"data":[]}'), "lists no models"),
        (status(200, body=b"<html>"), "invalid list of models"),
        (status(200, body=b'{"data":[{"name":"x"}]}'), "invalid list of models"),
        (status(200, body=b'{"data":[{"id":""},{"id":null},null]}'), "invalid list of models"),
        (reset_immediately, "start the server"),
    ],
)
async def test_a_server_without_models_is_rejected_in_one_sentence(
    server: ScriptedServer, answer: ScriptedAnswer, message: str
) -> None:
    server.answers = [answer]
    with pytest.raises(ConfigError, match=message) as caught:
        async with open_upstream(server.url):
            pass
    assert "\n" not in str(caught.value)
    assert "--model" in str(caught.value)


async def test_an_entry_without_a_usable_name_does_not_hide_the_other_models(server: ScriptedServer) -> None:
    names: list[object] = ["a", "", None, 5, "x" * 513, "a", "b\n", "c"]
    server.answers = [status(200, body=json.dumps({"data": [*({"id": name} for name in names), None, "d"]}).encode())]
    async with open_upstream(server.url) as engine:
        assert engine.info.models == ("a", "b\n", "c")


async def test_a_huge_list_of_models_is_cut(server: ScriptedServer) -> None:
    body = json.dumps({"data": [{"id": str(number)} for number in range(discovery.MAX_MODELS + 10)]}).encode()
    server.answers = [status(200, body=body)]
    async with open_upstream(server.url) as engine:
        assert engine.info.models == tuple(str(number) for number in range(discovery.MAX_MODELS))


async def test_with_a_model_the_server_need_not_be_up() -> None:
    async with open_upstream("http://127.0.0.1:1/v1", model="m") as engine:
        assert engine.info.models == ("m",)


async def test_the_settings_open_the_upstream_engine(server: ScriptedServer) -> None:
    server.answers = [GOOD]
    settings = EngineSettings(
        engine="upstream",
        upstream_base_url=server.url,
        upstream_key=KEY,
        model="m",
        upstream_think_tags={"<a>": "</a>"},
        upstream_starts_in_trace=("standard",),
    )
    async with open_engine(settings) as engine:
        assert engine.info.name == "upstream"
        assert (await ask(engine))[0] == [(0, "Blue"), (0, ".")]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
