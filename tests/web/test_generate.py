"""`GET /v1/generate`: a stream that a plain `EventSource` can start."""

from __future__ import annotations

import pytest
from trio.testing import MockClock


async def test_generate_starts_a_stream_that_an_event_source_can_open(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        target = "/v1/generate?prompt=Why%20%C3%A4%3F&mode=deep&idempotency_key=k"
        answer = await api.get(target)
        assert answer.status == 200
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert answer.header("location") == f"/v1/streams/{answer.stream_id}"
        assert answer.types == ["stream.created", "output.delta", "stream.completed"]
        assert (engine.requests[0].input, engine.requests[0].mode) == ("Why ä?", "deep")
        assert (await api.pipeline.find(answer.stream_id)).on_disconnect == "continue"
        # Without an id an EventSource comes back to the same URL: the key joins.
        again = await api.get(target)
        assert again.header("crucible-replayed") == "true"
        assert again.body == answer.body
        # With an id it resumes, and the rest of the URL does not count.
        rest = await api.get("/v1/generate?prompt=other", Last_Event_Id=f"{answer.stream_id}.1")
        assert rest.types == ["output.delta", "stream.completed"]
        clash = await api.get("/v1/generate?prompt=other&idempotency_key=k")
        assert (clash.status, clash.error["code"]) == (422, "idempotency_conflict")
    assert len(engine.requests) == 1


async def test_the_default_mode_of_generate_is_standard(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.get("/v1/generate?prompt=Why%3F")
        assert answer.events[0]["mode"] == "standard"
        assert (await api.pipeline.find(answer.stream_id)).on_disconnect == "pause"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "prompt"),
        ("mode=deep", "prompt"),
        ("prompt=", "input"),
        ("prompt=x&mode=", "mode"),
        ("prompt=x&mode=fast", "mode"),
        ("prompt=x&mode=%FF", "mode"),
        ("prompt=x&idempotency_key=", "Idempotency-Key"),
        ("prompt=x&idempotency_key=a%20b", "Idempotency-Key"),
        ("prompt=x&idempotency_key=%00", "Idempotency-Key"),
        ("prompt=x&trace=all", "trace"),
        ("prompt=x&done=1", "done"),
        ("prompt=x&model=other", "model"),
        ("prompt=x&%F0%9F=1", "%F0%9F"),
        ("prompt=x&Prompt=1", "Prompt"),
        ("prompt=x&=1", ""),
    ],
)
async def test_generate_names_the_parameter_that_is_wrong_and_starts_nothing(
    open_api, query, param, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        answer = await api.get(f"/v1/generate?{query}")
        assert answer.status == 400
        assert answer.error["code"] == "invalid_request"
        assert answer.error.get("param", "") == param
        assert (await api.get("/v1/streams")).json == {"data": []}


async def test_head_on_generate_starts_nothing(open_api, scripted, autojump_clock: MockClock) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        head = await api.ask("HEAD", "/v1/generate?prompt=x")
        assert (head.status, head.body) == (200, b"")
        assert head.headers == [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ]
        assert (await api.get("/v1/streams")).json == {"data": []}
        stream = (await api.stream()).stream_id
        head = await api.ask("HEAD", f"/v1/generate?last_event_id={stream}.1")
        assert (head.status, head.body, head.stream_id) == (200, b"", stream)
        assert (await api.ask("HEAD", "/v1/generate?prompt=x&x=1")).status == 400
    assert len(engine.requests) == 1
