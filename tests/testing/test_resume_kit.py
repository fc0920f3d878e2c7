"""The resume kit finds the faults of a server, and finds none in a correct server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from crucible_trio import Finish, Output, Pipeline, Request, open_pipeline
from crucible_trio.server import Config, serve
from crucible_trio.settings import load_settings
from crucible_trio.testing.resume import CLIENTS, Report, Stage, WireFormat, check
from crucible_trio.web import create_app

pytestmark = pytest.mark.slow

SEGMENTS = [["Erst ", "das Wasser. "], ["Zehn Grad ", "zu heiß ", "verbrüht ", "茶."]]
WORDS = [
    "Nimm",
    "weiches",
    "Wasser,\nkühl",
    "es",
    "ab",
    "—",
    "80 °C",
    "—",
    "gieß",
    "\U0001f375",
    "auf.",
    "Dann",
    "warte",
]
PIECES = sum(map(len, SEGMENTS)) + len(WORDS)
OWN = WireFormat(body='{"input": "{key}", "mode": "deep"}')


async def let_readers_run() -> None:
    """Let a reader take the last record, so that the next piece becomes another record. The kit needs many records."""
    for _ in range(8):
        await trio.lowlevel.checkpoint()


def staged_engine(stage: Stage) -> Callable[[Request, Output], Any]:
    """Waits for its turn before each piece except the last two, so that these two become one record.

    The recorder may take the piece before them alone. It then waits for a reader, for longer than the engine needs.
    """

    async def engine(request: Request, output: Output) -> Finish:
        key = str(request.input)
        for segment, pieces in enumerate(SEGMENTS):
            for piece in pieces:
                await stage.turn(key)
                await output.reasoning(piece, segment)
                await let_readers_run()
        for number, word in enumerate(WORDS):
            if number < len(WORDS) - 2:
                await let_readers_run()
                await stage.turn(key)
            await output.delta(f" {word}")
        return Finish()

    return engine


@asynccontextmanager
async def own_server(stage: Stage, **settings: Any) -> AsyncIterator[tuple[Pipeline, str]]:
    values = load_settings({}, **settings)
    async with open_pipeline(staged_engine(stage), values.pipeline) as pipeline, trio.open_nursery() as nursery:
        config = Config.from_settings(values.server, values.pipeline)
        config.bind = ["127.0.0.1:0"]
        [url] = await nursery.start(partial(serve, create_app(pipeline, values.apis), config, drain=pipeline.drain))
        yield pipeline, url
        nursery.cancel_scope.cancel()


def checked(report: Report, phase: str) -> int:
    return sum(row.checked for row in report.rows if row.phase == phase)


def size(report: Report, phase: str) -> int:
    return max(row.size for row in report.rows if row.phase == phase)


# This package's server


async def every_byte_from_the_log() -> None:
    stage = Stage()
    async with own_server(stage) as (pipeline, url):
        report = await check(url, OWN, phases=["log"], take_turns=True, stage=stage)
        [stream] = await pipeline.list()
    print(report)
    assert report.ok
    assert sum(row.checked for row in report.rows) > 2200
    assert sum(row.skipped.total() + row.by_ids_only for row in report.rows) == 0
    # The stream must have many records, segments, multi-byte characters, and a record made of several pieces.
    assert 20 <= stream.log.head < PIECES + 3
    assert "3 channels of text" in report.stream
    assert not report.notes


async def every_byte_live() -> None:
    stage = Stage()
    async with open_pipeline(staged_engine(stage)) as pipeline:
        report = await check(create_app(pipeline), OWN, phases=["live"], take_turns=True, stage=stage)
        merged = [stream for stream in await pipeline.list() if stream.log.head < PIECES + 2]
    print(report)
    assert report.ok
    assert sum(row.checked for row in report.rows) > 2200
    assert sum(row.skipped.total() + row.by_ids_only for row in report.rows) == 0
    assert merged  # after the cut


async def test_a_cut_at_any_byte_of_our_streams_loses_nothing_and_repeats_nothing() -> None:
    # Thousands of requests. Each half runs in its own process, so that two cores share the work.
    async def run(half: str) -> None:
        done = await trio.run_process(
            [sys.executable, "-W", "error", __file__, half], capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
        assert done.returncode == 0, done.stdout.decode()
        assert done.stdout.decode().rstrip().endswith("passed: no event was lost or repeated")

    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "log")
            nursery.start_soon(run, "live")


async def test_every_client_passes_on_our_server_live_and_from_the_log() -> None:
    stage = Stage()
    with trio.fail_after(120):
        async with own_server(stage) as (_, url):
            report = await check(url, OWN, log_cuts=30, live_cuts=30, stage=stage, seed=1)
    assert report.ok, str(report)
    assert [(row.phase, row.client, row.checked) for row in report.rows] == [
        (phase, client, 30) for phase in ("log", "live") for client in ("eventsource", "httpx-sse", "fetch")
    ]


CALLS = {
    "weather": ['{"city": ', '"Zü', "rich \U0001f375", '", "days": [1, ', "2]}"],
    "note": ["{", '"text": "', "茶, ", "heiß", '"}'],
}


def calling_engine(stage: Stage, *, cut: bool = False) -> Callable[[Request, Output], Any]:
    """Calls two tools, with some trace between them. With `cut` the second call is not whole."""

    async def engine(request: Request, output: Output) -> Finish:
        key = str(request.input)
        for number, (name, arguments) in enumerate(CALLS.items()):
            for piece in ("Which ", "tool?"):
                await stage.turn(key)
                await output.reasoning(f"{piece} {number}", number)
                await let_readers_run()
            async with output.tool_call(f"call_{number}", name) as call:
                for piece in arguments:
                    await let_readers_run()
                    await stage.turn(key)
                    await call.arguments(piece)
                if cut and number == 1:
                    call.cut()
        return Finish("length" if cut else "tool_calls")

    return engine


@pytest.mark.parametrize("cut", [False, True])
async def test_a_cut_at_any_byte_of_a_stream_with_tool_calls_loses_nothing_and_repeats_nothing(cut: bool) -> None:
    stage = Stage()
    with trio.fail_after(120):
        async with open_pipeline(calling_engine(stage, cut=cut)) as pipeline:
            app = create_app(pipeline)
            report = await check(app, OWN, phases=["log"], take_turns=True, stage=stage)
            live = await check(app, OWN, phases=["live"], live_cuts=60, take_turns=True, stage=stage)
            snapshots = [stream.snapshot() for stream in await pipeline.list()]
    assert report.ok, str(report)
    assert live.ok, str(live)
    assert checked(report, "log") > 2500  # all bytes
    assert checked(live, "live") == 60
    whole = [("call_0", "".join(CALLS["weather"]), True), ("call_1", "".join(CALLS["note"]), not cut)]
    for snapshot in snapshots:
        assert [(call.id, call.arguments, call.complete) for call in snapshot.tool_calls] == whole
        assert snapshot.status == ("incomplete" if cut else "completed")


async def test_arguments_of_one_call_that_move_to_another_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from crucible_trio.apis.native import fold

    class MovesArguments(fold.SegmentsDialect):
        def feed(self, frames: Any) -> bytes:
            return super().feed(frames).replace(b'"index":1', b'"index":0')

    async def open_faulty(trace: Any, log: Any, after: int, *, retry_milliseconds: int) -> Any:
        kind = MovesArguments if after else fold.SegmentsDialect
        return kind(after, retry_milliseconds)

    monkeypatch.setattr(fold, "open_dialect", open_faulty)
    stage = Stage()
    with trio.fail_after(60):
        async with open_pipeline(calling_engine(stage)) as pipeline:
            report = await check(create_app(pipeline), OWN, phases=["log"], log_cuts=60, stage=stage)
    assert not report.ok
    assert {failure.finding.name for failure in report.failures} == {"different text"}


async def test_a_start_that_answers_with_json_is_followed_to_its_events() -> None:
    stage = Stage()
    wire = WireFormat(body=OWN.body, headers=OWN.headers | {"Accept": "application/json"}, events="{json:events_url}")
    with trio.fail_after(60):
        async with open_pipeline(staged_engine(stage)) as pipeline:
            report = await check(create_app(pipeline), wire, log_cuts=30, live_cuts=30, stage=stage)
    assert report.ok, str(report)
    assert all(row.checked == 30 for row in report.rows)


async def test_an_event_source_can_start_a_stream() -> None:
    stage = Stage()
    wire = WireFormat(
        method="GET", path="/v1/generate?prompt={key}&mode=deep&idempotency_key={key}", headers={}, events=None
    )
    with trio.fail_after(60):
        async with open_pipeline(staged_engine(stage)) as pipeline:
            report = await check(
                create_app(pipeline), wire, clients=["eventsource"], log_cuts=40, live_cuts=40, stage=stage
            )
    assert report.ok, str(report)


async def test_a_bug_in_our_server_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from crucible_trio.apis.native import fold

    stage = Stage()

    class LosesOne(fold.SegmentsDialect):
        _is_first = True

        def feed(self, frames: Any) -> bytes:
            frames = list(frames)
            if self._is_first and frames:
                self._is_first = False
                frames = frames[1:]
            return super().feed(frames)

    async def open_lossy(trace: Any, log: Any, after: int, *, retry_milliseconds: int) -> Any:
        kind = LosesOne if after else fold.SegmentsDialect
        return kind(after, retry_milliseconds)

    monkeypatch.setattr(fold, "open_dialect", open_lossy)
    with trio.fail_after(60):
        async with open_pipeline(staged_engine(stage)) as pipeline:
            report = await check(create_app(pipeline), OWN, log_cuts=20, live_cuts=20, stage=stage)
    assert report.exit_code == 1
    assert report.names.most_common(1)[0][0] == "off by one on resume"


# The small server, correct and with bugs


async def test_a_correct_server_of_another_kind_passes_at_every_byte(open_small_server: Any) -> None:
    with trio.fail_after(120):
        async with open_small_server(staged=True) as server:
            report = await check(server.url, server.wire, live_cuts=60, take_turns=True, stage=server.stage)
    assert report.ok, str(report)
    assert checked(report, "log") == size(report, "log") + 1
    assert checked(report, "live") == 60


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        ("skips one", "off by one on resume"),
        ("sends one again", "off by one on resume"),
        ("ignores ids", "ids ignored"),
        ("drops one", "dropped event"),
        ("repeats one", "repeated event"),
        ("loses the tail", "lost tail"),
        ("ends without terminal", "clean end without terminal"),
        ("continues after the end", "event after the terminal"),
        ("ends twice", "repeated event"),
        ("refuses", "reconnect refused"),
        ("garbles characters", "different text"),
        ("hangs", "stuck"),
        ("sends nothing but heartbeats", "stuck"),
        ("closes every resumed connection", "never ends"),
    ],
)
async def test_a_planted_bug_is_found_and_named(open_small_server: Any, bug: str, name: str) -> None:
    with trio.fail_after(60):
        async with open_small_server(bug) as server:
            # These two are slow, and one client is enough to find them.
            clients = ["fetch"] if name in {"stuck", "never ends"} else list(CLIENTS)
            timeout = 0.3 if name == "stuck" else 30
            report = await check(
                server.url, server.wire, clients=clients, log_cuts=12, live_cuts=6, timeout=timeout, at_once=12
            )
    assert report.exit_code == 1, str(report)
    assert report.names.most_common(1)[0][0] == name, str(report)
    assert f"FAIL {name}: " in str(report)
    # Every client finds it, from the log and live.
    assert all(row.failed for row in report.rows), str(report)


async def test_an_id_before_its_data_is_found_by_the_client_that_takes_it_early(open_small_server: Any) -> None:
    with trio.fail_after(60):
        async with open_small_server("sends the id first") as server:
            report = await check(server.url, server.wire, log_cuts=100, live_cuts=20)
    assert set(report.names) == {"id before its data"}, str(report)
    assert {failure.client for failure in report.failures} == {"fetch"}


async def test_a_repeated_start_that_starts_another_stream_is_found(open_small_server: Any) -> None:
    with trio.fail_after(60):
        async with open_small_server("starts another") as server:
            report = await check(server.url, server.wire, log_cuts=40, live_cuts=20)
    assert set(report.names) <= {"different stream", "ids ignored", "repeated event"}, str(report)
    assert {failure.client for failure in report.failures} == {"fetch"}


async def test_a_stream_without_ids_fails_before_the_first_cut(open_small_server: Any) -> None:
    with trio.fail_after(10):
        async with open_small_server("sends no ids") as server:
            report = await check(server.url, server.wire)
    assert (report.exit_code, set(report.names)) == (1, {"no ids"})
    assert not report.rows


async def test_events_lost_without_a_reader_are_found_only_live(open_small_server: Any) -> None:
    with trio.fail_after(60):
        async with open_small_server("drops events without a reader", staged=True) as server:
            report = await check(server.url, server.wire, log_cuts=24, live_cuts=40, stage=server.stage)
    assert report.exit_code == 1
    assert {failure.phase for failure in report.failures} == {"live"}
    assert "dropped event" in report.names


async def test_the_call_in_the_report_repeats_the_failure(open_small_server: Any) -> None:
    with trio.fail_after(60):
        async with open_small_server("drops one") as server:
            report = await check(server.url, server.wire, log_cuts=24, phases=["log"], clients=["httpx-sse"])
            [first, *_] = report.failures
            # Not a command: the report does not know of a file that describes this wire.
            call = f"repeat: check(..., phases=['log'], clients=['httpx-sse'], cuts=[{first.cut_at}], seed=0)"
            assert call in str(report)
            second = await check(server.url, server.wire, phases=["log"], clients=["httpx-sse"], cuts=[first.cut_at])
    assert second.failures == [first]
    assert "uncut: ...mm weiches Wasser,\\nkühl [es ab — 80 °C — und gieß]..." in str(second)
    assert "cut:   ...mm weiches Wasser,\\nkühl []" in str(second)


async def test_a_seed_selects_the_same_bytes_again_and_another_seed_does_not(open_small_server: Any) -> None:
    async def places(seed: int) -> list[int]:
        found = []
        async with open_small_server("skips one") as server:
            report = await check(
                server.url, server.wire, phases=["log"], clients=["fetch"], log_cuts=12, seed=seed, at_once=1
            )
            found = [failure.cut_at for failure in report.failures]
        return found

    with trio.fail_after(60):
        assert await places(1) == await places(1) != await places(2)


async def test_ids_without_numbers_are_compared_with_the_uncut_readers(open_small_server: Any) -> None:
    import msgspec

    with trio.fail_after(60):
        for bug, code in (("", 0), ("drops one", 1), ("repeats one", 1)):
            async with open_small_server(bug, letters=True) as server:
                wire = msgspec.structs.replace(server.wire, ids="opaque")
                report = await check(server.url, wire, log_cuts=24, live_cuts=12)
                assert report.exit_code == code, str(report)
                report = await check(server.url, server.wire)
                assert set(report.names) == {"no ids"}, str(report)


# Servers that cannot be checked


async def test_no_server_is_neither_failure_nor_success() -> None:
    with trio.fail_after(10):
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        await listener.aclose()
        report = await check(f"http://127.0.0.1:{port}")
    assert (report.exit_code, report.problem) == (2, "no server answers at this address")


async def test_a_stream_that_is_too_short_is_not_checked(open_small_server: Any) -> None:
    with trio.fail_after(10):
        async with open_small_server(events=[("begin", ""), ("say", "too short"), ("end", "stop")]) as server:
            report = await check(server.url, server.wire)
    assert report.exit_code == 2
    assert "3 events" in str(report.problem)


async def test_the_answer_to_a_refused_start_is_in_the_report() -> None:
    with trio.fail_after(10):
        async with open_pipeline(staged_engine(Stage())) as pipeline:
            report = await check(create_app(pipeline), WireFormat(body='{"prompt": "{key}"}'))
    assert report.exit_code == 2
    assert "the start got status 400" in str(report)
    assert "prompt" in str(report)


async def test_checks_that_were_left_out_are_in_the_report(open_small_server: Any) -> None:
    ascii_events = [("begin", ""), *(("say", f"word {number} ") for number in range(20)), ("end", "stop")]
    with trio.fail_after(30):
        async with open_small_server(events=ascii_events) as server:
            wire = WireFormat(
                path="/runs", headers={}, body="{key}", events=None, kind="event:", text="", terminal=("end",)
            )
            report = await check(server.url, wire, log_cuts=5, live_cuts=5)
    assert report.ok, str(report)
    assert "note: eventsource cannot read" in str(report)
    assert "note: the text is ASCII only" in str(report)


async def test_a_busy_server_is_not_judged() -> None:
    stage = Stage()
    with trio.fail_after(60):
        async with own_server(stage, max_streams=1) as (_, url):
            report = await check(url, OWN, phases=["live"], clients=["fetch"], live_cuts=20, stage=stage)
    [row] = report.rows
    assert report.ok, str(report)
    assert row.skipped["the start got status 503"] > 0
    assert row.checked + row.skipped.total() == 20


@pytest.mark.parametrize("url", ["https://example.org", "nonsense", "http://", "http://[::1", "http://127.0.0.1:x"])
async def test_an_unusable_url_is_an_error(url: str) -> None:
    from crucible_trio.errors import ConfigError

    with pytest.raises(ConfigError, match="URL"):
        await check(url)


async def test_an_application_that_does_not_start_is_an_error() -> None:
    from crucible_trio.errors import ConfigError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no model"})

    with pytest.raises(ConfigError, match="no model"):
        await check(app)


async def test_an_applications_lifespan_is_run_around_the_check() -> None:
    calls = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            calls.append("request")
            raise RuntimeError
        for word in ("startup", "shutdown"):
            assert await receive() == {"type": f"lifespan.{word}"}
            calls.append(word)
            await send({"type": f"lifespan.{word}.complete"})

    with trio.fail_after(10):
        report = await check(app)
    assert calls == ["startup", "request", "shutdown"]
    assert report.problem == "the start got no response (broken)"


if __name__ == "__main__":
    trio.run({"log": every_byte_from_the_log, "live": every_byte_live}[sys.argv[1]])
