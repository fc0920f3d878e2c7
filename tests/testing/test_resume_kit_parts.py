"""The parts of the resume kit without sockets: clients, wire format, judging, the ASGI network, stage and report."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import given
from hypothesis import strategies as st

from crucible_trio import sse
from crucible_trio.errors import ConfigError
from crucible_trio.testing.resume import CLIENTS, Report, Row, Stage, WireFormat, load_wire
from crucible_trio.testing.resume.asgi import open_asgi
from crucible_trio.testing.resume.client_run import ClientRun
from crucible_trio.testing.resume.clients import EVENT_SOURCE, FETCH, HTTPX_SSE, ClientKind, ClientState
from crucible_trio.testing.resume.exchange import Exchange
from crucible_trio.testing.resume.judging import Finding, judge, show_difference
from crucible_trio.testing.resume.report import Failure
from crucible_trio.testing.resume.wire import HttpRequest, Reading, WireEvent

BODY = (
    "retry: 1000\n:\nevent: a\ndata: eins\nid: s.1\n\ndata: zwei\ndata: ½\r\nid: s.2\r\n\r\n: hm\n\n"
    "data: drei\nid: s.3\n\ndata: ohne\n\nid:s.4\ndata: vier\n\ndata: fünf\rid: s.5\r\r"
).encode()


def follow(kind: ClientKind, body: bytes, *, seed: int = 0) -> tuple[ClientState, list[str]]:
    client = ClientState(kind)
    client.connect()
    events: list[sse.ServerSentEvent] = []
    rng = random.Random(seed)
    while body:
        length = rng.randint(1, 9)
        events += client.feed(body[:length])
        body = body[length:]
    events += client.disconnect()
    return client, [event.data or "" for event in events]


def httpx_sse_reads(body: bytes) -> tuple[str, list[str]]:
    """The last id and the data that httpx-sse's own decoders return before the connection breaks."""
    lines, decoder = SSELineDecoder(), SSEDecoder()
    found = [decoder.decode(line) for line in lines.decode(body.decode(errors="ignore"))]
    # httpx-sse returns an empty event for a comment and a blank line. A user who expects JSON skips it.
    events = [event for event in found if event is not None]
    return next((event.id for event in reversed(events) if event.id), ""), [e.data for e in events if e.data]


# Clients


def test_the_httpx_client_agrees_with_httpx_sse_at_every_cut() -> None:
    for cut_at in range(len(BODY) + 1):
        body = BODY[:cut_at]
        if not body.endswith(b"\r"):  # after a CR, httpx-sse waits for one more byte
            client, data = follow(HTTPX_SSE, body, seed=cut_at)
            assert (client.last_id, data) == httpx_sse_reads(body), cut_at


@given(cut_at=st.integers(0, len(BODY)), seed=st.integers(0, 1000))
def test_an_event_source_never_has_an_id_without_its_event(cut_at: int, seed: int) -> None:
    client, data = follow(EVENT_SOURCE, BODY[:cut_at], seed=seed)
    names = ["", "eins", "zwei\n½", "drei", "vier", "fünf"]
    assert client.last_id == ("s." + str(max(names.index(name) for name in data if name != "ohne")) if data else "")


def test_fetch_takes_an_id_as_soon_as_its_line_has_ended() -> None:
    assert follow(FETCH, b"id: s.1")[0].last_id == ""
    assert follow(FETCH, b"id: s.1\n")[0].last_id == "s.1"
    assert follow(FETCH, b"id: s.1\nevent: x")[0].last_id == "s.1"
    assert follow(FETCH, b"data: x\nid:s.1\nevent: x")[0].last_id == "s.1"
    assert follow(FETCH, b"data: x\nid: s.1\n\nid: s.2\ndata: y")[0].last_id == "s.2"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_fetch_is_given_an_event_that_lacks_only_its_blank_line(end: str) -> None:
    client, data = follow(FETCH, f"data: x{end}id: s.1{end}".encode())
    assert (client.last_id, data, client.gap_cuts) == ("s.1", ["x"], 1)
    # Not if the data is missing too: the server sent the id too early.
    client, data = follow(FETCH, f"id: s.1{end}data: x{end}".encode())
    assert (client.last_id, data, client.gap_cuts) == ("s.1", [], 0)


def test_a_new_connection_drops_the_incomplete_event_and_keeps_the_id() -> None:
    for kind in CLIENTS.values():
        client, _ = follow(kind, b"data: x\nid: s.1\n\ndata: ha")
        client.connect()
        assert [event.data for event in client.feed(b"lf\n\ndata: y\n\n")] == ["y"]
        assert client.last_id == "s.1"


# The wire


def event(data: str, **fields: Any) -> sse.ServerSentEvent:
    return sse.ServerSentEvent(data=data, **fields)


def test_our_events_are_read_by_type_segment_and_index() -> None:
    wire = WireFormat()
    trace = wire.read(event('{"type":"reasoning.delta","seq":2,"segment":1,"delta":"hm"}', id="s.2"))
    answer = wire.read(event('{"type":"output.delta","seq":3,"delta":"ja"}', id="s.3"))
    end = wire.read(event('{"type":"stream.failed","seq":4}', id="s.4"))
    busy = wire.read(event('{"type":"server.busy","reconnect_in_ms":5}'))
    call = wire.read(event('{"type":"tool_call.delta","seq":5,"index":2,"delta":"{}"}', id="s.5"))
    assert (trace.channel, trace.text, trace.id) == ("reasoning.delta/1", "hm", "s.2")
    assert (call.channel, call.text) == ("tool_call.delta//2", "{}")
    assert (answer.channel, answer.text) == ("output.delta", "ja")
    assert (end.is_terminal, end.text) == (True, "")
    assert (busy.is_control, busy.is_terminal, busy.id) == (True, False, None)


def test_an_unknown_type_is_read_by_its_id_and_by_its_text_if_it_has_one() -> None:
    wire = WireFormat()
    started = wire.read(event('{"type":"tool_call.started","seq":2,"index":0,"id":"c","name":"n"}', id="s.2"))
    call = wire.read(event('{"type":"tool_call.delta","seq":3,"index":0,"delta":"{}"}', id="s.3"))
    other = wire.read(event('{"type":"audio.delta","seq":4,"delta":{"data":"UklG"},"segment":[1]}', id="s.4"))
    assert [(read.id, read.text) for read in (started, call, other)] == [("s.2", ""), ("s.3", "{}"), ("s.4", "")]
    assert not any(read.is_terminal or read.is_control or read.is_out_of_band for read in (started, call, other))


def test_the_text_of_an_out_of_band_event_is_not_compared() -> None:
    notice = event('{"type":"server.notice","delta":"restart at noon"}')
    reading = Reading()
    reading.add(WireFormat().read(notice))
    assert (reading.has_text, reading.texts, reading.ids) == (True, {}, [])
    # Where ids need not be consecutive, text may have no id.
    for ids in ("rising", "opaque"):
        reading = Reading()
        reading.add(WireFormat(ids=ids).read(notice))
        assert reading.texts == {"server.notice": "restart at noon"}


def test_events_of_other_servers_can_be_described() -> None:
    chat = WireFormat(kind="object", text="choices.0.delta.content", terminal=("[DONE]",))
    assert chat.read(event('{"object":"chunk","choices":[{"delta":{"content":"ja"}}]}')).text == "ja"
    assert chat.read(event('{"object":"chunk","choices":[]}')).text == ""
    assert chat.read(event("[DONE]")).is_terminal
    plain = WireFormat(kind="event:", text="", terminal=("end",))
    assert plain.read(event("12", event="say")).text == "12"
    assert (plain.read(event("x", event="end")).is_terminal, plain.read(event("x", event="end")).text) == (True, "")


def test_the_key_replaces_its_placeholders() -> None:
    wire = WireFormat(path="/s?k={key}", headers={"X": "{key}!"}, body='{"a": "{key}"}')
    assert wire.is_repeatable
    assert wire.start("/base", "k1") == HttpRequest(
        method="POST", target="/base/s?k=k1", headers=(("X", "k1!"),), body=b'{"a": "k1"}'
    )
    assert not WireFormat(headers={}).is_repeatable


@pytest.mark.parametrize(
    ("events", "target"),
    [
        ("{header:Location}/events", "/llm/v1/streams/s/events"),
        ("events/{json:stream.id}", "/llm/v1/events/7"),
        ("{json:url}", "/e?token=x"),
        ("{header:Nothing}", None),
        ("/{json:stream.nothing}", None),
        (None, None),
    ],
)
def test_the_events_are_found_in_the_answer_to_the_start(events: str | None, target: str | None) -> None:
    headers = {"location": "/llm/v1/streams/s"}
    content = b'{"stream": {"id": 7}, "url": "http://localhost/e?token=x"}'
    found = WireFormat(events=events).find_events(
        HttpRequest(method="POST", target="/llm/v1/streams"), headers, content
    )
    assert (found.target if found else None) == target


def test_an_id_ends_with_its_number() -> None:
    assert WireFormat().number("str_7Q2M4.12") == (12, 0)
    assert WireFormat().number("1526919030474-55") == (1526919030474, 55)
    assert WireFormat().number("abc") is None


def test_a_wire_is_read_from_a_file_and_errors_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "wire.toml"
    file.write_text('path = "/chat"\nterminal = ["done"]\n[headers]\nAccept = "text/event-stream"\n')
    wire = load_wire(file)
    assert (wire.path, wire.terminal, wire.method) == ("/chat", ("done",), "POST")
    for text in ('pfad = "/x"', 'ids = "some"', "path = ", 'text = "\\ud800"'):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"wire\.toml"):
            load_wire(file)
    with pytest.raises(ConfigError):
        load_wire(tmp_path / "nowhere")


# Judging


def exchange(*events: tuple[str | None, str], asked: str = "", **fields: Any) -> Exchange:
    received = [
        WireEvent(
            id=event_id,
            kind=text if text.isupper() else "",
            channel="",
            text="" if text.isupper() else text,
            is_terminal=text == "END",
            is_control=text == "LATER",
            is_out_of_band=event_id is None,
        )
        for event_id, text in events
    ]
    fields = {"status": 200, "headers": {"content-type": "text/event-stream"}, "end": "clean"} | fields
    return Exchange(HttpRequest(method="GET", target="/s"), asked, events=received, **fields)


def verdict(
    *exchanges: Exchange, kind: ClientKind = HTTPX_SSE, wire: WireFormat | None = None, measured: bool = True
) -> str | None:
    expected = Reading()
    for event in exchange(("1", "a"), ("2", "b"), ("3", "c"), ("4", "END")).events:
        expected.add(event)
    finding = judge(ClientRun(kind, list(exchanges)), expected if measured else None, wire or WireFormat())
    return finding.name if finding else None


HALF = exchange(("1", "a"), ("2", "b"), end="cut")
REST = exchange(("3", "c"), ("4", "END"), asked="2")
ALL = exchange(("1", "a"), ("2", "b"), ("3", "c"), ("4", "END"), end="cut")


@pytest.mark.parametrize("measured", [True, False])
def test_correct_runs_have_no_finding(measured: bool) -> None:
    good = [
        [HALF, REST],
        [exchange(status=None, end="cut"), exchange(("1", "a"), ("2", "b"), ("3", "c"), ("4", "END"))],
        # A client that reconnects after the end gets the terminal event again, or nothing, or 204, or an error.
        [ALL, exchange(("4", "END"), asked="4")],
        [ALL, exchange(asked="4")],
        [ALL, exchange(asked="4", status=204, headers={})],
        [ALL, exchange(asked="4", status=404, headers={})],
        # A control event has no id, and the body may end with it.
        [HALF, exchange((None, "LATER"), asked="2"), exchange((None, "LATER"), ("3", "c"), ("4", "END"), asked="2")],
        [HALF, exchange(("3", "c"), asked="2", end="broken"), exchange(("4", "END"), asked="3")],
        # Another out-of-band event, on one connection only.
        [HALF, exchange((None, "notice"), ("3", "c"), ("4", "END"), asked="2")],
    ]
    for exchanges in good:
        assert verdict(*exchanges, measured=measured) is None, exchanges


@pytest.mark.parametrize(
    ("exchanges", "name"),
    [
        ([HALF, exchange(("4", "END"), asked="2")], "lost tail"),
        ([exchange(("1", "a"), end="cut"), exchange(("3", "c"), ("4", "END"), asked="1")], "off by one on resume"),
        ([exchange(("1", "a"), ("3", "c"), ("4", "END"))], "dropped event"),
        ([HALF, exchange(("2", "b"), asked="2")], "off by one on resume"),
        ([HALF, exchange(("1", "a"), asked="2")], "ids ignored"),
        ([HALF, exchange(("3", "c"), ("3", "c"), asked="2")], "repeated event"),
        ([HALF, exchange(("3", "c"), asked="2")], "clean end without terminal"),
        ([HALF, exchange(asked="2", status=204, headers={})], "lost tail"),
        ([HALF, exchange(asked="2", status=409, headers={})], "reconnect refused"),
        ([HALF, exchange(asked="2", headers={"content-type": "text/html"})], "reconnect refused"),
        ([HALF, exchange(asked="2", status=None, end="no server")], "reconnect refused"),
        ([HALF, exchange(asked="2", end="silent")], "stuck"),
        ([HALF, exchange(asked="2", end="broken")], "never ends"),
        ([HALF, exchange(("x", "c"), asked="2")], "different stream"),
        ([HALF, exchange(("3", "d"), ("4", "END"), asked="2")], "different text"),
        ([HALF, exchange(("3", "c"), ("4", "END"), (None, "more"), asked="2")], "event after the terminal"),
        ([ALL, exchange(("4", "END"), ("5", "e"), asked="4")], "event after the terminal"),
        ([exchange(("1", "a"), ("2", "b"), ("3", "c"), ("4", "END"), ("4", "END"))], "repeated event"),
        ([exchange(("1", "a"), end="cut"), exchange(("3", "c"), ("4", "END"), asked="2")], "id before its data"),
        ([exchange(("1", "a"), ("2", "b"), ("3", "c"), end="cut"), exchange(asked="4")], "id before its data"),
        (
            [exchange(("1", "a"), ("2", "b"), ("3", "c"), end="cut"), exchange(asked="4", status=204)],
            "id before its data",
        ),
    ],
)
def test_the_first_fault_is_named(exchanges: list[Exchange], name: str) -> None:
    assert verdict(*exchanges) == name


def test_without_an_uncut_reader_the_numbers_must_count_or_rise() -> None:
    gap = [HALF, exchange(("7", "c"), ("9", "END"), asked="2")]
    back = [HALF, exchange(("1", "c"), ("9", "END"), asked="2")]
    assert verdict(*gap, measured=False) == "dropped event"
    assert verdict(*gap, measured=False, wire=WireFormat(ids="rising")) is None
    assert verdict(*back, measured=False, wire=WireFormat(ids="rising")) == "repeated event"
    assert verdict(*gap, measured=False, wire=WireFormat(ids="opaque")) is None
    assert verdict(exchange(("x", "a")), measured=False) == "no ids"


# The ASGI network


async def test_an_application_is_told_of_the_cut(autojump_clock: Any) -> None:
    heard = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        assert await receive() == {"type": "http.request", "body": b"hm", "more_body": False}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
        assert await receive() == {"type": "http.disconnect"}
        await send({"type": "http.response.body", "body": b"after the cut", "more_body": True})
        heard.set()

    with trio.fail_after(10):
        async with open_asgi(app) as network:
            connection = await network.connect()
            await connection.send_all(b"POST /a%20b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhm")
            assert await connection.receive_some(9) == b"HTTP/1.1 "
            connection.close(reset=True)
            await heard.wait()


async def test_an_application_that_fails_midway_resets_the_connection(autojump_clock: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    with trio.fail_after(10):
        async with open_asgi(app) as network:
            connection = await network.connect()
            await connection.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await connection.receive_some(1000)).endswith(b"1\r\nx\r\n")
            with pytest.raises(trio.BrokenResourceError):
                await connection.receive_some(1000)


# Stage and report


async def test_a_stage_gives_each_stream_its_own_turns(autojump_clock: Any) -> None:
    stage = Stage()
    made: list[str] = []

    async def make(key: str) -> None:
        for _ in range(3):
            await stage.turn(key)
            made.append(key)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            stage.more("a")  # before any engine waits
            nursery.start_soon(make, "a")
            nursery.start_soon(make, "b")
            await trio.testing.wait_all_tasks_blocked()
            assert made == ["a"]
            stage.more("a")
            await trio.testing.wait_all_tasks_blocked()
            assert made == ["a", "a"]
            stage.release("b")
            await trio.testing.wait_all_tasks_blocked()
            assert made == ["a", "a", "b", "b", "b"]
            stage.release("a")


def test_a_difference_is_shown_where_it_begins_with_control_characters_escaped() -> None:
    assert show_difference({"a": "x"}, {"a": "x"}) == ""
    shown = show_difference({"a": "0123456789" * 9}, {"a": "0123456789" * 5 + "\x1b]0;hm\x07"})
    assert shown.splitlines() == [
        "a, from character 50 on:",
        "uncut: ...678901234567890123456789[012345678901234567890123]...",
        "cut:   ...678901234567890123456789[\\x1b]0;hm\\x07]",
    ]


def test_a_report_without_judged_cuts_is_not_a_success() -> None:
    assert Report("x").exit_code == 2
    assert Report("x", rows=[Row(phase="log", client="fetch", planned=3)]).exit_code == 2
    assert Report("x", rows=[Row(phase="log", client="fetch", checked=1)]).exit_code == 0
    assert Report("x", problem="hm", rows=[Row(phase="log", client="fetch", checked=1)]).exit_code == 2


def test_a_report_shows_two_failures_per_name_and_counts_the_others() -> None:
    finding = Finding(name="stuck", message="no\x1bevent")
    failures = [Failure(phase="log", client="fetch", cut_at=n, finding=finding) for n in range(5)]
    text = str(Report("the application x", failures=failures))
    assert text.count("FAIL stuck: no\\x1bevent") == 2
    assert "check(..., phases=['log'], clients=['fetch'], cuts=[1], seed=0)" in text
    assert "and 3 more failures with these names" in text
    assert text.endswith("FAILED: stuck (5)")
