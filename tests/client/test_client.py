"""The client in virtual time, against scripted connections."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeAlias

import msgspec
import pytest
import trio
import trio.testing

from crucible_trio import sse
from crucible_trio.client import open_client
from crucible_trio.client.attempts import MAX_ATTEMPTS, MAX_DELAY_SECONDS, MAX_FIRST_ATTEMPTS, MAX_JITTER
from crucible_trio.errors import (
    InvalidLastEventIdError,
    ServerRefusedError,
    StreamExpiredError,
    StreamLostError,
    StreamNotFoundError,
)
from crucible_trio.records import (
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    ServerBusy,
    ServerDraining,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    Timings,
    Usage,
    encode_control,
    encode_frame,
)
from crucible_trio.request import Request

ID = "str_7Q2M4kWcT0aXn3v9LzB1pg"
OTHER_ID = "str_xxxxxxxxxxxxxxxxxxxxxx"
REQUEST = Request("Why is the sky blue?", mode="deep")
RECORDS = [
    StreamCreated(1, ID, "deep", "scripted", 1764000000.0),
    ReasoningDelta(2, 0, "Light "),
    ReasoningDelta(3, 0, "scatters."),
    ReasoningDone(4, 1),
    OutputDelta(5, "Because "),
    OutputDelta(6, "of Rayleigh."),
    StreamCompleted(7, "stop", Usage(3, 9, 4), Timings(212.0, 3411.0)),
]
RETRY = b"retry: 1000\n"

# One step of a body: bytes to send, seconds to wait, or an error to raise.
Step: TypeAlias = bytes | float | Exception
FOREVER = math.inf
RESET = trio.BrokenResourceError()


class _CutError(Exception):
    """FIN inside the body."""


CUT = _CutError()


@dataclass
class ScriptedResponse:
    steps: Sequence[Step] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False
    steps_taken: int = 0


@dataclass
class ScriptedRequest:
    method: str
    target: str
    headers: dict[str, str]
    content: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class ScriptedConnection(trio.abc.Stream):
    """Takes one request, and sends the script's next answer."""

    def __init__(self, script: ScriptedConnect) -> None:
        self.script = script
        self.answer = ScriptedResponse()
        self.output: Iterator[Step] = iter(())

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        head, _, content = bytes(data).partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        answer = self.script.next_answer(ScriptedRequest(method, target, headers, content))
        if isinstance(answer, Exception):
            raise answer
        self.answer = answer
        self.output = make_output(answer)

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        for step in self.output:
            if isinstance(step, bytes):
                return step
            if step is CUT:
                return b""
            if isinstance(step, Exception):
                raise step
            await trio.sleep(step)
        raise trio.BrokenResourceError

    async def aclose(self) -> None:
        self.answer.closed = True
        await trio.lowlevel.checkpoint()


def make_output(answer: ScriptedResponse) -> Iterator[Step]:
    headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    framing = "" if answer.status == 204 else "Transfer-Encoding: chunked\r\n"
    line = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
    yield f"{line}Connection: close\r\n{framing}{headers}\r\n".encode()
    for step in answer.steps:
        answer.steps_taken += 1
        yield b"%x\r\n%b\r\n" % (len(step), step) if isinstance(step, bytes) else step
    yield b"0\r\n\r\n"


class ScriptedConnect:
    """Opens connections that send the responses in order, then repeat the last one. An OSError refuses a connection."""

    def __init__(self, *answers: ScriptedResponse | Exception) -> None:
        self.answers = answers
        self.requests: list[ScriptedRequest] = []
        self.times: list[float] = []

    @property
    def delays(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def lines(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    async def __call__(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        answer = self._next()
        if isinstance(answer, OSError):
            self.times.append(trio.current_time())
            raise answer
        return ScriptedConnection(self)

    def next_answer(self, request: ScriptedRequest) -> ScriptedResponse | Exception:
        answer = self._next()
        self.requests.append(request)
        self.times.append(trio.current_time())
        return answer

    def _next(self) -> ScriptedResponse | Exception:
        return self.answers[min(len(self.times), len(self.answers) - 1)]


def stream_of(*steps, stream_id=ID, **headers) -> ScriptedResponse:
    headers = {"Crucible-Stream": stream_id, "Content-Type": "text/event-stream"} | headers
    return ScriptedResponse([RETRY, *steps], headers=headers)


def frames(first, last=None):
    return b"".join(encode_frame(ID, record) for record in RECORDS[first - 1 : last or first])


def raw_frame(seq, data, stream_id=ID):
    return sse.encode_line(data, f"{stream_id}.{seq}")


def refusal(status, code="some_code", **headers) -> ScriptedResponse:
    body = msgspec.json.encode({"error": {"code": code, "message": "A sentence."}})
    return ScriptedResponse([body], status, {"Content-Type": "application/json"} | headers)


def open_scripted(script: ScriptedConnect, **options):
    return open_client("http://server.test", connect=script, **options)


async def read_all(stream):
    return [record async for record in stream]


async def start_and_read(script: ScriptedConnect, request=REQUEST, **options):
    with trio.fail_after(100_000):
        async with open_scripted(script, **options) as client, client.start(request) as stream:
            return stream, await read_all(stream)


def is_stretched(delay: float, seconds: float) -> bool:
    return seconds <= delay <= seconds * MAX_JITTER


# Without cuts


async def test_records_come_in_order_and_the_terminal_one_is_the_last(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 3), frames(4, 7)))
    stream, records = await start_and_read(script, key="secret")
    assert records == RECORDS
    assert (stream.id, stream.last_seq, stream.reconnects, stream.terminal) == (ID, 7, 0, RECORDS[-1])
    [request] = script.requests
    assert (request.target, request.headers["host"]) == ("/v1/streams", "server.test")
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.headers["accept-encoding"] == "identity"
    assert "last-event-id" not in request.headers
    assert len(request.headers["idempotency-key"]) >= 22
    assert msgspec.json.decode(request.content, type=Request) == REQUEST


async def test_the_end_of_the_body_is_not_waited_for_after_the_terminal_record(autojump_clock):
    answer = stream_of(frames(1, 7), FOREVER)
    start = trio.current_time()
    _, records = await start_and_read(ScriptedConnect(answer))
    assert records == RECORDS
    assert trio.current_time() == start
    assert answer.closed


async def test_the_id_is_known_after_entering(autojump_clock):
    async with open_scripted(ScriptedConnect(stream_of(FOREVER))) as client:
        stream = client.start(REQUEST)
        with pytest.raises(ValueError, match="before it is entered"):
            _ = stream.id
        async with stream:
            assert stream.id == ID


async def test_location_names_the_stream_when_a_proxy_has_removed_our_header(autojump_clock):
    headers = {
        "Location": f"https://elsewhere.test/v1/streams/{ID}",
        "Content-Type": "text/event-stream; charset=utf-8",
    }
    script = ScriptedConnect(ScriptedResponse([frames(1, 2)], headers=headers), stream_of(frames(3, 7)))
    stream, records = await start_and_read(script)
    assert (stream.id, records) == (ID, RECORDS)
    assert [request.headers["host"] for request in script.requests] == ["server.test", "server.test"]


async def test_reading_sends_the_offset_and_the_trace_option(autojump_clock):
    script = ScriptedConnect(stream_of(frames(5, 7)))
    async with open_scripted(script) as client, client.read(ID, after=4) as stream:
        assert await read_all(stream) == RECORDS[4:]
    [request] = script.requests
    assert request.target == f"/v1/streams/{ID}/events?trace=segments"
    assert request.headers["last-event-id"] == f"{ID}.4"
    assert "idempotency-key" not in request.headers


async def test_a_base_url_may_have_a_path(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2)), stream_of(frames(3, 7)))
    async with open_client("http://server.test/crucible/", connect=script) as client, client.start(REQUEST) as stream:
        await read_all(stream)
    assert script.lines == ["POST /crucible/v1/streams", f"GET /crucible/v1/streams/{ID}/events"]


async def test_every_step_is_a_checkpoint(autojump_clock):
    async with open_scripted(ScriptedConnect(stream_of(frames(1, 7)))) as client, client.start(REQUEST) as stream:
        for _ in RECORDS:
            with trio.testing.assert_checkpoints():
                await anext(stream)
        for _ in range(2):
            with trio.testing.assert_checkpoints(), pytest.raises(StopAsyncIteration):
                await anext(stream)


# Cuts


@pytest.mark.parametrize(
    "cut",
    [[RESET], [CUT], []],
    ids=["reset", "unfinished", "clean end without a terminal record"],
)
async def test_a_cut_stream_resumes_after_its_last_record(autojump_clock, cut):
    script = ScriptedConnect(stream_of(frames(1, 3), frames(4)[:-1], *cut), stream_of(frames(4, 7)))
    seen = []
    with trio.fail_after(60):
        async with open_scripted(script) as client, client.start(REQUEST, on_reconnect=seen.append) as stream:
            assert await read_all(stream) == RECORDS
    assert script.lines == ["POST /v1/streams", f"GET /v1/streams/{ID}/events"]
    assert script.requests[1].headers["last-event-id"] == f"{ID}.3"
    assert (stream.reconnects, seen) == (1, [3])


async def test_a_cut_before_record_1_is_resumed_with_the_id_from_the_headers(autojump_clock):
    script = ScriptedConnect(stream_of(RESET), stream_of(frames(1, 7)))
    stream, records = await start_and_read(script)
    assert records == RECORDS
    assert script.requests[1].headers["last-event-id"] == f"{ID}.0"
    assert stream.reconnects == 1


async def test_a_reconnect_is_reported_with_the_first_bytes_not_with_the_first_record(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2), RESET), stream_of(5.0, b":\n", 5.0, frames(3, 7)))
    seen = []
    async with open_scripted(script) as client:
        note = lambda last_seq: seen.append((last_seq, trio.current_time()))  # noqa: E731
        async with client.start(REQUEST, on_reconnect=note) as stream:
            await read_all(stream)
    assert seen == [(2, script.times[1])]


async def test_a_start_without_an_answer_is_repeated_with_the_same_key(autojump_clock):
    script = ScriptedConnect(OSError("no route"), RESET, stream_of(frames(1, 7)))
    stream, records = await start_and_read(script)
    assert records == RECORDS
    assert script.lines == ["POST /v1/streams"] * 2  # and none on the connection that was refused
    assert len({(request.headers["idempotency-key"], request.content) for request in script.requests}) == 1
    assert stream.reconnects == 0


async def test_two_starts_have_two_keys(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 7)))
    await start_and_read(script)
    async with open_scripted(script) as client:
        for key in (None, "mine"):
            async with client.start(REQUEST, idempotency_key=key):
                pass
    keys = [request.headers["idempotency-key"] for request in script.requests]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


async def test_the_first_delay_is_the_servers_retry_and_before_that_our_own(autojump_clock):
    unnamed = ScriptedResponse([frames(1, 2), RESET], headers=stream_of().headers)
    script = ScriptedConnect(unnamed, stream_of(frames(3), b"retry: 7000\n", RESET), stream_of(frames(4, 7)))
    await start_and_read(script, retry_seconds=3)
    assert is_stretched(script.delays[0], 3)
    assert is_stretched(script.delays[1], 7)


async def test_the_servers_retry_is_bounded(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2), b"retry: 99999999\n", RESET), stream_of(frames(3, 7)))
    await start_and_read(script)
    assert is_stretched(script.delays[0], MAX_DELAY_SECONDS)


async def test_delays_double_up_to_a_cap_and_start_again_after_progress(autojump_clock):
    script = ScriptedConnect(
        stream_of(frames(1, 2), RESET), *[RESET] * 7, stream_of(frames(3), RESET), stream_of(frames(4, 7))
    )
    _, records = await start_and_read(script)
    assert records == RECORDS
    assert len(script.delays) == 9
    for delay, seconds in zip(script.delays, [1, 2, 4, 8, 16, 30, 30, 30, 1], strict=True):
        assert is_stretched(delay, seconds)


async def test_delays_differ_so_that_readers_do_not_reconnect_together(autojump_clock):
    delays = set()
    for _ in range(10):
        script = ScriptedConnect(stream_of(frames(1, 2), RESET), stream_of(frames(3, 7)))
        await start_and_read(script)
        delays |= set(script.delays)
    assert len(delays) > 5


async def test_retry_0_does_not_use_up_all_attempts_immediately(autojump_clock):
    script = ScriptedConnect(ScriptedResponse([b"retry: 0\n", frames(1, 2), RESET], headers=stream_of().headers), RESET)
    with pytest.raises(StreamLostError):
        await start_and_read(script)
    assert script.delays[0] == 0
    assert sum(script.delays) > 50


async def test_a_stream_is_lost_after_too_many_failures_without_progress(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 3), RESET), RESET)
    async with open_scripted(script) as client, client.start(REQUEST) as stream:
        with pytest.raises(StreamLostError, match="ended without a response") as caught:
            await read_all(stream)
        assert caught.value.last_seq == stream.last_seq == 3
        assert stream.terminal is None
    assert len(script.requests) == 1 + MAX_ATTEMPTS - 1
    assert sum(script.delays) > 120  # a server keeps a stream without readers for 120 s


async def test_a_server_that_never_answered_is_given_up_earlier(autojump_clock):
    script = ScriptedConnect(OSError("refused"))
    with pytest.raises(StreamLostError, match="refused") as caught:
        await start_and_read(script)
    assert caught.value.last_seq == 0
    assert len(script.times) == MAX_FIRST_ATTEMPTS
    assert sum(script.delays) < 15


async def test_failures_before_the_first_answer_do_not_count_after_it(autojump_clock):
    script = ScriptedConnect(*[RESET] * 3, stream_of(RESET), *[RESET] * 8, stream_of(frames(1, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS
    for delay, seconds in zip(script.delays[:6], [1, 2, 4, 1, 2, 4], strict=True):
        assert is_stretched(delay, seconds)


async def test_connections_without_records_use_up_the_attempts(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 3)), stream_of())  # each response sends `retry` and ends
    with pytest.raises(StreamLostError, match="ended before the stream"):
        await start_and_read(script)
    assert len(script.requests) == MAX_ATTEMPTS


async def test_connections_cut_while_the_model_thinks_do_not_count_as_failures(autojump_clock):
    thinking = stream_of(10.0, b":\n", 10.0, b":\n", 10.0, RESET)
    script = ScriptedConnect(stream_of(frames(1), RESET), *[thinking] * 3 * MAX_ATTEMPTS, stream_of(frames(2, 7)))
    stream, records = await start_and_read(script)
    assert records == RECORDS
    assert stream.reconnects == 3 * MAX_ATTEMPTS + 1
    assert max(script.delays) < 40  # the delays do not grow: 30 s of thinking, then the first delay


async def test_heartbeats_keep_a_connection_and_silence_replaces_it(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1), *[29.0, b":\n"] * 20, frames(2, 3), FOREVER), stream_of(frames(4, 7)))
    stream, records = await start_and_read(script)
    assert records == RECORDS
    assert stream.reconnects == 1
    assert is_stretched(script.delays[0] - 20 * 29 - 30, 1)


async def test_half_an_event_of_one_connection_is_not_joined_to_the_next(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2), frames(3)[:-1], RESET), stream_of(b"\n", frames(3, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS


# Valid and invalid records


async def test_records_seen_before_are_dropped(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 4), frames(2, 5), RESET), stream_of(frames(1, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS


async def test_a_terminal_record_ends_reading_even_if_it_was_seen_before(autojump_clock):
    async with (
        open_scripted(ScriptedConnect(stream_of(frames(1, 7), FOREVER))) as client,
        client.read(ID, after=7) as stream,
    ):
        assert await read_all(stream) == []
        assert stream.terminal == RECORDS[-1]


async def test_a_gap_is_requested_again(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2), frames(4, 7)), stream_of(frames(3, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS
    assert script.requests[1].headers["last-event-id"] == f"{ID}.2"
    assert script.answers[0].closed


async def test_a_gap_before_the_terminal_record_does_not_end_the_stream(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 5), frames(7)), stream_of(frames(6, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS


async def test_the_same_gap_twice_loses_the_stream(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2), frames(4, 7)), stream_of(frames(4, 7)))
    with pytest.raises(StreamLostError, match="record 4 follows record 2") as caught:
        await start_and_read(script)
    assert caught.value.last_seq == 2
    assert len(script.requests) == 2


async def test_gaps_at_two_places_do_not_lose_the_stream(autojump_clock):
    script = ScriptedConnect(
        stream_of(frames(1, 2), frames(4)), stream_of(frames(3), frames(5)), stream_of(frames(4, 7))
    )
    _, records = await start_and_read(script)
    assert records == RECORDS


@pytest.mark.parametrize("trace", ["final", "none"])
async def test_gaps_are_expected_when_the_trace_is_left_out(autojump_clock, trace):
    script = ScriptedConnect(stream_of(frames(1), RESET), stream_of(frames(4, 7)))
    _, records = await start_and_read(script, Request("Why?", trace=trace))
    assert records == [RECORDS[0], *RECORDS[3:]]
    assert script.requests[1].target.endswith(f"?trace={trace}")
    script = ScriptedConnect(stream_of(frames(4, 7)))
    async with open_scripted(script) as client, client.read(ID, trace=trace) as stream:
        assert await read_all(stream) == RECORDS[3:]


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"image.started","seq":3,"index":0,"id":"x","name":"y"}',
        b'{"type":"image.delta","seq":"3","delta":7}',
        b'{"type":"image.delta","delta":{"type":"output.delta"}}',
    ],
    ids=["other fields", "another type of seq", "no seq"],
)
async def test_unknown_records_are_skipped_and_advance_the_offset(autojump_clock, data):
    unknown = raw_frame(3, data)
    script = ScriptedConnect(stream_of(frames(1, 2), unknown, RESET), stream_of(frames(4, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS[:2] + RECORDS[3:]
    assert script.requests[1].headers["last-event-id"] == f"{ID}.3"


@pytest.mark.parametrize("trace", ["segments", "final"])
async def test_unknown_records_do_not_change_the_text_or_hide_a_gap(autojump_clock, trace):
    unknown = [raw_frame(seq, b'{"type":"image.delta","seq":%d,"delta":"noise"}' % seq) for seq in range(6, 16)]
    answer = [OutputDelta(5, "Because "), OutputDelta(16, "of Rayleigh.")]
    first, last = (encode_frame(ID, record) for record in answer)
    end = encode_frame(ID, StreamCompleted(17, "stop", Usage(), Timings(None, 5.0)))
    script = ScriptedConnect(
        stream_of(frames(1, 4), first, *unknown[:3], RESET),
        stream_of(*unknown[2:5], unknown[6], RESET),  # a repeated record, then a gap
        stream_of(*unknown[5:], last, end),
    )
    _, records = await start_and_read(script, Request("Why?", trace=trace))
    assert [record for record in records if isinstance(record, OutputDelta)] == answer
    offsets = [request.headers["last-event-id"] for request in script.requests[1:]]
    assert offsets == [f"{ID}.8", f"{ID}.10" if trace == "segments" else f"{ID}.12"]


async def test_unknown_events_without_an_id_are_ignored(autojump_clock):
    moved = b'data: {"type":"server.moved","to":"x"}\n\ndata: {"type":"server.moved","seq":9}\n\n'
    draining = b'data: {"type":"server.draining"}\n\n'  # of another version, with other fields
    noise = moved + draining + b"data: [DONE]\n\nevent: ping\ndata: \n\ndata: 7\n\n"
    _, records = await start_and_read(ScriptedConnect(stream_of(frames(1, 4), noise, frames(5, 7))))
    assert records == RECORDS


async def test_a_stream_that_ends_with_an_unknown_record_ends(autojump_clock):
    unknown = raw_frame(7, b'{"type":"stream.evicted","seq":7}')
    stream, records = await start_and_read(
        ScriptedConnect(stream_of(frames(1, 6), unknown), ScriptedResponse(status=204))
    )
    assert records == RECORDS[:6]
    assert (stream.last_seq, stream.terminal) == (7, None)


@pytest.mark.parametrize(
    "broken",
    [
        raw_frame(3, b'{"type":"reasoning.delta","seq":3,"segment":"none","delta":7}'),
        raw_frame(3, b"{"),
        raw_frame(3, b"[" * 100_000),
        raw_frame(4, b'{"type":"reasoning.delta","seq":3,"segment":0,"delta":"x"}'),
        raw_frame(3, b'{"type":"reasoning.delta","seq":4,"segment":0,"delta":"x"}'),
        raw_frame(3, b'{"type":"reasoning.delta","seq":3,"segment":0,"delta":"x"}', OTHER_ID),
        sse.encode_line(b'{"type":"reasoning.delta","seq":3,"segment":0,"delta":"x"}', "3"),
    ],
    ids=[
        "wrong types",
        "no JSON",
        "deep",
        "another record's seq",
        "another record's id",
        "another stream's id",
        "id without a stream",
    ],
)
async def test_an_invalid_record_is_requested_again_once(autojump_clock, broken):
    script = ScriptedConnect(stream_of(frames(1, 2), broken, frames(3, 7)), stream_of(frames(3, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS
    script = ScriptedConnect(stream_of(frames(1, 2), broken), stream_of(broken))
    with pytest.raises(StreamLostError, match="violated the protocol twice") as caught:
        await start_and_read(script)
    assert caught.value.last_seq == 2
    assert len(script.requests) == 2


async def test_an_event_without_end_does_not_fill_the_memory(autojump_clock, monkeypatch):
    monkeypatch.setattr(sse.Decoder.__init__, "__kwdefaults__", {"max_event_length": 1000})
    endless = [b"data: "] + [b"x" * 500] * 1000
    answers = [stream_of(frames(1, 2), *endless), stream_of(*endless)]
    with pytest.raises(StreamLostError, match="longer than 1000"):
        await start_and_read(ScriptedConnect(*answers))
    assert all(answer.closed for answer in answers)


async def test_a_draining_server_is_read_to_the_end(autojump_clock):
    draining = encode_control(ServerDraining(5000))
    stream, records = await start_and_read(ScriptedConnect(stream_of(frames(1, 3), draining, frames(4, 7))))
    assert (records, stream.reconnects) == (RECORDS, 0)


async def test_a_busy_server_is_retried_after_its_delay_and_that_is_not_a_failure(autojump_clock):
    busy = ScriptedResponse([RETRY + encode_control(ServerBusy(4000))], headers=stream_of().headers)
    script = ScriptedConnect(stream_of(frames(1, 2), RESET), *[busy] * 3 * MAX_ATTEMPTS, stream_of(frames(3, 7)))
    seen = []
    async with open_scripted(script) as client, client.start(REQUEST, on_reconnect=seen.append) as stream:
        assert await read_all(stream) == RECORDS
    assert all(is_stretched(delay, 4) for delay in script.delays[1:])
    assert (stream.reconnects, seen) == (1, [2])


async def test_a_busy_server_without_a_delay_is_not_retried_in_a_tight_loop(autojump_clock):
    busy = ScriptedResponse([b"retry: 0\n", encode_control(ServerBusy(0))], headers=stream_of().headers)
    script = ScriptedConnect(busy, busy, stream_of(frames(1, 7)))
    async with open_scripted(script, retry_seconds=0) as client, client.read(ID) as stream:
        assert await read_all(stream) == RECORDS
    assert min(script.delays) >= 0.1


async def test_a_cancelled_stream_ends_like_any_other(autojump_clock):
    cancelled = StreamCancelled(3, "client", Usage(), Timings(None, 5.0))
    script = ScriptedConnect(stream_of(frames(1, 2), encode_frame(ID, cancelled)), ScriptedResponse([b"{}"], 202))
    async with open_scripted(script) as client, client.start(REQUEST) as stream:
        await stream.cancel()
        assert await read_all(stream) == [*RECORDS[:2], cancelled]
        assert stream.terminal == cancelled
    assert script.lines == ["POST /v1/streams", f"POST /v1/streams/{ID}/cancel"]


# Statuses


async def test_204_means_that_the_offset_is_the_terminal_record(autojump_clock):
    script = ScriptedConnect(ScriptedResponse(status=204))
    async with open_scripted(script) as client, client.read(ID, after=7) as stream:
        assert await read_all(stream) == []
        assert (stream.last_seq, stream.terminal) == (7, None)
    assert len(script.requests) == 1


@pytest.mark.parametrize(("status", "error"), [(404, StreamNotFoundError), (410, StreamExpiredError)])
async def test_a_request_for_a_lost_stream_is_not_retried(autojump_clock, status, error):
    script = ScriptedConnect(refusal(status))
    async with open_scripted(script) as client:
        with pytest.raises(error):
            async with client.read(ID):
                pass
        with pytest.raises(error):
            await client.snapshot(ID)
        with pytest.raises(error):
            await client.cancel(ID)
    assert len(script.requests) == 3
    script = ScriptedConnect(stream_of(frames(1, 3), RESET), refusal(status))
    with pytest.raises(error):
        await start_and_read(script)
    assert len(script.requests) == 2


async def test_a_key_whose_stream_has_expired_does_not_start_a_second_stream(autojump_clock):
    script = ScriptedConnect(refusal(410))
    with pytest.raises(StreamExpiredError):
        await start_and_read(script)
    assert len(script.requests) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 413, 415, 422, 501, 505])
async def test_a_permanent_refusal_is_final(autojump_clock, status):
    script = ScriptedConnect(refusal(status, "its_code"))
    with pytest.raises(ServerRefusedError, match="A sentence") as caught:
        await start_and_read(script)
    assert (caught.value.status, caught.value.code, caught.value.message) == (status, "its_code", "A sentence.")
    assert len(script.requests) == 1
    assert script.answers[0].closed


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_permanent_refusal_is_final_on_a_reconnect_too(autojump_clock, status):
    script = ScriptedConnect(stream_of(frames(1, 3), RESET), refusal(status))
    with pytest.raises(ServerRefusedError):
        await start_and_read(script)
    assert len(script.requests) == 2


async def test_a_refusal_without_our_error_body_is_an_http_error(autojump_clock):
    for body in (b"<html>Forbidden</html>", b'{"error": "no"}', b"", b"\xff", b"[" * 100_000):
        with pytest.raises(ServerRefusedError) as caught:
            await start_and_read(ScriptedConnect(ScriptedResponse([body], 403)))
        assert (caught.value.code, caught.value.message) == ("http_error", "Forbidden")


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_start_that_shall_not_be_repeated_raises_the_refusal(autojump_clock, status):
    script = ScriptedConnect(refusal(status, **{"Retry-After": "7"}))
    async with open_scripted(script) as client:
        with pytest.raises(ServerRefusedError) as caught:
            async with client.start(REQUEST, repeats_refused=False):
                pass
    assert (caught.value.status, caught.value.retry_after) == (status, 7.0)
    assert len(script.requests) == 1


async def test_a_refusal_names_the_field_that_it_blames(autojump_clock):
    body = b'{"error": {"code": "invalid_request", "message": "No.", "param": "grace_seconds"}}'
    with pytest.raises(ServerRefusedError) as caught:
        await start_and_read(ScriptedConnect(ScriptedResponse([body], 400)))
    assert caught.value.param == "grace_seconds"


async def test_the_body_of_a_refusal_is_read_up_to_a_limit(autojump_clock):
    answer = ScriptedResponse([b"x" * 10_000] * 1000, 403)
    with pytest.raises(ServerRefusedError):
        await start_and_read(ScriptedConnect(answer))
    assert answer.steps_taken == 7  # 64 KiB
    assert answer.closed


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_honoured_at_the_start(autojump_clock, status):
    later = {"Retry-After": "20"}
    script = ScriptedConnect(refusal(status, **later), refusal(status, **later), stream_of(frames(1, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS
    assert all(is_stretched(delay, 20) for delay in script.delays)
    assert len({request.headers["idempotency-key"] for request in script.requests}) == 1


@pytest.mark.parametrize("value", ["0", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "-5", "1e9", "٣"])
async def test_a_useless_retry_after_does_not_shorten_the_delays(autojump_clock, value):
    headers = {"Retry-After": value}
    script = ScriptedConnect(ScriptedResponse(status=503, headers=headers), stream_of(frames(1, 7)))
    await start_and_read(script)
    assert is_stretched(script.delays[0], 1)


async def test_a_start_that_stays_refused_raises_the_servers_error(autojump_clock):
    script = ScriptedConnect(refusal(429, "owner_limit"))
    with pytest.raises(ServerRefusedError) as caught:
        await start_and_read(script)
    assert caught.value.code == "owner_limit"
    assert len(script.requests) == MAX_FIRST_ATTEMPTS


async def test_a_retry_after_of_an_hour_is_not_waited_for(autojump_clock):
    script = ScriptedConnect(refusal(503, **{"Retry-After": "3600"}))
    with pytest.raises(ServerRefusedError):
        await start_and_read(script)
    assert len(script.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_stream_survives_temporary_refusals(autojump_clock, status):
    script = ScriptedConnect(stream_of(frames(1, 3), RESET), *[refusal(status)] * 5, stream_of(frames(4, 7)))
    _, records = await start_and_read(script)
    assert records == RECORDS
    script = ScriptedConnect(stream_of(frames(1, 3), RESET), refusal(status))
    with pytest.raises(StreamLostError, match=str(status)) as caught:
        await start_and_read(script)
    assert caught.value.last_seq == 3


@pytest.mark.parametrize(
    "portal",
    [
        ScriptedResponse([b"<html>"], headers={"Content-Type": "text/html", "Crucible-Stream": ID}),
        ScriptedResponse([b"<html>"]),
        stream_of(frames(1), stream_id="../../admin"),
        ScriptedResponse([RETRY], headers={"Content-Type": "text/event-stream"}),
    ],
    ids=["page", "no headers", "invalid id", "no id"],
)
async def test_a_response_from_another_server_counts_as_a_failure(autojump_clock, portal):
    _, records = await start_and_read(ScriptedConnect(portal, stream_of(frames(1, 7))))
    assert records == RECORDS
    script = ScriptedConnect(portal)
    with pytest.raises(StreamLostError, match="the response"):
        await start_and_read(script)
    assert len(script.requests) == MAX_FIRST_ATTEMPTS


# Other requests


async def test_snapshot_models_and_cancel_are_retried_after_a_failure(autojump_clock):
    script = ScriptedConnect(
        RESET,
        ScriptedResponse([b'{"status":"running","last_seq":4}']),
        refusal(502),
        ScriptedResponse([b'{"data":[{"id":"m"}]}']),
        RESET,
        ScriptedResponse([b"{}"], 202),
    )
    async with open_scripted(script, key="secret") as client:
        assert await client.snapshot(ID) == {"status": "running", "last_seq": 4}
        assert await client.models() == {"data": [{"id": "m"}]}
        await client.cancel(ID)
    assert script.lines == [
        *[f"GET /v1/streams/{ID}"] * 2,
        *["GET /v1/models"] * 2,
        *[f"POST /v1/streams/{ID}/cancel"] * 2,
    ]
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer secret"}


async def test_the_other_requests_give_up_as_well(autojump_clock):
    async with open_scripted(ScriptedConnect(RESET)) as client:
        with pytest.raises(StreamLostError):
            await client.snapshot(ID)
    async with open_scripted(ScriptedConnect(refusal(503))) as client:
        with pytest.raises(ServerRefusedError):
            await client.models()
    async with open_scripted(ScriptedConnect(ScriptedResponse([b"<html>"]))) as client:
        with pytest.raises(ServerRefusedError, match="not a JSON object"):
            await client.models()


async def test_a_failed_cancel_does_not_disturb_reading(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1, 2), frames(3, 7)), RESET)
    async with open_scripted(script) as client, client.start(REQUEST) as stream:
        await anext(stream)
        await anext(stream)
        with pytest.raises(StreamLostError) as caught:
            await stream.cancel()
        assert caught.value.last_seq == 2
        assert await read_all(stream) == RECORDS[2:]


# Leaving and cancelling


async def test_leaving_closes_the_connection_and_does_not_cancel_the_stream(autojump_clock):
    answer = stream_of(frames(1, 3), FOREVER)
    script = ScriptedConnect(answer)
    async with open_scripted(script) as client:
        async with client.start(REQUEST) as stream:
            await anext(stream)
        assert answer.closed
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)
    assert stream.last_seq == 1  # the last record that was yielded, although 3 were received
    assert script.lines == ["POST /v1/streams"]


async def test_reading_in_many_cancelled_steps_loses_nothing(autojump_clock):
    answers = [stream_of(0.2, frames(n), 0.2, frames(n + 1, 7)) for n in range(1, 8)]
    seen = []
    with trio.fail_after(60):
        async with open_scripted(ScriptedConnect(*answers)) as client, client.start(REQUEST) as stream:
            while stream.terminal is None:
                with trio.move_on_after(0.3):
                    async for record in stream:
                        seen.append(record)  # noqa: PERF401 - a cancelled comprehension would lose its records
    assert seen == RECORDS
    assert all(answer.closed for answer in answers[: stream.reconnects + 1])
    assert stream.reconnects == 6


@pytest.mark.parametrize("cancelled_at", [0.5, 1.2])
async def test_cancelling_an_attempt_or_the_wait_before_it_leaves_nothing_open(autojump_clock, cancelled_at):
    answer = stream_of(FOREVER)
    with trio.fail_after(60):
        async with open_scripted(ScriptedConnect(RESET, answer)) as client:
            with trio.move_on_after(cancelled_at) as scope:
                async with client.start(REQUEST) as stream:
                    await anext(stream)
    assert scope.cancelled_caught


async def test_an_error_of_the_callback_reaches_the_program_and_closes_the_connection(autojump_clock):
    script = ScriptedConnect(stream_of(frames(1), RESET), stream_of(frames(2, 7)))

    def fail(last_seq):
        raise RuntimeError(last_seq)

    async with open_scripted(script) as client, client.start(REQUEST, on_reconnect=fail) as stream:
        with pytest.raises(RuntimeError, match="1"):
            await read_all(stream)
        assert script.answers[1].closed


# Arguments


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "server.test"},
        {"base_url": "ftp://server.test"},
        {"base_url": "http://"},
        {"key": "two words"},
        {"key": "secret\r\nX: y"},
        {"key": "sécret"},
        {"key": ""},
        {"silence_seconds": 0},
        {"max_attempts": 0},
        {"max_first_attempts": 0},
        {"retry_seconds": -1},
        {"retry_seconds": 31},
    ],
    ids=str,
)
async def test_invalid_arguments_are_refused_without_quoting_the_key(options):
    with pytest.raises(ValueError, match=r"URL|key|attempt|silence") as caught:
        async with open_client(**{"base_url": "http://server.test"} | options):
            pass
    assert "cret" not in str(caught.value)


async def test_invalid_ids_and_keys_are_refused_before_anything_is_sent():
    script = ScriptedConnect(refusal(500))
    async with open_scripted(script) as client:
        for key in ("", "two words", "x" * 256, "é"):
            with pytest.raises(ValueError, match="idempotency key"):
                client.start(REQUEST, idempotency_key=key)
        for stream_id, after in (("../models", 0), (ID, -1), ("", 0)):
            with pytest.raises(InvalidLastEventIdError):
                client.read(stream_id, after=after)
        for method in (client.snapshot, client.cancel):
            with pytest.raises(InvalidLastEventIdError):
                await method(f"{ID}/cancel?x=")
    assert script.requests == []
