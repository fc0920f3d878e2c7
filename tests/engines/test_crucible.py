"""The engine for another crucible_trio: two servers in a row, on real sockets and on a bad network."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

from crucible_trio import Request, open_pipeline
from crucible_trio.content import (
    MAX_FIELDS_BYTES,
    Continued,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.engine import Capabilities, EngineInfo, Finish, as_engine
from crucible_trio.engines import open_engine
from crucible_trio.engines.crucible import engine as crucible_engine
from crucible_trio.engines.crucible import open_crucible_upstream
from crucible_trio.engines.crucible.models import EVERYTHING
from crucible_trio.engines.crucible.relay import RecordRelay, finish_of
from crucible_trio.errors import ConfigError, EngineError
from crucible_trio.output import Output
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    StreamCancelled,
    StreamCompleted,
    StreamContinued,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
    Usage,
)
from crucible_trio.request import Deadlines, Parameters, Sampling, Tool
from crucible_trio.server import Config, serve
from crucible_trio.settings import EngineSettings, load_settings
from crucible_trio.snapshot import Snapshot
from crucible_trio.testing import Gate, Repeat, ScriptedEngine, Treatment, open_chaos_proxy
from crucible_trio.testing.resume import check
from crucible_trio.web import create_app

REAL_SECONDS = 120
ASK = Request("Why?")
USAGE = Usage(3, 9, 4)
TIMINGS = Timings(1.0, 2.0)
STREAM = "str_" + "a" * 22

EVERY_KIND: list[Any] = [
    Reasoning("1. First, ", 0),
    Reasoning("the wärm water.\u2028", 0),
    Reasoning("2. Then \U0001f375.", 1),
    "Hel",
    Text("lo.", [{"token": "lo", "logprob": -0.5}]),
    Refusal("I cannot."),
    ToolCallStart("call_1", "weather"),
    ToolCallArguments('{"city": '),
    ToolCallArguments('"Tromsø"}'),
    ToolCallEnd(),
    Reasoning("Again.", 2),
    ToolCallStart("call_2", "weather"),
    ToolCallArguments('{"ci'),
    Finish("tool_calls", USAGE),
]


# Few pieces, because each byte of their stream is one test.
FOR_CUTS: list[Any] = [
    Reasoning("Hm\u2028", 0),
    "H\U0001f375",
    ToolCallStart("call_1", "weather"),
    ToolCallArguments('{"ä": '),
    ToolCallArguments("1}"),
    ToolCallEnd(),
    Finish("tool_calls", USAGE),
]


class PieceEngine:
    """Yields the same pieces for every request, one in a pass."""

    def __init__(self, pieces: list[Any], **capabilities: Any) -> None:
        self.info = EngineInfo(name="pieces", models=("small",), capabilities=Capabilities(**capabilities))
        self.requests: list[Request] = []
        self._pieces = pieces

    async def generate(self, request: Request, output: Output) -> Finish:
        self.requests.append(request)

        async def pieces(_: Request) -> AsyncIterator[Any]:
            for piece in self._pieces:
                await trio.lowlevel.checkpoint()
                yield piece

        return await as_engine(pieces).generate(request, output)


@dataclass
class Served:
    """A running server.

    Attributes:
        headers: Of each request, in lower case.
    """

    pipeline: Pipeline
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def inner_streams(self) -> list[Snapshot]:
        """The snapshots of its streams, newest first."""
        return [stream.snapshot() for stream in await self.pipeline.list()]


@asynccontextmanager
async def serving(engine: Any, **settings: Any) -> AsyncIterator[Served]:
    values = load_settings({}, retry_milliseconds=1, **settings)
    with trio.fail_after(REAL_SECONDS):
        async with open_pipeline(engine, values.pipeline) as pipeline, trio.open_nursery() as nursery:
            served = Served(pipeline)
            app = create_app(pipeline, values.apis)

            async def record_headers(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "http":
                    served.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
                await app(scope, receive, send)

            config = Config.from_settings(values.server, values.pipeline)
            config.bind = ["127.0.0.1:0"]
            urls: list[str] = await nursery.start(partial(serve, record_headers, config))
            served.port = int(urls[0].rpartition(":")[2])
            yield served
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def outer_pipeline(url: str, *, model: str | None = None, **options: Any) -> AsyncIterator[Pipeline]:
    """A pipeline whose upstream is the server at `url`."""
    async with (
        open_crucible_upstream(url, model=model, retry_seconds=0.001) as engine,
        open_pipeline(engine, load_settings({}, **options).pipeline) as pipeline,
    ):
        yield pipeline


async def run_stream(pipeline: Pipeline, request: Request = ASK) -> Snapshot:
    """Read one stream to its end."""
    stream = await pipeline.start(request)
    async with stream.attach() as reader:
        async for _ in reader:
            pass
    return stream.snapshot()


def content_of(snapshot: Snapshot) -> tuple[Any, ...]:
    """Everything in a snapshot that does not depend on the stream's id and on time."""
    calls = [(call.id, call.name, call.arguments, call.complete) for call in snapshot.tool_calls]
    ends = (snapshot.finish_reason, snapshot.reason, snapshot.error, snapshot.usage)
    return snapshot.status, snapshot.output, snapshot.trace, snapshot.refusal, calls, ends


WHOLE = (
    "completed",
    "Hello.",
    ["1. First, the wärm water.\u2028", "2. Then \U0001f375.", "Again."],
    "I cannot.",
    [("call_1", "weather", '{"city": "Tromsø"}', True), ("call_2", "weather", '{"ci', False)],
    ("tool_calls", None, None, USAGE),
)


async def test_every_kind_of_content_arrives_whole() -> None:
    async with serving(PieceEngine(EVERY_KIND)) as inner, outer_pipeline(inner.url) as pipeline:
        stream = await pipeline.start(Request("Why?"))
        async with stream.attach() as reader:
            records = [record async for record in reader]
        assert content_of(stream.snapshot()) == WHOLE
        [snapshot] = await inner.inner_streams()
        assert content_of(snapshot) == WHOLE
    logprobs = [record.logprobs for record in records if isinstance(record, OutputDelta) and record.logprobs]
    assert logprobs == [[{"token": "lo", "logprob": -0.5}]]


async def test_the_request_is_passed_on() -> None:
    engine = PieceEngine(
        ["x"], tools=True, unknown_fields=True, sampling=frozenset({"temperature"}), reasoning_input=True
    )
    asked = Request(
        "Why?",
        mode="deep",
        max_output_tokens=100,
        sampling=Sampling(temperature=0.5),
        trace="none",
        on_disconnect="cancel",
        grace_seconds=200.0,
        deadlines=Deadlines(total_seconds=50.0),
        parameters=Parameters(tools=(Tool("weather"),)),
        extra={"top_a": 1},
    )
    async with serving(engine) as inner, outer_pipeline(inner.url) as pipeline:
        await run_stream(pipeline, asked)
        [sent] = engine.requests
        assert (sent.trace, sent.on_disconnect, sent.grace_seconds) == ("segments", "pause", 380.0)
        for name in ("input", "mode", "max_output_tokens", "sampling", "deadlines", "parameters", "extra"):
            assert getattr(sent, name) == getattr(asked, name)
        assert sent.model == "small"
        await run_stream(pipeline)
        assert engine.requests[1].grace_seconds == crucible_engine.GRACE_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "step"), [("rst", 1), ("fin", 11)])
async def test_a_cut_at_any_byte_changes_nothing_and_starts_no_second_generation(cut: Any, step: int) -> None:
    engine = PieceEngine(FOR_CUTS)
    async with serving(engine) as inner:
        async with open_chaos_proxy(inner.port) as proxy, outer_pipeline(proxy.url, model="small") as pipeline:
            whole = content_of(await run_stream(pipeline))
            assert whole[:3] == ("completed", "H\U0001f375", ["Hm\u2028"])
            assert whole[4] == [("call_1", "weather", '{"ä": 1}', True)]
            [connection] = proxy.connections
        length = connection.answer_bytes
        assert length > 1400
        engine.requests.clear()
        streams = cut_streams = 0

        async def cut_at(offsets: deque[int]) -> None:
            nonlocal streams, cut_streams

            def treat(number: int) -> Treatment:
                # Every second connection is cut, so every stream can resume.
                return Treatment(cut_after=offsets.popleft(), cut=cut) if number % 2 == 0 and offsets else Treatment()

            async with (
                open_chaos_proxy(inner.port, treat) as proxy,
                outer_pipeline(proxy.url, model="small") as pipeline,
            ):
                while offsets:
                    assert content_of(await run_stream(pipeline)) == whole, proxy.connections[-2:]
                    streams += 1
                    proxy.cut()  # the next stream must not use this connection again
                cut_streams += len(proxy.connections) // 2

        workers = 6  # most of a stream's time is waiting
        async with trio.open_nursery() as nursery:
            for first in range(workers):
                nursery.start_soon(cut_at, deque(range(first * step, length, workers * step)))
        assert len(engine.requests) == streams
        assert cut_streams > streams * 0.8  # a cut behind the terminal record is not noticed


@pytest.mark.slow
async def test_two_cuts_in_a_row_and_a_lost_answer_start_no_second_generation() -> None:
    engine = PieceEngine(EVERY_KIND)
    cuts = [Treatment(cut_after=0), Treatment(cut_after=30), Treatment(refuse=True), Treatment(cut_after=900)]
    async with serving(engine) as inner, open_chaos_proxy(inner.port, [*cuts, cuts[3]]) as proxy:
        async with outer_pipeline(proxy.url, model="small") as pipeline:
            assert content_of(await run_stream(pipeline)) == WHOLE, proxy.report()
        assert len(proxy.connections) == 6
        assert len(engine.requests) == 1


@pytest.mark.parametrize("when", ["in the trace", "in the text", "in a tool call", "before the first record"])
async def test_killing_the_upstream_ends_the_stream_as_failed_with_the_text_so_far(when: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("crucible_trio.client.attempts.MIN_DOUBLED_SECONDS", 0.001)
    reached = trio.Event()
    before = {
        "in the trace": [Reasoning("Hm")],
        "in the text": ["Hel"],
        "in a tool call": [ToolCallStart("call_1", "weather"), ToolCallArguments('{"ci')],
        "before the first record": [],
    }[when]

    async def engine(request: Request, output: Output) -> Finish:
        async def pieces(_: Request) -> AsyncIterator[Any]:
            for piece in before:
                yield piece
            reached.set()
            await trio.sleep_forever()

        return await as_engine(pieces).generate(request, output)

    async with trio.open_nursery() as nursery, serving(engine) as other:
        # The proxy is what can be killed, with the port that nobody else takes.
        killed = {"now": False}
        async with (
            open_chaos_proxy(other.port, lambda _: Treatment(refuse=killed["now"])) as proxy,
            outer_pipeline(proxy.url, model="engine") as pipeline,
        ):
            stream = await pipeline.start(Request("Why?"))
            async with stream.attach() as reader:
                expected = 1 + len(before)
                read = 0
                if when == "before the first record":
                    killed["now"] = True
                async for _ in reader:
                    read += 1
                    if read == expected and not killed["now"]:
                        await reached.wait()
                        killed["now"] = True
                        proxy.cut()
            snapshot = stream.snapshot()
        nursery.cancel_scope.cancel()
    assert snapshot.status == "failed"
    assert snapshot.error is not None
    assert snapshot.error.retryable
    assert snapshot.error.code == (
        "upstream_unreachable" if when == "before the first record" else "upstream_ended_early"
    )
    assert snapshot.output == ("Hel" if when == "in the text" else "")
    assert snapshot.trace == (["Hm"] if when == "in the trace" else [])
    if when == "in a tool call":
        [call] = snapshot.tool_calls
        assert (call.arguments, call.complete) == ('{"ci', False)


async def test_an_upstream_that_has_lost_its_streams_is_a_failure() -> None:
    gate = Gate()
    async with serving(ScriptedEngine("Hel", gate, "lo.")) as first, serving(ScriptedEngine("other")) as second:
        ports = {"now": first.port}

        async with open_switch(ports) as (url, cut), outer_pipeline(url, model="scripted") as pipeline:
            stream = await pipeline.start(Request("Why?"))
            async with stream.attach() as reader:
                async for _ in reader:
                    if gate.waiting and ports["now"] == first.port:
                        ports["now"] = second.port  # restarted: the same address, and no stream from before
                        cut()
            snapshot = stream.snapshot()
    assert (snapshot.status, snapshot.output) == ("failed", "Hel")
    assert snapshot.error == ErrorInfo("upstream_ended_early", "The upstream server no longer has the stream.", True)


@asynccontextmanager
async def open_switch(ports: dict[str, int]) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A proxy whose server can be replaced."""
    scopes: list[trio.CancelScope] = []

    async def pump(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        async for data in source:
            await sink.send_all(data)
        scope.cancel()

    async def handle(near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", ports["now"])
        async with near, far, trio.open_nursery() as nursery:
            scopes.append(nursery.cancel_scope)
            nursery.start_soon(pump, near, far, nursery.cancel_scope)
            nursery.start_soon(pump, far, near, nursery.cancel_scope)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}", lambda: [scope.cancel() for scope in scopes] and None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pieces_before", [0, 1, 3])
async def test_cancelling_a_stream_cancels_it_on_the_upstream(pieces_before: int) -> None:
    gate = Gate()
    engine = ScriptedEngine(*["x"] * pieces_before, gate)
    async with serving(engine) as inner, outer_pipeline(inner.url) as pipeline:
        stream = await pipeline.start(Request("Why?"))
        async with stream.attach() as reader:
            await gate.wait_reached()
            stream.cancel()
            async for _ in reader:
                pass
        await engine.runs[0].ended.wait()
        assert engine.runs[0].end == "cancelled"
        assert stream.snapshot().by == "client"
        [there] = await inner.inner_streams()
        assert (there.status, there.by, there.output) == ("cancelled", "client", "x" * pieces_before)


async def test_a_stream_cancelled_before_the_upstream_has_answered_is_cancelled_there() -> None:
    engine = ScriptedEngine("x", Gate())
    held = [Treatment(stall_after=0)]  # the request arrives, and its answer never does
    async with serving(engine) as inner, open_chaos_proxy(inner.port, held) as proxy:
        async with outer_pipeline(proxy.url, model="scripted") as pipeline:
            stream = await pipeline.start(Request("Why?"), starts_with_reader=False)
            while not engine.runs:
                await trio.sleep(0.001)
            stream.cancel()
            await engine.runs[0].ended.wait()
        assert engine.calls == 1
        [there] = await inner.inner_streams()
        assert (there.status, there.by) == ("cancelled", "client")


@pytest.mark.slow
async def test_an_upstream_that_does_not_answer_holds_a_cancelled_stream_for_a_bounded_time() -> None:
    engine = ScriptedEngine("x", Gate())
    async with serving(engine) as inner, open_chaos_proxy(inner.port, lambda _: Treatment(stall_after=0)) as proxy:
        async with outer_pipeline(proxy.url, model="scripted") as pipeline:
            stream = await pipeline.start(Request("Why?"), starts_with_reader=False)
            while not engine.runs:
                await trio.sleep(0.001)
            stream.cancel()
        # The pipeline has ended, which waits for the engine.
        assert stream.snapshot().status == "cancelled"


async def test_a_slow_reader_slows_the_upstream_down() -> None:
    engine = ScriptedEngine(Repeat("word " * 1000, 3000))
    async with (
        serving(engine, buffer_tokens=2) as inner,
        open_chaos_proxy(inner.port, buffer_bytes=8192) as proxy,
        outer_pipeline(proxy.url, buffer_tokens=2) as pipeline,
    ):
        stream = await pipeline.start(Request("Why?"))
        async with stream.attach() as reader:
            for _ in range(3):
                await anext(reader)
            made = -1
            while made != len(engine.made):
                made = len(engine.made)
                await trio.sleep(0.2)  # sockets set no event when they are full
            assert made < 1000
            stream.cancel()


async def test_our_deadline_ends_the_stream_and_cancels_the_upstreams() -> None:
    engine = ScriptedEngine("x", Gate())
    async with serving(engine) as inner, outer_pipeline(inner.url, idle_seconds=0.1) as pipeline:
        snapshot = await run_stream(pipeline)
        assert (snapshot.status, snapshot.reason, snapshot.output) == ("incomplete", "idle_deadline", "x")
        await engine.runs[0].ended.wait()
        assert engine.runs[0].end == "cancelled"


@pytest.mark.parametrize("reason", ["first_token_deadline", "idle_deadline", "total_deadline", "log_limit"])
async def test_a_limit_of_the_upstream_ends_the_stream_with_the_same_reason(reason: str) -> None:
    seconds = 2.0 if reason == "total_deadline" else 0.1  # the total counts from the start, and "x" must come before
    settings = (
        {"stream_log_bytes": 8192}
        if reason == "log_limit"
        else {f"{reason.removesuffix('_deadline')}_seconds": seconds}
    )
    first = [] if reason == "first_token_deadline" else ["x"]
    engine = ScriptedEngine(*first, "y" * 9000 if reason == "log_limit" else Gate())
    async with serving(engine, **settings) as inner, outer_pipeline(inner.url) as pipeline:
        snapshot = await run_stream(pipeline)
        assert (snapshot.status, snapshot.reason, snapshot.output) == ("incomplete", reason, "".join(first))


@pytest.mark.parametrize(
    ("step", "status", "fact"),
    [
        (Finish("stop", USAGE), "completed", "stop"),
        (Finish("content_filter", USAGE), "completed", "content_filter"),
        (Finish("length", USAGE), "incomplete", "max_output_tokens"),
        (
            EngineError("model_failed", "It broke.", retryable=True),
            "failed",
            ErrorInfo("model_failed", "It broke.", True),
        ),
        (EngineError("prompt_too_long", "Long."), "failed", ErrorInfo("prompt_too_long", "Long.", False)),
    ],
)
async def test_an_end_stays_what_it_is(step: Any, status: str, fact: Any) -> None:
    async with serving(ScriptedEngine("x", step)) as inner, outer_pipeline(inner.url) as pipeline:
        snapshot = await run_stream(pipeline)
    assert (snapshot.status, snapshot.output) == (status, "x")
    assert fact in (snapshot.finish_reason, snapshot.reason, snapshot.error)
    assert snapshot.usage == (Usage() if status == "failed" else USAGE)


async def test_a_stream_cancelled_at_the_upstream_is_a_failure_here() -> None:
    gate = Gate()
    async with serving(ScriptedEngine("x", gate)) as inner, outer_pipeline(inner.url) as pipeline:
        stream = await pipeline.start(Request("Why?"))
        async with stream.attach() as reader:
            await gate.wait_reached()
            for there in await inner.pipeline.list():
                there.cancel()
            async for _ in reader:
                pass
    snapshot = stream.snapshot()
    assert (snapshot.status, snapshot.output) == ("failed", "x")
    assert snapshot.error is not None
    assert (snapshot.error.code, snapshot.error.retryable) == ("upstream_ended_early", True)


async def test_no_header_of_a_client_reaches_the_upstream() -> None:
    async with (
        serving(ScriptedEngine("x")) as inner,
        open_crucible_upstream(inner.url, key="sk-ours") as engine,
        serving(engine) as outer,
    ):
        inner.headers.clear()
        body = b'{"input": "Why?"}'
        head = (
            b"POST /v1/streams HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Accept: text/event-stream\r\nIdempotency-Key: theirs\r\nAuthorization: Bearer theirs\r\n"
            b"Cookie: theirs\r\nX-Forwarded-For: theirs\r\nTraceparent: theirs\r\n"
        )
        stream = await trio.open_tcp_stream("127.0.0.1", outer.port)
        async with stream:
            await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            received = b""
            while b"stream.completed" not in received:
                received += await stream.receive_some()
    [headers] = inner.headers
    assert "theirs" not in str(headers)
    assert headers["authorization"] == "Bearer sk-ours"
    assert headers["idempotency-key"]


async def test_an_upstream_that_allows_less_grace_gets_its_own(caplog: pytest.LogCaptureFixture) -> None:
    engine = PieceEngine(["x"])
    async with serving(engine, max_grace_seconds=60.0) as inner, outer_pipeline(inner.url) as pipeline:
        for _ in range(2):
            assert (await run_stream(pipeline)).status == "completed"
    assert [request.grace_seconds for request in engine.requests] == [None, None]
    assert caplog.text.count("refuses grace_seconds") == 1


async def test_a_refusal_of_the_upstream_is_a_failure() -> None:
    async with serving(PieceEngine(["x"])) as inner, outer_pipeline(inner.url, model="small") as pipeline:
        snapshot = await run_stream(pipeline, Request("Why?", sampling=Sampling(top_k=3)))
    assert snapshot.error is not None
    assert (snapshot.error.code, snapshot.error.retryable) == ("upstream_rejected", False)
    assert "invalid_request" in snapshot.error.message


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (EngineError("upstream_refused", "Busy.", retryable=True, status=429, retry_after=7.0), 429, "7"),
        (EngineError("upstream_unauthorized", "Key.", status=401), 401, None),
        (EngineError("upstream_rejected", "No.", status=400), 400, None),
    ],
)
async def test_the_status_behind_the_upstream_reaches_a_client_that_waits_for_one(
    error: EngineError, status: int, header: str | None
) -> None:
    async with (
        serving(ScriptedEngine(error)) as inner,
        open_crucible_upstream(inner.url) as engine,
        serving(engine) as outer,
    ):
        for stream in (True, False):
            head, _ = await chat(outer.port, stream=stream)
            assert head.startswith(f"HTTP/1.1 {status} ")
            assert (f"retry-after: {header}" in head.lower()) == (header is not None)


async def test_a_busy_upstream_is_asked_once_for_a_client_that_repeats() -> None:
    gate = Gate()
    async with (
        serving(ScriptedEngine(gate), max_streams=1) as inner,
        open_crucible_upstream(inner.url, model="scripted") as engine,
        serving(engine) as outer,
    ):
        busy = await inner.pipeline.start(Request("x"))
        head, _ = await chat(outer.port, stream=False)
        assert head.startswith("HTTP/1.1 503 ")
        assert "retry-after: 5" in head.lower()
        assert len(inner.headers) == 1
        busy.cancel()


async def chat(port: int, *, stream: bool) -> tuple[str, bytes]:
    """The head and the body of the answer to a chat completion."""
    body = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "x"}], "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection = await trio.open_tcp_stream("127.0.0.1", port)
    async with connection:
        await connection.send_all(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        received = b"".join([chunk async for chunk in connection])
    top, _, rest = received.partition(b"\r\n\r\n")
    return top.decode(), rest


async def test_models_and_capabilities_are_the_upstreams() -> None:
    engine = PieceEngine(["x"], tools=True, logprobs=True, sampling=frozenset({"seed"}))
    async with serving(engine) as inner:
        async with open_crucible_upstream(f"{inner.url}/v1", name="far") as opened:
            assert (opened.info.name, opened.info.models) == ("far", ("small",))
            assert opened.info.capabilities_of("small") == engine.info.capabilities
        async with open_crucible_upstream(inner.url, model="other") as opened:
            assert opened.info.capabilities_of("other") == EVERYTHING


async def test_the_settings_open_it() -> None:
    async with serving(PieceEngine(["x"])) as inner:
        settings = EngineSettings(engine="upstream", upstream_kind="crucible", upstream_base_url=inner.url)
        async with open_engine(settings) as engine, open_pipeline(engine) as pipeline:
            assert (await run_stream(pipeline)).output == "x"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("ftp://x", {}, "the base URL of the upstream must look like"),
        ("http://127.0.0.1:1", {"key": "a b"}, "the upstream's key"),
        ("http://127.0.0.1:1", {"retry_seconds": 0.001}, "start the server"),
    ],
)
async def test_a_wrong_address_or_key_is_one_sentence(url: str, options: Any, words: str) -> None:
    with trio.fail_after(REAL_SECONDS), pytest.raises(ConfigError, match=words):
        async with open_crucible_upstream(url, **options):
            pass


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "returned status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "an invalid list"),
        (b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n", "cannot get the list"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":[]}', "lists no models"),
    ],
)
async def test_a_server_without_a_list_of_models_is_one_sentence(answer: bytes, words: str) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    with trio.fail_after(REAL_SECONDS):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
            url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            with pytest.raises(ConfigError, match=words):
                async with open_crucible_upstream(url):
                    pass
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_the_resume_kit_passes_a_server_whose_upstream_is_cut() -> None:
    # Two of them are too long for one record, so the stream has as many events as pieces on any machine.
    engine = ScriptedEngine([Reasoning("1. Thöught "), *[f"wörd {number} " * 200 for number in range(30)]])
    async with (
        serving(engine) as inner,
        open_chaos_proxy(inner.port, lambda number: Treatment(cut_after=900) if number % 2 else Treatment()) as proxy,
        open_crucible_upstream(proxy.url, model="scripted") as upstream,
        serving(upstream) as outer,
    ):
        report = await check(outer.url, log_cuts=60, live_cuts=10, take_turns=True)
        assert report.ok, str(report)
        assert {"cut"} < {connection.outcome for connection in proxy.connections}
        assert engine.calls == len(await outer.pipeline.list())


# The relay alone


async def relay(*records: AnyRecord) -> tuple[list[Any], RecordRelay]:
    send, receive = trio.open_memory_channel[Any](100)
    relay = RecordRelay(Output(send))

    async def source() -> AsyncIterator[AnyRecord]:
        for record in records:
            yield record

    async with aclosing(source()) as incoming:
        try:
            await relay.run(incoming)
        finally:
            send.close()
    return [piece async for piece in receive], relay


async def test_a_hole_in_the_numbers_of_segments_is_closed() -> None:
    pieces, _ = await relay(ReasoningDelta(2, 0, "a"), ReasoningDelta(3, 2, "b"), ReasoningDelta(4, 2, "c"))
    assert pieces == [Reasoning("a", 0), Reasoning("b", 1), Reasoning("c", 1)]


async def test_a_call_that_another_record_follows_is_cut() -> None:
    started = [ToolCallStarted(1, 0, "call_1", "f"), ToolCallDelta(2, 0, "{")]
    pieces, _ = await relay(*started, ToolCallStarted(3, 1, "call_2", "g"), ToolCallDone(4, 1), OutputDelta(5, "x"))
    assert pieces == [
        ToolCallStart("call_1", "f"),
        ToolCallArguments("{"),
        ToolCallStart("call_2", "g"),
        ToolCallEnd(),
        Text("x"),
    ]
    assert (await relay(*started))[0] == pieces[:2]


async def test_a_continuation_of_the_upstream_is_passed_on() -> None:
    pieces, _ = await relay(OutputDelta(1, "a"), StreamContinued(2, 1), OutputDelta(3, "b"))
    assert pieces == [Text("a"), Continued(1), Text("b")]


async def test_fields_of_the_upstreams_upstream_are_passed_on() -> None:
    pieces, _ = await relay(UpstreamFields(1, "choice", {"a": [1]}), OutputDelta(2, "a"))
    assert pieces == [ServerFields("choice", {"a": [1]}), Text("a")]


async def test_records_of_unknown_types_are_counted() -> None:
    _, counts = await relay(StreamCreated(1, STREAM, "deep", "m", 1.0), OutputDelta(4, "a"), OutputDelta(5, "b"))
    assert counts.skipped == 2


@pytest.mark.parametrize(
    "record",
    [
        ToolCallDelta(1, 0, "{"),
        ToolCallDone(1, 0),
        ToolCallStarted(1, 0, "", "f"),
        UpstreamFields(1, "chunk", {"a": "x" * MAX_FIELDS_BYTES}),
    ],
    ids=lambda r: type(r).__name__,
)
async def test_records_that_break_the_protocol_are_a_failure(record: Any) -> None:
    with pytest.raises(EngineError, match="upstream_invalid_response"):
        await relay(record)


@pytest.mark.parametrize(
    ("terminal", "finish"),
    [
        (StreamCompleted(9, "stop", USAGE, TIMINGS), Finish("stop", USAGE)),
        (StreamCompleted(9, "stop", USAGE, TIMINGS, "END"), Finish("stop", USAGE, "END")),
        (StreamIncomplete(9, "log_limit", USAGE, TIMINGS), Finish("log_limit", USAGE)),
    ],
)
def test_a_finish_keeps_reason_usage_and_stop_string(terminal: Any, finish: Finish) -> None:
    assert finish_of(terminal) == finish


@pytest.mark.parametrize(
    ("terminal", "code"),
    [
        (StreamFailed(9, ErrorInfo("x", "y", False), USAGE, TIMINGS), "x"),
        (StreamCancelled(9, "shutdown", USAGE, TIMINGS), "upstream_ended_early"),
        (StreamCancelled(9, "disconnect", USAGE, TIMINGS), "upstream_ended_early"),
        (None, "upstream_ended_early"),
    ],
)
def test_an_end_without_a_whole_text_is_an_error(terminal: Any, code: str) -> None:
    with pytest.raises(EngineError) as caught:
        finish_of(terminal)
    assert caught.value.code == code
