"""Resuming with `Last-Event-ID` on POST and GET, by query and by HEAD, and the answers for a lost stream."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.content import Reasoning
from crucible_trio.records import new_stream_id

BODY = {"input": "Why?"}
SSE = "text/event-stream; charset=utf-8"
HEAD_OF_FIVE = 5  # created, reasoning.delta, reasoning.done, output.delta, completed


async def finished(api) -> tuple[str, bytes]:
    """A finished stream: its id, and its body without the retry line."""
    answer = await api.stream()
    assert answer.events[-1]["seq"] == HEAD_OF_FIVE
    return answer.stream_id, answer.body.removeprefix(b"retry: 1000\n")


def rest_of(body: bytes, after: int) -> bytes:
    return b"".join(event + b"\n\n" for event in body.split(b"\n\n")[after:-1])


STEPS = (Reasoning("Hm", 0), "Hel")


async def test_a_post_with_last_event_id_resumes_and_does_not_parse_its_body(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted(*STEPS)
    async with open_api(engine=engine) as api:
        stream, body = await finished(api)
        for after in range(HEAD_OF_FIVE):
            # Only the id counts, not the Accept header or the body.
            answer = await api.post(body=b"\xff no json", Last_Event_Id=f"{stream}.{after}")
            assert answer.status == 200
            assert answer.header("content-type") == SSE
            assert answer.body == b"retry: 1000\n" + rest_of(body, after)
            assert answer.header("crucible-stream") == stream
    assert len(engine.requests) == 1


async def test_a_post_with_last_event_id_of_a_running_stream_continues_it(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", over := trio.Event(), "b") as api:
        async with api.open_stream() as first:
            await first.until_event(2)
        async with api.open_stream(Last_Event_Id=f"{first.stream_id}.2") as second:
            await second.until(lambda exchange: exchange.messages)
            over.set()
            await second.until(lambda exchange: exchange.ended)
        assert second.types == ["output.delta", "stream.completed"]


async def test_last_event_id_wins_over_an_idempotency_key(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted(*STEPS)
    async with open_api(engine=engine, retention_seconds=60) as api:
        stream, _ = await finished(api)
        other = await api.stream(Idempotency_Key="k")
        answer = await api.stream(Last_Event_Id=f"{stream}.4", Idempotency_Key="k")
        assert answer.stream_id == stream != other.stream_id
        # The key neither recovers a lost stream nor starts one in its place.
        unknown = await api.stream(Last_Event_Id=f"{new_stream_id()}.1", Idempotency_Key="new")
        assert (unknown.status, unknown.error["code"]) == (404, "stream_not_found")
        await trio.sleep(61)
        expired = await api.stream(Last_Event_Id=f"{stream}.4", Idempotency_Key="k")
        assert (expired.status, expired.error["code"]) == (410, "stream_expired")
    assert len(engine.requests) == 2


async def test_an_empty_last_event_id_counts_as_absent(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted(*STEPS)
    async with open_api(engine=engine) as api:
        one = await api.stream(Last_Event_Id="", Idempotency_Key="k")
        two = await api.stream(Last_Event_Id="", Idempotency_Key="k")
        assert one.body == two.body
        stream, body = one.stream_id, one.body
        for target, header in (
            (f"/v1/streams/{stream}/events", ""),
            (f"/v1/streams/{stream}/events?last_event_id=", ""),
            (f"/v1/streams/{stream}/events?lastEventId=&_", ""),
        ):
            assert (await api.get(target, Last_Event_Id=header)).body == body
        rest = await api.get(f"/v1/streams/{stream}/events?last_event_id={stream}.4", Last_Event_Id="")
        assert rest.types == ["stream.completed"]
        assert (await api.get("/v1/generate?prompt=x", Last_Event_Id="")).stream_id != stream
    assert len(engine.requests) == 2


async def test_events_begin_after_the_header_else_the_query_else_at_record_1(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        stream, body = await finished(api)
        url = f"/v1/streams/{stream}/events"
        for after in range(HEAD_OF_FIVE):
            position = f"{stream}.{after}"
            expected = b"retry: 1000\n" + rest_of(body, after)
            assert (await api.get(url, Last_Event_Id=position)).body == expected
            assert (await api.get(f"{url}?last_event_id={position}")).body == expected
            # As polyfills of EventSource ask: with a name of their own, and a value that no cache has.
            assert (await api.get(f"{url}?lastEventId={position}&_=123")).body == expected
            assert (await api.get(f"{url}?last_event_id={stream}.1&lastEventId={position}")).body == expected
            assert (await api.get(f"/v1/generate?prompt=x&_=5&lastEventId={position}")).body == expected
            both = await api.get(f"{url}?last_event_id={stream}.1", Last_Event_Id=position)
            assert both.body == expected
        assert (await api.get(url)).body == b"retry: 1000\n" + body


@pytest.mark.parametrize("accept", ["", "*/*", "application/json", "text/event-stream;q=0"])
async def test_events_are_sent_for_any_accept_header(open_api, accept, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        stream, _ = await finished(api)
        answer = await api.get(f"/v1/streams/{stream}/events", **({"Accept": accept} if accept else {}))
        assert answer.status == 200
        assert answer.header("content-type") == SSE


# The end


async def test_204_is_for_a_get_at_the_terminal_record_and_for_nothing_else(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        stream, body = await finished(api)
        end = f"{stream}.{HEAD_OF_FIVE}"
        url = f"/v1/streams/{stream}/events"
        for target, header in (
            (url, end),
            (f"{url}?last_event_id={end}", ""),
            ("/v1/generate?prompt=x", end),
            (f"/v1/generate?last_event_id={end}", ""),
            (f"{url}?trace=none", end),
        ):
            answer = await api.get(target, Last_Event_Id=header)
            assert (answer.status, answer.body) == (204, b"")
            assert not answer.has_header("content-length")
        again = b"retry: 1000\n" + rest_of(body, HEAD_OF_FIVE - 1)
        for method, target in (
            ("POST", "/v1/streams"),
            ("POST", "/v1/streams?trace=none"),
            ("POST", "/v1/streams?done=event"),
            ("GET", f"{url}?done=event"),
            ("GET", f"{url}?done=event&trace=final"),
            ("GET", "/v1/generate?done=event"),
        ):
            answer = await api.ask(method, target, Last_Event_Id=end)
            assert (answer.status, answer.body) == (200, again), (method, target)
        # A GET from one record earlier and a GET of the whole stream are always 200.
        assert (await api.get(url, Last_Event_Id=f"{stream}.{HEAD_OF_FIVE - 1}")).body == again
        assert (await api.get(f"{url}?done=event")).body == b"retry: 1000\n" + body


async def test_a_reader_at_the_head_of_a_running_stream_waits(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", over := trio.Event()) as api:
        stream = await api.start()
        await wait_all_tasks_blocked()
        async with api.open("GET", f"/v1/streams/{stream}/events", Last_Event_Id=f"{stream}.2") as reader:
            await reader.until(lambda exchange: exchange.messages)
            await wait_all_tasks_blocked()
            assert (reader.status, reader.body, reader.ended) == (200, b"retry: 1000\n", False)
            over.set()
            await reader.until(lambda exchange: exchange.ended)
            assert reader.types == ["stream.completed"]


# Bad offsets


BAD_IDS = [
    "x",
    "1",
    ".",
    ".1",
    "null",
    "{id}",
    "{id}.",
    "{id}..1",
    "{id}.1.2",
    "{id}.1.",
    "{id}.+1",
    "{id}.-1",
    "{id}.-0",
    "{id}.01",
    "{id}.00",
    "{id}.1.5",
    "{id}.1e0",
    "{id}.0x1",
    "{id}.1_0",
    "{id}.1\0",
    "{id}\0.1",
    "\0",
    "{id}.\xb2",  # a digit to str.isdigit
    "{id}.1 ",
    " {id}.1",
    "{id} .1",
    "str_{id}.1",
    "{id}x.1",
    "../{id}.1",
    "{id}.1\t",
    "{id}." + "9" * 200,
    "str_" + "a" * 300 + ".1",
    "9" * 10_000,
    "ä" * 10,
]
QUERY_ONLY = ["{id}.%EF%BC%91", "{id}.%D9%A1", "%FF.1", "{id}.1%00", "%ED%A0%80", "{id}.1%0A"]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_an_id_that_no_server_sends_is_400(open_api, bad, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        stream, _ = await finished(api)
        last_event_id = bad.format(id=stream)
        for method, target in (
            ("POST", "/v1/streams"),
            ("GET", f"/v1/streams/{stream}/events"),
            ("GET", "/v1/generate"),
        ):
            answer = await api.ask(method, target, Last_Event_Id=last_event_id)
            assert answer.status == 400
            assert answer.error["code"] == "invalid_last_event_id"
        assert len((await api.get("/v1/streams")).json["data"]) == 1


@pytest.mark.parametrize("bad", QUERY_ONLY)
async def test_a_bad_id_in_a_query_is_400(open_api, bad, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS) as api:
        stream, _ = await finished(api)
        for path in (f"/v1/streams/{stream}/events", "/v1/generate"):
            answer = await api.get(f"{path}?last_event_id={bad.format(id=stream)}")
            assert answer.status == 400
            assert answer.error["code"] == "invalid_last_event_id"


@pytest.mark.parametrize("beyond", [HEAD_OF_FIVE + 1, 10**6, 2**63, 2**64, 10**100])
@pytest.mark.parametrize("ended", [True, False])
async def test_an_offset_beyond_the_head_is_400_finished_or_not(
    open_api, ended, beyond, autojump_clock: MockClock
) -> None:
    steps = STEPS if ended else (*STEPS, trio.Event())
    async with open_api(*steps) as api:
        stream = await api.start()
        await wait_all_tasks_blocked()
        for method, target in (
            ("POST", "/v1/streams"),
            ("GET", f"/v1/streams/{stream}/events"),
            ("GET", "/v1/generate"),
        ):
            answer = await api.ask(method, target, Last_Event_Id=f"{stream}.{beyond}")
            assert answer.status == 400
            assert answer.error["code"] == "cursor_ahead"


async def test_another_streams_id_is_400_on_events_and_selects_it_elsewhere(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api(*STEPS) as api:
        one, _ = await finished(api)
        two, _ = await finished(api)
        for other in (two, new_stream_id()):
            answer = await api.get(f"/v1/streams/{one}/events", Last_Event_Id=f"{other}.1")
            assert (answer.status, answer.error["code"]) == (400, "invalid_last_event_id")
        for method, target in (("POST", "/v1/streams"), ("GET", "/v1/generate?prompt=x")):
            assert (await api.ask(method, target, Last_Event_Id=f"{two}.1")).stream_id == two
            answer = await api.ask(method, target, Last_Event_Id=f"{new_stream_id()}.1")
            assert (answer.status, answer.error["code"]) == (404, "stream_not_found")


async def test_an_expired_stream_is_410_for_an_hour_then_404(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS, retention_seconds=60) as api:
        stream, _ = await finished(api)
        path = f"/v1/streams/{stream}"
        requests = (
            ("GET", f"{path}/events"),
            ("HEAD", f"{path}/events"),
            ("GET", path),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
            ("GET", f"/v1/generate?last_event_id={stream}.1"),
        )
        await trio.sleep(61)
        for method, target in requests:
            answer = await api.ask(method, target)
            assert (answer.status, answer.error["code"]) == (410, "stream_expired"), (method, target)
        await trio.sleep(3600)
        for method, target in requests:
            answer = await api.ask(method, target)
            assert (answer.status, answer.error["code"]) == (404, "stream_not_found"), (method, target)


async def test_readers_attached_at_expiry_can_read_to_the_end(open_api, autojump_clock: MockClock) -> None:
    async with open_api(*STEPS, retention_seconds=60) as api:
        stream, body = await finished(api)
        async with api.open("GET", f"/v1/streams/{stream}/events", allowance=0) as reader:
            await trio.sleep(61)
            assert (await api.get(f"/v1/streams/{stream}/events")).status == 410
            reader.allow(9)
            await reader.until(lambda exchange: exchange.ended)
            assert reader.body == b"retry: 1000\n" + body


# HEAD


async def test_head_on_events_answers_like_get_and_attaches_nothing(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api:
        stream = await api.start()
        await wait_all_tasks_blocked()
        url = f"/v1/streams/{stream}/events"
        async with api.open("GET", url) as reader:
            await reader.until_event(2)
            assert api.number("readers") == 1
            head = await api.ask("HEAD", url)
            assert (head.status, head.body, head.headers) == (200, b"", reader.headers)
            assert api.number("readers") == 1
        assert (await api.ask("HEAD", url, Last_Event_Id="x")).status == 400
        assert (await api.ask("HEAD", f"/v1/streams/{new_stream_id()}/events")).status == 404
        assert api.number("resumes_total") == 0
        await api.post(f"/v1/streams/{stream}/cancel")
        assert (await api.ask("HEAD", url, Last_Event_Id=f"{stream}.3")).status == 204


async def test_head_does_not_call_the_engine(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        async with api.open_stream(allowance=0) as cut:
            await wait_all_tasks_blocked()
        await api.ask("HEAD", f"/v1/streams/{cut.stream_id}/events")
        await wait_all_tasks_blocked()
        assert engine.requests == []
